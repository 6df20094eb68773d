"""`SecretSource`: the secrets that settings refer to, remembered, and read again after they were rotated.

Used by the composition root, which has one for a process and hands it to whoever needs a secret.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from functools import partial
from typing import Final

from kiseki.kernel.errors import KisekiError, Unavailable
from kiseki.kernel.ports import AuditEvent, Auditor, Clock
from kiseki.security.secrets.reading import SECRET_BYTES, FileSecrets, SecretReader, SecretRefused, SecretUnavailable
from kiseki.security.secrets.reference import SecretReference
from kiseki.security.secrets.secret import Secret

__all__ = ["SecretSource"]

_AGAIN: Final = 10.0
"""Seconds after a reading failed until the next, when the interval is longer."""
_RENEW_AGAIN: Final = 1.0
"""Seconds between two readings that `renew` causes: refused passwords must not become a flood of questions."""
_log = logging.getLogger(__name__)


class _Known:
    def __init__(self, secret: Secret, due: float, read_at: float) -> None:
        self.secret = secret
        self.due = due
        self.tried_at = read_at


class SecretSource:
    """Secrets by reference. Belongs to one event loop.

    A secret is remembered and read again `refresh` seconds later. While the place where it is does not answer, or
    refuses, what is known stays in use: a running service does not depend on it. The first reading fails instead.
    """

    def __init__(
        self,
        *,
        clock: Clock,
        readers: Mapping[str, SecretReader] | None = None,
        refresh: float = 300.0,
        patience: float = 6.0,
        on_secret: Callable[[str], None] | None = None,
    ) -> None:
        """`readers` by kind (`aws-sm`, `vault`), closed with this; files are always read. `refresh` and `patience`, the
        longest that one reading may take, in seconds. `on_secret` hears of every text that becomes known, also of plain
        ones, so that it can be masked."""
        self._clock = clock
        self._readers: dict[str, SecretReader] = {"file": FileSecrets(), **(readers or {})}
        self._refresh = refresh
        self._patience = patience
        self._on_secret = on_secret
        self._auditor: Auditor | None = None
        self._known: dict[SecretReference, _Known] = {}
        self._readings: dict[SecretReference, asyncio.Task[Secret]] = {}
        self._listeners: dict[SecretReference, list[Callable[[Secret], None]]] = {}

    def audit_to(self, auditor: Auditor) -> None:
        """From now on rotations are recorded there: the auditor may need a secret itself, and so comes later."""
        self._auditor = auditor

    async def get(self, setting: str) -> Secret:
        """The secret of a setting's value: a reference, or the secret itself.

        Raises SecretReferenceInvalid, SecretRefused, SecretUnavailable.
        """
        reference = SecretReference.parse(setting)
        if reference.kind == "plain":
            self._tell(reference.name)
            return Secret(reference.name)
        known = self._known.get(reference)
        if known is None:
            return await self._read(reference)
        if self._clock.monotonic() < known.due:
            return known.secret
        return await self._read_or_keep(reference, known)

    async def renew(self, setting: str) -> Secret:
        """As `get`, after the secret was refused where it was used: read again now, at most once a second."""
        reference = SecretReference.parse(setting)
        if reference.kind == "plain":
            return await self.get(setting)
        known = self._known.get(reference)
        if known is None:
            return await self._read(reference)
        if reference not in self._readings and self._clock.monotonic() < known.tried_at + _RENEW_AGAIN:
            return known.secret
        return await self._read_or_keep(reference, known)

    def on_change(self, setting: str, callback: Callable[[Secret], None]) -> None:
        """Calls back with the new secret whenever a reading finds another. What a callback raises is logged."""
        self._listeners.setdefault(SecretReference.parse(setting), []).append(callback)

    async def watch(self) -> None:
        """Reads what is due, for ever: a task of the process, so that rotations are heard of without anybody asking."""
        while True:
            await self.refresh_due()
            now = self._clock.monotonic()
            await asyncio.sleep(max(min([known.due for known in self._known.values()], default=now + 1.0) - now, 0.1))

    async def refresh_due(self) -> None:
        """Reads once what is due."""
        now = self._clock.monotonic()
        due = [(reference, known) for reference, known in self._known.items() if known.due <= now]
        await asyncio.gather(*(self._read_or_keep(reference, known) for reference, known in due))

    async def close(self) -> None:
        """Lets go of readers; again is fine."""
        readings = list(self._readings.values())
        for task in readings:
            task.cancel()
        if readings:
            await asyncio.wait(readings)
        for reader in self._readers.values():
            await reader.close()

    async def _read_or_keep(self, reference: SecretReference, known: _Known) -> Secret:
        try:
            return await self._read(reference)
        except (SecretUnavailable, SecretRefused):
            return known.secret  # logged by whoever read

    async def _read(self, reference: SecretReference) -> Secret:
        """One reading for all who wait; none of those who give up takes it along."""
        task = self._readings.get(reference)
        if task is None:
            task = asyncio.create_task(self._read_now(reference), name="secret")
            self._readings[reference] = task
            task.add_done_callback(partial(self._landed, reference))
        return await asyncio.shield(task)

    def _landed(self, reference: SecretReference, task: asyncio.Task[Secret]) -> None:
        self._readings.pop(reference, None)
        if not task.cancelled():
            task.exception()  # seen, also when every caller was cancelled

    async def _read_now(self, reference: SecretReference) -> Secret:
        known = self._known.get(reference)
        now = self._clock.monotonic()
        try:
            text = await self._ask(reference)
        except (SecretUnavailable, SecretRefused) as problem:
            if known is not None:
                known.tried_at = now
                known.due = now + min(self._refresh, _AGAIN)
                _log.warning("what is known of a secret stays in use: %s", problem)
                if isinstance(problem, SecretRefused):
                    self._audit(reference, "failed", problem.code)
            raise
        secret = Secret(text)
        self._tell(text)
        self._known[reference] = _Known(secret, now + self._refresh, now)
        if known is not None and known.secret != secret:
            _log.info("a secret was rotated: %s", reference.label)
            self._audit(reference, "done", None)
            self._changed(reference, secret)
        return secret

    async def _ask(self, reference: SecretReference) -> str:
        reader = self._readers.get(reference.kind)
        if reader is None:
            needs = "vault_address and a way to log in" if reference.kind == "vault" else "pip install 'kiseki[aws]'"
            raise SecretRefused(f"{reference.label} can't be read: it needs {needs}")
        try:
            async with asyncio.timeout(self._patience):
                text = await reader.read(reference)
        except TimeoutError as problem:
            raise SecretUnavailable(
                f"{reference.label} can't be read now: no answer in {self._patience:g} s"
            ) from problem
        except (SecretUnavailable, SecretRefused):
            raise
        except Unavailable as problem:
            raise SecretUnavailable(f"{reference.label} can't be read now: {problem}") from problem
        except KisekiError as problem:
            raise SecretRefused(f"{reference.label} can't be read: {problem}") from problem
        if len(text) > SECRET_BYTES:
            raise SecretRefused(f"{reference.label} has more than {SECRET_BYTES:,} characters")
        return text

    def _tell(self, text: str) -> None:
        if self._on_secret is not None and text:
            self._on_secret(text)

    def _changed(self, reference: SecretReference, secret: Secret) -> None:
        for callback in self._listeners.get(reference, ()):
            try:
                callback(secret)
            except Exception as problem:  # noqa: BLE001 - others have to hear too; its text may hold the secret
                _log.error("a listener failed on a rotated secret (%s)", type(problem).__name__)

    def _audit(self, reference: SecretReference, outcome: str, code: str | None) -> None:
        if self._auditor is not None:
            self._auditor.note(AuditEvent(kind="secret.rotated", outcome=outcome, target=reference.label, code=code))
