"""Transport, as the settings say it: TLS, names, origins, how many connections. Used by `kiseki.service.process`."""

from __future__ import annotations

import asyncio
from typing import NamedTuple

from kiseki.kernel.ports import Auditor, Clock
from kiseki.security.addresses import ClientAddresses
from kiseki.security.secrets.source import SecretSource
from kiseki.security.tls import ReloadingTls, TlsFiles
from kiseki.service.admission import Admission
from kiseki.service.cors import Cors
from kiseki.service.hosts import ANY_HOST, Hosts
from kiseki.service.settings import Settings, SettingsError

__all__ = ["Transport", "open_transport"]


class Transport(NamedTuple):
    """What the doors of a process have in common."""

    tls: ReloadingTls | None
    hosts: Hosts
    cors: Cors | None
    hsts: bool
    """Whether HSTS is sent without TLS, because a proxy in front has it."""
    settings: Settings
    addresses: ClientAddresses

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


async def _tls(settings: Settings, secrets: SecretSource, clock: Clock, auditor: Auditor) -> ReloadingTls | None:
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
    password = None
    if settings.tls_key_password:
        password = (await secrets.get(settings.tls_key_password)).reveal().encode()
    files = TlsFiles(
        certificate=certificate,
        key=key,
        password=password,
        client_ca=settings.tls_client_ca,
        minimum=settings.tls_minimum,
    )
    return await asyncio.to_thread(ReloadingTls, files, clock=clock, auditor=auditor)
