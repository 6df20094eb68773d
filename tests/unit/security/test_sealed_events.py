"""Events sealed with real keys: personal data opens where it belongs, nowhere else, and not after an erasure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from kiseki.kernel.codec import EncodedEvent, EventCodec
from kiseki.kernel.errors import KisekiError
from kiseki.kernel.event import Event
from kiseki.kernel.personal import ERASED, Personal
from kiseki.kernel.ports import SubjectErased
from kiseki.kernel.schema import EventSchema
from kiseki.kernel.telemetry import NoTelemetry
from kiseki.security.key_store import MemoryKeyStore
from kiseki.security.protector import KeyProtector
from tests.unit.security.fakes import FakeClock, protector


class Greeted(Event, name="Greeted", version=1):
    """Somebody was greeted."""

    place: str
    name: Personal[str]
    nickname: Personal[str] | None


class Stored(msgspec.Struct, kw_only=True):
    """A recorded event, as far as decoding needs it."""

    stream: str
    event_id: str
    data: msgspec.Raw
    type: str = "Greeted"
    version: int = 1
    subject: str | None = None


HANAKO, TARO = "Guest-hanako", "Guest-taro"


@pytest.fixture
def keys() -> KeyProtector:
    return protector(MemoryKeyStore(), FakeClock())


@pytest.fixture
def codec(keys: KeyProtector) -> EventCodec:
    return EventCodec(EventSchema([Greeted]), keys, NoTelemetry())


def stored(stream: str, event: EncodedEvent) -> Stored:
    return Stored(stream=stream, event_id=event.event_id, data=event.data)


async def greet(codec: EventCodec, stream: str, event_id: str) -> Stored:
    (event,) = await codec.encode(stream, [Greeted("Kyoto", "Hanako", "Hana")], [event_id])
    return stored(stream, event)


async def test_personal_data_is_sealed_and_opens_again(codec: EventCodec) -> None:
    event = await greet(codec, HANAKO, "1")
    assert b"Kyoto" in bytes(event.data)
    assert b"Hana" not in bytes(event.data)
    assert await codec.decode([event]) == [Greeted("Kyoto", "Hanako", "Hana")]


async def test_an_erased_subjects_data_reads_as_erased(codec: EventCodec, keys: KeyProtector) -> None:
    events = [await greet(codec, HANAKO, "1"), await greet(codec, TARO, "2")]
    await keys.erase(HANAKO)
    assert await codec.decode(events) == [Greeted("Kyoto", ERASED, ERASED), Greeted("Kyoto", "Hanako", "Hana")]
    with pytest.raises(SubjectErased):
        await greet(codec, HANAKO, "3")


def moved(change: Callable[[dict[str, Any], dict[str, Any]], None]) -> Callable[[Stored, Stored], Stored]:
    def move(source: Stored, target: Stored) -> Stored:
        there = msgspec.json.decode(target.data)
        change(msgspec.json.decode(source.data), there)
        return Stored(stream=target.stream, event_id=target.event_id, data=msgspec.Raw(msgspec.json.encode(there)))

    return move


@pytest.mark.parametrize(
    ("source", "target", "move"),
    [
        pytest.param(
            (HANAKO, "1"), (HANAKO, "1"), moved(lambda a, b: b.update(name=a["nickname"])), id="to another field"
        ),
        pytest.param((HANAKO, "1"), (HANAKO, "2"), moved(lambda a, b: b.update(name=a["name"])), id="to another event"),
        pytest.param((TARO, "1"), (HANAKO, "1"), moved(lambda a, b: b.update(name=a["name"])), id="to another subject"),
    ],
)
async def test_moved_ciphertext_does_not_open(
    codec: EventCodec, source: tuple[str, str], target: tuple[str, str], move: Callable[[Stored, Stored], Stored]
) -> None:
    with pytest.raises(KisekiError) as raised:
        await codec.decode([move(await greet(codec, *source), await greet(codec, *target))])
    assert raised.value.code in ("SEAL_BROKEN", "SUBJECT_KEY_MISSING")


async def test_ciphertext_does_not_open_in_another_subjects_stream(codec: EventCodec) -> None:
    event = await greet(codec, HANAKO, "1")
    await greet(codec, TARO, "1")
    with pytest.raises(KisekiError):
        await codec.decode([Stored(stream=TARO, event_id="1", data=event.data)])
    with pytest.raises(KisekiError):
        await codec.decode([Stored(stream=HANAKO, event_id="1", data=event.data, subject=TARO)])
