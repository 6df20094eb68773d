"""Codecs between typed values and what journals hold: events with sealed personal fields, and whole states.

A sealed field is stored as `{"$sealed": "<key id>.<base64url>"}`, so what is personal can be seen, and erased, without
knowing the event's class. The ciphertext is bound to subject, event and field: it can't be moved elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, Final, Protocol

import msgspec

from kiseki.kernel.decider import Decider
from kiseki.kernel.errors import KisekiError
from kiseki.kernel.event import Event
from kiseki.kernel.personal import Erased
from kiseki.kernel.ports import Protector, SubjectCipher, SubjectErased, SubjectKeyMissing, Telemetry
from kiseki.kernel.schema import EventSchema, EventShape, fingerprint
from kiseki.kernel.shapes import ERASED_MARK, Unreadable, Unstorable, shape_of
from kiseki.kernel.streams import STREAM

__all__ = ["SEALED_MARK", "EncodedEvent", "EventCodec", "Recorded", "StateCodec", "subject_of"]

SEALED_MARK: Final = "$sealed"
_SEALED_BYTES: Final = b'{"$sealed":'
_decode: Final = msgspec.json.decode
_encode: Final = msgspec.json.encode


class EncodedEvent(msgspec.Struct, frozen=True, omit_defaults=True, rename={"event_id": "id"}):
    """An event as it goes into a commit: `data` is JSON with personal fields sealed."""

    event_id: str
    type: str
    version: int
    data: msgspec.Raw
    subject: str | None = None
    """Whose personal data it holds, when that is not the stream itself."""


class Recorded(Protocol):
    """What decoding needs to know of a recorded event."""

    @property
    def stream(self) -> str: ...
    @property
    def event_id(self) -> str: ...
    @property
    def type(self) -> str: ...
    @property
    def version(self) -> int: ...
    @property
    def subject(self) -> str | None: ...
    @property
    def data(self) -> msgspec.Raw: ...


def subject_of(recorded: Recorded) -> str:
    """The subject of a recorded event's personal data."""
    return recorded.subject or recorded.stream


class EventCodec:
    """Encodes and decodes events, sealing and opening personal fields through the Protector."""

    def __init__(self, schema: EventSchema, protector: Protector, telemetry: Telemetry) -> None:
        self.schema = schema
        self._protector = protector
        self._telemetry = telemetry

    async def encode(self, stream: str, events: Sequence[Event], event_ids: Sequence[str]) -> list[EncodedEvent]:
        """The events as they go into a commit of this stream.

        New subjects get keys, durable before this returns. Raises Unstorable, SubjectErased, Unavailable.
        """
        shapes = [self.schema.shape_of(type(event)) for event in events]
        dumped = [_dump(shape, event) for shape, event in zip(shapes, events, strict=True)]
        subjects = [_subject(shape, data, stream) for shape, data in zip(shapes, dumped, strict=True)]
        sealing = {subject for shape, subject in zip(shapes, subjects, strict=True) if shape.personal_fields}
        ciphers = await self._protector.ensure(sealing) if sealing else {}
        encoded = []
        for shape, data, subject, event_id in zip(shapes, dumped, subjects, event_ids, strict=True):
            if shape.personal_fields:
                _seal(shape, data, ciphers[subject], subject, event_id)
            encoded.append(
                EncodedEvent(
                    event_id,
                    shape.type.name,
                    shape.type.version,
                    msgspec.Raw(_encode(data)),
                    None if subject == stream else subject,
                )
            )
        return encoded

    async def decode(self, recorded: Sequence[Recorded]) -> list[Event]:
        """The typed events of recorded ones, in their order.

        Raises UnknownEvent, Unreadable, SubjectKeyMissing, Unavailable.
        """
        subjects = self.subjects(recorded)
        ciphers = await self._protector.ciphers(subjects) if subjects else None
        return [self._decode_one(event, ciphers) for event in recorded]

    def _decode_one(self, recorded: Recorded, ciphers: Mapping[str, SubjectCipher | Erased] | None) -> Event:
        shape = self.schema.find(recorded.type, recorded.version)
        try:
            data = _decode(recorded.data)
        except msgspec.DecodeError as problem:
            raise Unreadable(f"event {recorded.event_id} is not JSON") from problem
        if ciphers is not None:  # an empty one means that there is something sealed, and no key for any of it
            _open(recorded, data, ciphers)
        if recorded.version < shape.type.version:
            self._telemetry.upcast(recorded.type, recorded.version)
        return self.schema.load(shape, recorded.version, data)

    def subjects(self, events: Iterable[Recorded]) -> set[str]:
        """The subjects whose personal data these events hold."""
        return {subject_of(event) for event in events if _SEALED_BYTES in bytes(event.data)}

    def subjects_of_encoded(self, stream: str, events: Iterable[EncodedEvent]) -> frozenset[str]:
        """The subjects whose personal data these events of a stream hold."""
        return frozenset(event.subject or stream for event in events if _SEALED_BYTES in bytes(event.data))


