"""Who is asking, as the settings say it: keys of tokens, rules, revocations.

Used by the composition root and the command line.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from secrets import token_urlsafe
from typing import Final, NamedTuple

from kiseki.kernel.ports import Auditor, Clock
from kiseki.security.identity.claims import ClaimRules
from kiseki.security.identity.issuing import TokenIssuer
from kiseki.security.identity.jwks_file import JwksFile
from kiseki.security.identity.key_sources import FixedKeys, KeyLoader, KeySource, KeysUnavailable, RefreshedKeys
from kiseki.security.identity.keys import (
    KeyRefused,
    KeySet,
    VerificationKey,
    secret_key,
    signing_key_from_pem,
    signing_key_from_secret,
    verification_key_from_pem,
)
from kiseki.security.identity.revocations import RevocationList
from kiseki.security.identity.several_sources import SeveralSources
from kiseki.security.identity.token_identity import TokenIdentity
from kiseki.security.identity.verifier import TokenVerifier
from kiseki.security.secrets.reading import SecretUnavailable
from kiseki.security.secrets.secret import Secret
from kiseki.security.secrets.source import SecretSource
from kiseki.service.settings import Settings, SettingsError
from kiseki.service.stores import open_revocations

__all__ = [
    "DEVELOPMENT_ISSUER",
    "OpenIdentity",
    "has_keys",
    "issuer_of",
    "open_identity",
    "rules_of",
    "with_development_key",
]

DEVELOPMENT_ISSUER: Final = "kiseki-development"
_SECRET_BYTES: Final = 32
_PEM: Final = b"-----BEGIN "
_RSA: Final = ("RS", "PS")
_PATIENCE: Final = 30.0
_MINIMUM: Final = 10.0
_MAX_AGE: Final = 86_400.0
_FILE_LOOKS: Final = 5.0


class OpenIdentity(NamedTuple):
    """What knows tokens, and what it is made of."""

    identity: TokenIdentity
    verifier: TokenVerifier
    keys: KeySource
    revocations: RevocationList

    async def close(self) -> None:
        """Ends what runs in the background."""
        await self.keys.close()
        await self.revocations.close()


def has_keys(settings: Settings) -> bool:
    """Whether anything says how tokens are verified."""
    return bool(settings.token_secret or settings.token_keys or settings.jwks_url)


def with_development_key(settings: Settings) -> Settings:
    """In the development profile, without keys of its own: a random secret, another one at each start."""
    if not settings.development or has_keys(settings):
        return settings
    return settings.model_copy(
        update={
            "token_secret": token_urlsafe(_SECRET_BYTES),
            "token_issuer": settings.token_issuer or DEVELOPMENT_ISSUER,
        }
    )


async def open_identity(
    settings: Settings,
    *,
    secrets: SecretSource,
    clock: Clock,
    auditor: Auditor,
    pseudonym: Callable[[str, str], str],
) -> OpenIdentity:
    """Reads keys and revocations, and goes on reading them.

    Raises SettingsError and KeyRefused for what can't be used, Unavailable.
    """
    rules = rules_of(settings)
    keys = await _keys(settings, secrets, clock, auditor)
    revocations = RevocationList(
        await open_revocations(settings, secrets),
        clock=clock,
        auditor=auditor,
        max_lifetime=settings.token_lifetime,
        leeway=settings.token_leeway,
        interval=settings.revocation_poll,
        patience=max(_PATIENCE, 2 * settings.revocation_poll),
    )
    required = settings.token_type or None
    verifier = TokenVerifier(keys=keys, rules=rules, clock=clock, revocations=revocations, required_type=required)
    identity = TokenIdentity(
        verifier, pseudonym=pseudonym, clock=clock, auditor=auditor, cache_entries=settings.token_cache
    )
    opened = OpenIdentity(identity, verifier, keys, revocations)
    try:
        await keys.start()
        await revocations.start()
    except BaseException:
        await opened.close()
        raise
    return opened


def rules_of(settings: Settings) -> ClaimRules:
    """What tokens have to say. Raises SettingsError."""
    if not settings.token_issuer:
        raise SettingsError("token_issuer is not set; it is the `iss` of the tokens to believe")
    return ClaimRules(
        issuer=settings.token_issuer,
        audience=settings.token_audience,
        max_lifetime=settings.token_lifetime,
        leeway=settings.token_leeway,
    )


async def issuer_of(
    settings: Settings, *, secrets: SecretSource, clock: Clock, auditor: Auditor, private_key: Path | None
) -> TokenIssuer:
    """What issues tokens that these settings believe: with the secret, or with a private key (PEM, mode 0600).

    Raises SettingsError, KeyRefused, SecretUnavailable.
    """
    if private_key is not None:
        pem = await asyncio.to_thread(_read_private, private_key)
        key = signing_key_from_pem(pem)
        if key.algorithm.startswith(_RSA):
            key = signing_key_from_pem(pem, algorithm=settings.token_rsa)
    elif settings.token_secret:
        key = signing_key_from_secret((await secrets.get(settings.token_secret)).reveal().encode())
    else:
        raise SettingsError("token_secret is not set; give --key, the private key whose public one is in token_keys")
    return TokenIssuer(
        key,
        rules=rules_of(settings),
        clock=clock,
        auditor=auditor,
        production=not settings.development,
        token_type=settings.token_type or "JWT",
    )


class _SecretKey:
    """A KeyLoader of the HS256 secret that a setting refers to, which may be rotated where it is."""

    name = "token_secret"

    def __init__(self, setting: str, secrets: SecretSource) -> None:
        self._setting = setting
        self._secrets = secrets
        self._known: Secret | None = None

    async def load(self) -> KeySet | None:
        """As KeyLoader."""
        try:
            secret = await self._secrets.get(self._setting)
        except SecretUnavailable as problem:
            raise KeysUnavailable(str(problem)) from problem
        if secret == self._known:
            return None
        keys = KeySet([_named("token_secret", lambda: secret_key(secret.reveal().encode()))])
        self._known = secret
        return keys


class _PublicKeys:
    """A KeySource that is not asked for secrets, which no key set on the network holds.

    While it does not answer, tokens that it could never judge do not wait for it.
    """

    def __init__(self, source: KeySource) -> None:
        self._source = source

    @property
    def generation(self) -> int:
        """As KeySource."""
        return self._source.generation

    async def start(self) -> None:
        """As KeySource."""
        await self._source.start()

    async def find(self, algorithm: str, key_id: str | None) -> Sequence[VerificationKey]:
        """As KeySource."""
        return () if algorithm.startswith("HS") else await self._source.find(algorithm, key_id)

    async def close(self) -> None:
        """As KeySource."""
        await self._source.close()


async def _keys(settings: Settings, secrets: SecretSource, clock: Clock, auditor: Auditor) -> KeySource:
    fixed: list[VerificationKey] = []
    sources: list[KeySource] = []

    def refreshed(loader: KeyLoader, *, every: float, required: bool = True) -> RefreshedKeys:
        return RefreshedKeys(
            loader,
            clock=clock,
            auditor=auditor,
            required=required,
            interval=every,
            minimum=min(_MINIMUM, every),
            max_age=max(_MAX_AGE, every),
        )

    if settings.token_secret:
        sources.append(refreshed(_SecretKey(settings.token_secret, secrets), every=min(30.0, settings.secret_refresh)))
    for name in settings.token_keys:
        pem = await asyncio.to_thread(_read, Path(name))
        if pem.lstrip().startswith(_PEM):
            fixed.append(_named(f"token_keys, {name}", partial(_from_pem, pem, settings.token_rsa)))
        else:
            sources.append(refreshed(JwksFile(Path(name), rsa_algorithm=settings.token_rsa), every=_FILE_LOOKS))
    if settings.jwks_url:
        from kiseki.security.identity.jwks_url import JwksUrl

        url = JwksUrl(settings.jwks_url, rsa_algorithm=settings.token_rsa, loopback=settings.development)
        sources.append(_PublicKeys(refreshed(url, every=settings.jwks_refresh, required=False)))
    if fixed:
        sources.append(FixedKeys(fixed))
    if not sources:
        raise SettingsError("nothing says how tokens are verified; set token_keys, jwks_url or token_secret")
    return sources[0] if len(sources) == 1 else SeveralSources(sources)


def _from_pem(pem: bytes, rsa: str) -> VerificationKey:
    key = verification_key_from_pem(pem)
    return verification_key_from_pem(pem, algorithm=rsa) if key.algorithm.startswith(_RSA) else key


def _named(where: str, make: Callable[[], VerificationKey]) -> VerificationKey:
    try:
        return make()
    except KeyRefused as problem:
        raise KeyRefused(f"{where}: {problem}") from problem


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as problem:
        raise SettingsError(f"token_keys: {path} can't be read: {problem.strerror}") from problem


def _read_private(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_mode & 0o077:
                raise SettingsError(f"others may use the private key {path}: chmod 600 it")
            return file.read()
    except OSError as problem:
        raise SettingsError(f"the private key {path} can't be read: {problem.strerror}") from problem
