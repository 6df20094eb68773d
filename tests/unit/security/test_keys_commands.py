"""`kiseki keys`: what a person is told of master keys, and what is recorded of a rotation."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import pytest

from kiseki.cli.keys import OpenKeys, rotate, status
from kiseki.kernel.errors import KisekiError
from kiseki.kernel.ports import AuditEvent, AuditUnavailable
from kiseki.security.key_store import KeyStore, MemoryKeyStore, Rewrapped, WrappedKey, wrap_context
from kiseki.security.master_key import LocalMasterKey
from kiseki.security.master_keys import MasterKeys
from tests.unit.security.fakes import MASTER

OLD, NEW = LocalMasterKey(MASTER), LocalMasterKey(bytes(range(32, 64)))


class Recorder:
    def __init__(self) -> None:
        self.events: list[AuditEvent] = []
        self.broken = False

    def note(self, event: AuditEvent) -> None:
        self.events.append(event)

    async def record(self, event: AuditEvent) -> None:
        if self.broken:
            raise AuditUnavailable("the audit log is full")
        self.events.append(event)


class Slipping(MemoryKeyStore):
    """Another process, which has only the old master key yet, makes a key while the rotation runs."""

    async def replace(self, changes: Sequence[Rewrapped]) -> int:
        done = await super().replace(changes)
        await fill(self, OLD, ["A-late"])
        return done


async def fill(store: KeyStore, wrapper: LocalMasterKey, subjects: list[str]) -> None:
    for subject in subjects:
        wrapped = await wrapper.wrap(b"k" * 32, wrap_context(subject, "k"))
        await store.insert({subject: WrappedKey("k", wrapped)})


def opened(
    store: KeyStore, *previous: LocalMasterKey, recorder: Recorder
) -> Callable[[], AbstractAsyncContextManager[OpenKeys]]:
    @asynccontextmanager
    async def manager() -> AsyncIterator[OpenKeys]:
        yield OpenKeys(store, MasterKeys(NEW, previous=previous), recorder)

    return manager


async def filled(store: MemoryKeyStore) -> None:
    await fill(store, OLD, ["A-1", "A-2", "A-3"])
    await fill(store, NEW, ["A-4"])


def prepare(store: MemoryKeyStore) -> MemoryKeyStore:
    import asyncio

    asyncio.run(filled(store))
    return store


def test_status_then_rotate_then_status(capsys: pytest.CaptureFixture[str]) -> None:
    store, recorder = prepare(MemoryKeyStore()), Recorder()
    keys = opened(store, OLD, recorder=recorder)
    assert status(opened=keys, json=False) == 0
    shown = capsys.readouterr().out
    assert OLD.key_id in shown
    assert "read with" in shown
    assert recorder.events == []
    assert rotate(opened=keys, json=False) == 0
    assert "3 keys were wrapped anew" in capsys.readouterr().out
    assert [(each.kind, each.outcome, each.target) for each in recorder.events] == [
        ("key.master_changed", "done", NEW.key_id)
    ] * 2
    assert status(opened=keys, json=True) == 0
    assert json.loads(capsys.readouterr().out) == {"current": NEW.key_id, "keys": {NEW.key_id: 4}, "missing": []}
    assert rotate(opened=keys, json=True) == 0
    assert json.loads(capsys.readouterr().out) == {"current": NEW.key_id, "rewrapped": 0, "left": {}}


def test_a_master_key_that_is_missing_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    store = prepare(MemoryKeyStore())
    assert status(opened=opened(store, recorder=Recorder()), json=False) == 1
    assert "MISSING" in capsys.readouterr().out


def test_the_old_one_is_still_needed_while_others_use_it(capsys: pytest.CaptureFixture[str]) -> None:
    store = Slipping()
    prepare(store)
    assert rotate(opened=opened(store, OLD, recorder=Recorder()), json=False) == 1
    out = capsys.readouterr().out
    assert "still needed" in out
    assert OLD.key_id in out


def test_a_rotation_that_fails_is_recorded_and_one_that_can_not_be_recorded_does_not_begin() -> None:
    store, recorder = prepare(MemoryKeyStore()), Recorder()
    with pytest.raises(KisekiError):
        rotate(opened=opened(store, recorder=recorder), json=False)
    assert [each.outcome for each in recorder.events] == ["done", "failed"]
    recorder.broken = True
    with pytest.raises(AuditUnavailable):
        rotate(opened=opened(store, OLD, recorder=recorder), json=False)
    assert status(opened=opened(store, OLD, recorder=recorder), json=False) == 0
