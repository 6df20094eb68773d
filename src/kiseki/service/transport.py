"""Transport, as the settings say it: TLS, names, origins, how many connections. Used by `kiseki.service.process`."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Final, NamedTuple

from kiseki.kernel.errors import KisekiError
from kiseki.kernel.ports import Auditor, Clock
from kiseki.security.addresses import ClientAddresses
from kiseki.security.secrets.findings import Finding, secret_findings
from kiseki.security.secrets.source import SecretSource
from kiseki.security.tls import ReloadingTls, TlsFiles, load_tls
from kiseki.service.admission import Admission
from kiseki.service.cors import Cors
from kiseki.service.hosts import ANY_HOST, Hosts
from kiseki.service.settings import Settings, SettingsError

__all__ = ["Transport", "is_loopback", "open_transport", "tls_findings"]

_log = logging.getLogger(__name__)

_ENDS_SOON: Final = timedelta(days=14)
_PASSWORD_SECONDS: Final = 10.0
"""For the password of a key to be read again, in a thread of its own."""


class Transport(NamedTuple):
    """What the doors of a process have in common."""

    tls: ReloadingTls | None
    hosts: Hosts
    cors: Cors | None
    hsts: bool
    """Whether HSTS is sent without TLS, because a proxy in front has it."""
    settings: Settings
    addresses: ClientAddresses

    @property
    def peers(self) -> Callable[[str | None], bool] | None:
        """Which TCP peers may ask, where a proxy in front ends TLS: whoever reaches the port besides goes around it.
        None lets everybody ask."""
        return self._may_ask if self.settings.tls_proxy else None

    def _may_ask(self, peer: str | None) -> bool:
        return peer is not None and (self.addresses.is_proxy(peer) or is_loopback(peer))

    def admission(self) -> Admission:
        """The bound on connections of one API. A proxy that is trusted brings those of everybody."""
        return Admission(
            total=self.settings.connections,
            per_address=self.settings.connections_address,
            exempt=self.addresses.is_proxy if self.settings.trusted_proxies else None,
        )


async def open_transport(
    settings: Settings, *, secrets: SecretSource, addresses: ClientAddresses, clock: Clock, auditor: Auditor
) -> Transport:
    """Raises SettingsError, InvalidTls, InvalidHostName, InvalidOrigin, and what a secret can't be read for."""
    return Transport(
        tls=await _tls(settings, secrets, clock, auditor),
        hosts=Hosts(settings.hosts) if settings.hosts else ANY_HOST,
        cors=Cors(settings.cors_origins) if settings.cors_origins else None,
        hsts=settings.tls_proxy,
        settings=settings,
        addresses=addresses,
    )


def is_loopback(host: str) -> bool:
    """Whether an address, or `localhost`, is of this machine alone; of what is no address, it is not."""
    if host == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped.is_loopback
    return address.is_loopback


async def tls_findings(settings: Settings, *, secrets: SecretSource, now: datetime) -> list[Finding]:
    """What is wrong with the files of TLS, before a start finds out or clients do. Starts nothing.

    What is refused is found in every profile, what works and still should not be so in production. A password that is
    a finding itself is not tried.
    """
    if not settings.development and secret_findings("tls_key_password", settings.tls_key_password):
        return []
    try:
        files = await _tls_files(settings, secrets)
        if files is None:
            return []
        loaded = await asyncio.to_thread(load_tls, files, now=now)
    except KisekiError as problem:
        return [Finding("tls", str(problem), "the service does not start like this")]
    except OSError as problem:
        return [Finding("tls", f"a file of TLS can't be read: {problem.strerror}", "check paths and permissions")]
    if settings.development:
        return []
    found = [Finding("tls", warning, "give another, or take the setting out") for warning in loaded.warnings]
    if loaded.not_after - now < _ENDS_SOON:
        found.append(
            Finding(
                "tls.expires",
                f"a certificate in {files.certificate} ends on {loaded.not_after:%Y-%m-%d %H:%M} UTC",
                "renew it, and let something renew it in time from now on",
            )
        )
    return found


async def _tls(settings: Settings, secrets: SecretSource, clock: Clock, auditor: Auditor) -> ReloadingTls | None:
    files = await _tls_files(settings, secrets)
    if files is None:
        return None
    tls = await asyncio.to_thread(ReloadingTls, files, clock=clock, auditor=auditor)
    if not settings.development:
        for warning in tls.loaded.warnings:
            _log.warning("%s", warning)
        if tls.expires_soon:
            _log.warning("a certificate in %s ends on %s", files.certificate, tls.loaded.not_after.isoformat())
    return tls


async def _tls_files(settings: Settings, secrets: SecretSource) -> TlsFiles | None:
    certificate, key = settings.tls_certificate, settings.tls_key
    if certificate is None and key is None:
        if settings.tls_client_ca is not None:
            raise SettingsError(
                "tls_client_ca is set, but not tls_certificate: nobody would be asked for a certificate"
            )
        return None
    if certificate is None or key is None:
        missing = "tls_key" if key is None else "tls_certificate"
        raise SettingsError(f"{missing} is not set; TLS needs both, the certificate chain and its key")
    return TlsFiles(
        certificate=certificate,
        key=key,
        password=await _password(settings.tls_key_password, secrets),
        client_ca=settings.tls_client_ca,
        minimum=settings.tls_minimum,
    )


async def _password(setting: str, secrets: SecretSource) -> Callable[[], bytes] | None:
    """What gives the password of the key; a key that was replaced may have another, so it is asked for each time.

    Not to be called on the event loop, which it waits for: keys are read in threads.
    """
    if not setting:
        return None
    await secrets.get(setting)
    loop = asyncio.get_running_loop()

    def password() -> bytes:
        reading = asyncio.run_coroutine_threadsafe(secrets.renew(setting), loop)
        try:
            return reading.result(_PASSWORD_SECONDS).reveal().encode()
        except TimeoutError:
            reading.cancel()
            raise

    return password
