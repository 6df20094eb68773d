"""Who is asking, as the settings say it: keys of tokens, rules, revocations.

Used by the composition root and the command line.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

from kiseki.kernel.ports import Auditor, Clock
from kiseki.security.identity.claims import ClaimRules
from kiseki.security.identity.issuing import TokenIssuer
from kiseki.security.identity.jwks_file import JwksFile
from kiseki.security.identity.key_sources import FixedKeys, KeyLoader, KeySource, RefreshedKeys
from kiseki.security.identity.keys import (
    KeyRefused,
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
from kiseki.service.settings import Settings, SettingsError
from kiseki.service.stores import open_revocations

__all__ = ["DEVELOPMENT_ISSUER", "OpenIdentity", "has_keys", "issuer_of", "open_identity", "with_development_key"]

DEVELOPMENT_ISSUER: Final = "kiseki-development"
_SECRET_BYTES: Final = 32
_PEM: Final = b"-----BEGIN "


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
            "token_secret": secrets.token_urlsafe(_SECRET_BYTES),
            "token_issuer": settings.token_issuer or DEVELOPMENT_ISSUER,
        }
    )


async def open_identity(
    settings: Settings, *, clock: Clock, auditor: Auditor, pseudonym: Callable[[str, str], str]
) -> OpenIdentity:
    """Reads keys and revocations, and goes on reading them.

    Raises SettingsError and KeyRefused for what can't be used, Unavailable.
    """
    keys = await _keys(settings, clock, auditor)
    revocations = RevocationList(
        await open_revocations(settings),
        clock=clock,
        auditor=auditor,
        max_lifetime=settings.token_lifetime,
        leeway=settings.token_leeway,
        interval=settings.revocation_poll,
        patience=max(30.0, 2 * settings.revocation_poll),
    )
    verifier = TokenVerifier(
        keys=keys,
        rules=rules_of(settings),
        clock=clock,
        revocations=revocations,
        required_type=settings.token_type or None,
    )
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


def issuer_of(settings: Settings, *, clock: Clock, auditor: Auditor, private_key: Path | None) -> TokenIssuer:
    """What issues tokens that these settings believe: with the secret, or with a private key (PEM).

    Raises SettingsError, KeyRefused.
    """
    if private_key is not None:
        try:
            key = signing_key_from_pem(private_key.read_bytes(), algorithm=None)
        except OSError as problem:
            raise SettingsError(f"the private key {private_key} can't be read: {problem.strerror}") from problem
    elif settings.token_secret:
        key = signing_key_from_secret(settings.token_secret.encode())
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


async def _keys(settings: Settings, clock: Clock, auditor: Auditor) -> KeySource:
    fixed: list[VerificationKey] = []
    refreshed: list[KeySource] = []

    def refreshing(loader: KeyLoader) -> RefreshedKeys:
        return RefreshedKeys(
            loader,
            clock=clock,
            auditor=auditor,
            required=isinstance(loader, JwksFile),
            interval=settings.jwks_refresh,
            max_age=max(86_400.0, settings.jwks_refresh),
        )

    if settings.token_secret:
        fixed.append(_named("token_secret", lambda: secret_key(settings.token_secret.encode())))
    for name in settings.token_keys:
        pem = await asyncio.to_thread(_read, Path(name))
        if pem.lstrip().startswith(_PEM):
            fixed.append(_named(f"token_keys, {name}", partial(_from_pem, pem, settings.token_rsa)))
        else:
            refreshed.append(refreshing(JwksFile(Path(name), rsa_algorithm=settings.token_rsa)))
    if settings.jwks_url:
        from kiseki.security.identity.jwks_url import JwksUrl

        url = JwksUrl(settings.jwks_url, rsa_algorithm=settings.token_rsa, loopback=settings.development)
        refreshed.append(refreshing(url))
    sources: Sequence[KeySource] = [*([FixedKeys(fixed)] if fixed else []), *refreshed]
    if not sources:
        raise SettingsError("nothing says how tokens are verified; set token_keys, jwks_url or token_secret")
    return sources[0] if len(sources) == 1 else SeveralSources(sources)


def _from_pem(pem: bytes, rsa: str) -> VerificationKey:
    key = verification_key_from_pem(pem)
    return verification_key_from_pem(pem, algorithm=rsa) if key.algorithm.startswith(("RS", "PS")) else key


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
