"""What is unsafe about a process's settings. Used at start, where the production profile refuses what is found, and by
`kiseki check --deploy`.

A finding says what is wrong, and what to do about it, without starting anything.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

from kiseki.kernel.errors import DefinitionError, KisekiError
from kiseki.security.addresses import parse_networks, wide_networks
from kiseki.security.identity.keys import KeyRefused, secret_key
from kiseki.security.secrets.findings import (
    aws_findings,
    connection_findings,
    is_inside,
    master_key_findings,
    place_findings,
    secret_findings,
    vault_findings,
)
from kiseki.security.secrets.reference import SecretReference, SecretReferenceInvalid
from kiseki.service.audit import audit_directory
from kiseki.service.backup_places import mixed_places
from kiseki.service.cors import Cors, InvalidOrigin
from kiseki.service.hosts import Hosts, InvalidHostName
from kiseki.service.identity import has_keys
from kiseki.service.kinds import Parts
from kiseki.service.lease import lease_problem, region_of
from kiseki.service.limits import IN_MEMORY
from kiseki.service.settings import Settings
from kiseki.service.shutdown_times import shutdown_shares
from kiseki.service.store_urls import store_urls
from kiseki.service.transport import is_loopback

__all__ = ["SECRETS", "Finding", "UnsafeSettings", "findings", "refuse_unsafe"]

SECRETS: Final = ("token_secret", "tls_key_password", "audit_key", "audit_keys_previous", "vault_secret_id")
"""The settings that are secrets or refer to them; others may hold one inside a URL."""
_OF_APIS: Final = frozenset({"token_secret", "tls_key_password"})
_SHORTEST_LEASE: Final = 40.0
"""Seconds; the server ends a statement of an append after ten, a quarter of it."""
_EVERYTHING: Final = Parts(command=True, query=True, updater=True)


class Finding(NamedTuple):
    """One thing that is unsafe: its stable name, what is wrong, and the remedy."""

    name: str
    problem: str
    remedy: str


class UnsafeSettings(KisekiError):
    """The process does not start, because it would be unsafe. The message has one line for each finding."""

    code = "UNSAFE_SETTINGS"

    def __init__(self, profile: str, found: list[Finding]) -> None:
        lines = [f"the {profile} profile refuses to start; {len(found)} finding{'s' if len(found) != 1 else ''}:"]
        lines += [f"  - {finding.name}: {finding.problem}; {finding.remedy}" for finding in found]
        super().__init__("\n".join(lines))
        self.findings = tuple(found)


def findings(settings: Settings, environ: Mapping[str, str], parts: Parts = _EVERYTHING) -> list[Finding]:
    """Everything that is unsafe about these settings, for the profile they name, and about the environment.

    `parts` is what the process runs: what concerns none of them is no finding. Reads no files.
    """
    found: list[Finding] = []
    if not settings.development:
        if parts.apis:
            found += [*_identity(settings), *_transport(settings), *_limits(settings, parts)]
        found += _secrets(settings, parts)
        for part in (_management, _stores, _sites, _personal_data, _backups, _audit):
            found += part(settings)
        found += [Finding(*one) for one in (*aws_findings(environ), *vault_findings(settings.vault_address))]
    found += _timing(settings, parts)
    return found


def refuse_unsafe(settings: Settings, environ: Mapping[str, str], parts: Parts = _EVERYTHING) -> None:
    """Raises UnsafeSettings when there is a finding."""
    found = findings(settings, environ, parts)
    if found:
        raise UnsafeSettings(settings.profile, found)


def _identity(settings: Settings) -> list[Finding]:
    found = []
    if not has_keys(settings):
        found.append(
            Finding(
                "authentication",
                "nothing says how tokens are verified, so nobody could be told from anybody else",
                "set jwks_url, token_keys or token_secret",
            )
        )
    if not settings.token_issuer:
        found.append(
            Finding(
                "authentication", "token_issuer is not set, so tokens of anybody would do", "name the issuer of tokens"
            )
        )
    if settings.token_secret and SecretReference.parse(settings.token_secret).kind == "plain":
        try:
            secret_key(settings.token_secret.encode())
        except KeyRefused as problem:
            found.append(Finding("authentication", f"token_secret: {problem}", "openssl rand -base64 48 makes one"))
    if settings.jwks_url and not settings.jwks_url.startswith("https://"):
        found.append(
            Finding("authentication", "jwks_url is not https: anybody in between could give keys", "use https")
        )
    return found


def _secrets(settings: Settings, parts: Parts) -> list[Finding]:
    found = []
    for name in SECRETS:
        if parts.apis or name not in _OF_APIS:
            for value in _values(settings, name):
                found += [*secret_findings(name, value), *_places(name, value, settings)]
    if parts.apis:
        found += _places("rate_store", settings.rate_store, settings)
    for name in ("master_key", "master_keys_previous"):
        for value in _values(settings, name):
            found += place_findings(name, value, settings.data_dir)
    return [Finding(*one) for one in found]


def _values(settings: Settings, name: str) -> Iterable[str]:
    value: str | tuple[str, ...] = getattr(settings, name)
    return (value,) if isinstance(value, str) else value


def _places(name: str, value: str, settings: Settings) -> Iterable[NamedTuple]:
    reference = _reference(value)
    if reference is None or reference.kind != "file":
        return ()
    return place_findings(name, reference.name, settings.data_dir)


def _reference(value: str) -> SecretReference | None:
    """None when it is said elsewhere what is wrong with it."""
    try:
        return SecretReference.parse(value) if value else None
    except SecretReferenceInvalid:
        return None


def _transport(settings: Settings) -> list[Finding]:
    found = []
    if settings.tls_proxy:
        if not settings.trusted_proxies:
            found.append(
                Finding(
                    "transport",
                    "a proxy ends TLS (tls_proxy), but trusted_proxies is empty: all clients would have its address, "
                    "and share one rate limit",
                    "name the proxy's networks",
                )
            )
    elif settings.tls_certificate is None or settings.tls_key is None:
        found.append(
            Finding(
                "transport",
                "the APIs would be served over plain HTTP",
                "set tls_certificate and tls_key, or tls_proxy=true where a proxy in front ends TLS",
            )
        )
    if not settings.hosts:
        found.append(
            Finding("hosts", "hosts is empty: requests for any name are answered", "list the names of the service")
        )
    try:
        Hosts(settings.hosts)
    except InvalidHostName as problem:
        found.append(Finding("hosts", str(problem), "no request could be for such a name"))
    found += _origins(settings)
    try:
        wide = wide_networks(parse_networks(settings.trusted_proxies))
    except DefinitionError as problem:
        found.append(Finding("trusted_proxies", str(problem), "name networks such as 10.0.0.0/8"))
    else:
        found += [
            Finding(
                "trusted_proxies",
                f"{network} is wider than anybody's own proxies: whoever is in it can choose their address",
                "name the proxies' own networks",
            )
            for network in wide
        ]
    return found


def _origins(settings: Settings) -> list[Finding]:
    found = [
        Finding(
            "cors_origins",
            f"{origin[:80]!r} is not https: anybody in between could change its pages, which may call the APIs",
            "list origins with https alone",
        )
        for origin in settings.cors_origins
        if origin.lower().startswith("http:")
    ]
    try:
        Cors(settings.cors_origins)
    except InvalidOrigin as problem:
        found.append(Finding("cors_origins", str(problem), "no page could be of such an origin"))
    return found


def _management(settings: Settings) -> list[Finding]:
    """A management port that listens to others is meant to, or it is a leak."""
    if settings.management_host or is_loopback(settings.host):
        return []
    return [
        Finding(
            "management_host",
            f"the management port would listen on {settings.host}, as the APIs do: health and metrics are not for all",
            "set management_host to 127.0.0.1, or to the address on which the platform asks for health",
        )
    ]


def _stores(settings: Settings) -> list[Finding]:
    urls = {url.setting: url.text for url in store_urls(settings)}
    urls |= {
        name: getattr(settings, name)
        for name in ("rate_store", "audit_database", "audit_anchors", "erasure_ledger")
        if "://" in getattr(settings, name)
    }
    return [
        Finding(one.name, f"{setting}: {one.problem}", one.remedy)
        for setting, url in urls.items()
        for one in connection_findings(url)
    ]


def _sites(settings: Settings) -> list[Finding]:
    """Two sites, of which one may write."""
    sites = (settings.primary_region, settings.secondary_region)
    if not settings.lease:
        problem = "two regions are set, but no lease says which of them writes: a forced failover would be unfenced"
        return [Finding("lease", problem, "set lease to a place in a third region")] if any(sites) else []
    found = []
    wrong = lease_problem(settings)
    if wrong is not None:
        found.append(Finding("lease", wrong, "name both sites, and this one"))
    region = region_of(settings.lease)
    if region and region in (*sites, region_of(settings.journal)):
        problem = "the lease is kept in one of the two regions, with which it would be lost"
        found.append(Finding("lease", problem, "set lease to a place in a third region"))
    elif "://" not in settings.lease and is_inside(settings.lease, settings.data_dir):
        problem = "the lease is kept in data_dir, which only this site has"
        found.append(Finding("lease", problem, "set lease to a place that both sites reach, in a third region"))
    if settings.lease_seconds < _SHORTEST_LEASE:
        problem = f"an append may take longer than what {settings.lease_seconds:g} s (lease_seconds) leave for it"
        found.append(Finding("lease_seconds", problem, f"set it to {_SHORTEST_LEASE:g} or more; 60 is usual"))
    return found


def _personal_data(settings: Settings) -> list[Finding]:
    found = [Finding(*one) for one in master_key_findings(settings.master_key)]
    if not settings.erasure_ledger or is_inside(settings.erasure_ledger, settings.data_dir):
        found.append(
            Finding(
                "erasure_ledger",
                "the erasure ledger is in data_dir: a restored backup would bring erased persons back",
                "set erasure_ledger to a folder of another volume that is in no backup, or to a database",
            )
        )
    return found


def _backups(settings: Settings) -> list[Finding]:
    return [Finding("backup", mixed.problem, mixed.remedy) for mixed in mixed_places(settings)]


def _audit(settings: Settings) -> list[Finding]:
    found = []
    if not settings.audit_key:
        found.append(
            Finding(
                "audit_key",
                "the secret of the audit log's hash chain lies in data_dir, where whoever changes the log could use it",
                "set audit_key to a reference, such as file:///run/secrets/audit",
            )
        )
    if settings.audit_failure == "continue":
        found.append(
            Finding(
                "audit_failure",
                "security events go on that can't be recorded (audit_failure=continue)",
                "set audit_failure to refuse, or take it out",
            )
        )
    if set(settings.audit_sinks) == {"stdout"}:
        found.append(
            Finding(
                "audit_sinks",
                "the audit log goes to standard output alone, where `kiseki audit verify` can't read it",
                "add file or database",
            )
        )
    key = _reference(settings.audit_key)
    if key is not None and key == _reference(settings.token_secret):
        found.append(
            Finding(
                "audit_key",
                "audit_key and token_secret are the same secret: whoever issues tokens could forge the audit log",
                "give each a secret of its own",
            )
        )
    if not settings.audit_anchors or is_inside(settings.audit_anchors, settings.data_dir):
        found.append(
            Finding(
                "audit_anchors",
                "the heads of the audit log are kept nowhere else: whoever deletes its end is not found out",
                "set audit_anchors to a folder of another volume, or to a database of another account",
            )
        )
    elif is_inside(settings.audit_anchors, audit_directory(settings)):
        found.append(
            Finding(
                "audit_anchors",
                "the heads of the audit log are kept in audit_dir: whoever deletes the log's end deletes them too",
                "set audit_anchors to a folder of another volume, or to a database of another account",
            )
        )
    return found


def _limits(settings: Settings, parts: Parts) -> list[Finding]:
    """APIs that run apart are several processes, and mostly several of each."""
    if settings.workers > 1 and settings.rate_store in ("", IN_MEMORY):
        return [
            Finding(
                "rate_store",
                f"each of {settings.workers} workers counts by itself, so the rate limits are as many times as high",
                "set rate_store to rediss://…, or workers to 1",
            )
        ]
    if parts.updater or settings.rate_store:
        return []
    return [
        Finding(
            "rate_store",
            "an API that runs apart counts by itself, as does each further process of it, so the rate limits are as "
            "many times as high",
            f"set rate_store to rediss://…, or to {IN_MEMORY} if it is one process that may count alone",
        )
    ]


def _timing(settings: Settings, parts: Parts) -> list[Finding]:
    """Times that have to fit into each other."""
    found = []
    grace = settings.termination_grace
    shares = shutdown_shares(settings, parts)
    total = sum(share.seconds for share in shares)
    if grace is not None and total > grace:
        found.append(
            Finding(
                "shutdown",
                f"a shutdown may take {total:g} s ({' + '.join(f'{one.setting} {one.seconds:g}' for one in shares)}), "
                f"but the platform kills after {grace:g} s (termination_grace), which would cut what is not done",
                "shorten drain_delay or the other delays, or raise the platform's grace period and this setting",
            )
        )
    if not parts.apis:
        return found
    if settings.requests_done_timeout < settings.request_timeout:
        found.append(
            Finding(
                "shutdown",
                f"a request may take {settings.request_timeout:g} s (request_timeout), but a shutdown waits "
                f"{settings.requests_done_timeout:g} s for it (requests_done_timeout) and then gives it up",
                "make requests_done_timeout at least as long as request_timeout",
            )
        )
    if parts.query and settings.consistency_wait >= settings.request_timeout:
        found.append(
            Finding(
                "timeouts",
                f"a query may wait {settings.consistency_wait:g} s for a write (consistency_wait), but is given up "
                f"after {settings.request_timeout:g} s (request_timeout)",
                "make consistency_wait shorter than request_timeout",
            )
        )
    return found