def _dump(shape: EventShape, event: Event) -> dict[str, Any]:
    try:
        data: dict[str, Any] = shape.record.dump(event)
    except Unstorable as problem:
        raise Unstorable(f"{shape.type.name}: {problem}") from problem
    except (AttributeError, TypeError, KeyError, ValueError) as problem:
        raise Unstorable(f"{shape.type.name}: a field holds a value of another type than declared") from problem
    return data


def _subject(shape: EventShape, data: Mapping[str, Any], stream: str) -> str:
    if shape.subject_field is None:
        return stream
    subject: str = data[shape.subject_field]
    if not STREAM.fullmatch(subject):
        raise Unstorable(f"{shape.type.name}.{shape.subject_field}: a subject is a full stream name")
    return subject


def _context(subject: str, event_id: str, field: str) -> bytes:
    return f"event|{subject}|{event_id}|{field}".encode()


def _seal(shape: EventShape, data: dict[str, Any], cipher: SubjectCipher, subject: str, event_id: str) -> None:
    for name in shape.personal_fields:
        value = data[name]
        if value is None or (isinstance(value, dict) and ERASED_MARK in value):
            continue
        data[name] = {SEALED_MARK: cipher.seal(_encode(value), _context(subject, event_id, name))}


def _open(recorded: Recorded, data: dict[str, Any], ciphers: Mapping[str, SubjectCipher | Erased]) -> None:
    subject = subject_of(recorded)
    for name, value in data.items():
        if not (isinstance(value, dict) and SEALED_MARK in value):
            continue
        cipher = ciphers.get(subject)
        if cipher is None:
            raise SubjectKeyMissing(
                f"no key for the personal data of {subject}; the key store does not belong to this journal"
            )
        if isinstance(cipher, Erased):
            data[name] = {ERASED_MARK: True}
        else:
            data[name] = _decode(cipher.open(value[SEALED_MARK], _context(subject, recorded.event_id, name)))


class StateCodec:
    """Encodes the states of one decider for snapshots, encrypted when the stream holds personal data.

    A state may hold personal data of several subjects. It is split into one share per subject (the state is the XOR of
    all shares), each sealed for its subject: when any one of them is erased, the snapshot can't be read any more.
    """

    MAX_SUBJECTS: Final = 16

    def __init__(
        self, decider: Decider[Any, Any, Any], protector: Protector, random_bytes: Callable[[int], bytes]
    ) -> None:
        self._shape = shape_of(decider.state_type, f"decider {decider.aggregate_type}")
        self._protector = protector
        self._random_bytes = random_bytes
        self.schema = f"{decider.state_version}-{fingerprint(self._shape.describe())}"
        """Names what the snapshot can be read by; another schema is another snapshot."""

    async def encode(self, stream: str, sequence_number: int, state: Any, subjects: Collection[str]) -> bytes | None:
        """The state as stored, or None when it holds data of too many subjects to be worth it.

        Raises Unstorable, SubjectKeyMissing, Unavailable; SubjectErased when a subject is erased by now.
        """
        if len(subjects) > self.MAX_SUBJECTS:
            return None
        plain = _encode(self._shape.dump(state))
        if not subjects:
            return _encode({"state": msgspec.Raw(plain)})
        order = sorted(subjects)
        ciphers = await self._protector.ciphers(order)
        shares = self._split(plain, len(order))
        sealed = {}
        for subject, share in zip(order, shares, strict=True):
            cipher = ciphers.get(subject)
            if cipher is None:
                raise SubjectKeyMissing(f"no key for the personal data of {subject}")
            if isinstance(cipher, Erased):
                raise SubjectErased(f"{subject} was erased")
            sealed[subject] = cipher.seal(share, self._context(stream, sequence_number))
        return _encode({"shares": sealed})

    async def decode(self, stream: str, sequence_number: int, data: bytes) -> tuple[Any, frozenset[str]] | None:
        """The state and its subjects, or None when a subject was erased.

        Raises Unreadable, SubjectKeyMissing, Unavailable.
        """
        try:
            stored = _decode(data)
            shares: dict[str, str] = stored.get("shares", {})
            if not shares:
                return self._shape.load(stored["state"]), frozenset()
            ciphers = await self._protector.ciphers(shares)
            plain = 0
            length = 0
            for subject, sealed in shares.items():
                cipher = ciphers.get(subject)
                if cipher is None:
                    raise SubjectKeyMissing(f"no key for the personal data of {subject}")
                if isinstance(cipher, Erased):
                    return None
                share = cipher.open(sealed, self._context(stream, sequence_number))
                length = len(share)
                plain ^= int.from_bytes(share)
            return self._shape.load(_decode(plain.to_bytes(length))), frozenset(shares)
        except KisekiError:
            raise
        except Exception as problem:  # a snapshot is derivable; whatever is wrong with it means: replay instead
            raise Unreadable(f"the snapshot of {stream} can't be read ({type(problem).__name__})") from problem

    def _split(self, plain: bytes, count: int) -> list[bytes]:
        shares = [self._random_bytes(len(plain)) for _ in range(count - 1)]
        last = int.from_bytes(plain)
        for share in shares:
            last ^= int.from_bytes(share)
        return [*shares, last.to_bytes(len(plain))]

    def _context(self, stream: str, sequence_number: int) -> bytes:
        return f"snapshot|{stream}|{sequence_number}|{self.schema}".encode()
