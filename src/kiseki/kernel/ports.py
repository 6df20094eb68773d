"""The seams that other rooms fill: time, ids, who is asking, what they may do, personal data, telemetry."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import datetime
from typing import Protocol

import msgspec

from kiseki.kernel.errors import KisekiError, Unavailable
from kiseki.kernel.personal import Erased

__all__ = [
    "AccessPolicy",
    "AuditEvent",
    "AuditUnavailable",
    "Auditor",
    "Clock",
    "Credentials",
    "IdSource",
    "Identity",
    "Principal",
    "Protector",
    "SubjectCipher",
    "SubjectErased",
    "SubjectKeyMissing",
    "Telemetry",
    "Unauthenticated",
]


class Clock(Protocol):
    """Where time comes from."""

    def now(self) -> datetime:
        """The current time, UTC, in microseconds."""
        ...

    def monotonic(self) -> float:
        """Seconds that never go back, for durations."""
        ...


class IdSource(Protocol):
    """Where ids come from."""

    def new_id(self) -> str:
        """A new ULID, 26 characters, unique; its order carries no meaning."""
        ...


class Principal(msgspec.Struct, frozen=True, kw_only=True):
    """Who is asking, after the credentials were checked."""

    subject: str
    actor: str
    """The pseudonym that goes into events and logs (a keyed hash of issuer and subject)."""
    roles: frozenset[str]
    user_id: str = ""
    """The id of the account that is its own: what object rules compare with (claim `userId`, else `sub`)."""
    issuer: str = ""
    expires_at: float | None = None
    """When the credentials end, in seconds of the epoch; None when they don't."""


class Credentials(msgspec.Struct, frozen=True, kw_only=True):
    """What a request brought that says who sent it."""

    authorization: tuple[bytes, ...]
    """Every Authorization header, as sent."""
    peer: str | None
    """The address of the TCP peer."""
    address: str | None = None
    """The client's, which is another one behind a proxy that is trusted to say it; for the audit log."""
    host: str | None
    """The Host header."""
    forwarded: bool
    """Whether any forwarding header was present."""
    trace_id: str | None = None


class Unauthenticated(KisekiError):
    """The request does not say who sent it, or not in a way that is believed (RFC 6750).

    `error` is None when there were no credentials at all, else `invalid_token` or `invalid_request`.
    """

    code = "UNAUTHENTICATED"

    def __init__(self, error: str | None) -> None:
        super().__init__("authentication is required" if error is None else "the credentials were not accepted")
        self.error = error


class Identity(Protocol):
    """Says who is asking."""

    async def identify(self, credentials: Credentials) -> Principal:
        """The principal of a request. Raises Unauthenticated."""
        ...


class AccessPolicy(Protocol):
    """Says what a principal may do. What no rule allows is denied."""

    def allows(self, principal: Principal, operation: str) -> bool:
        """Whether the principal's roles allow the command or query of this name, on some object at least."""
        ...

    def allows_on(self, principal: Principal, operation: str, given: object) -> bool:
        """Whether they allow it on the objects that this command, or these arguments of a query, name."""
        ...

    def administration(self, principal: Principal, operation: str, given: object) -> str | None:
        """What it is about, perhaps nothing, when it is allowed because the principal is an administrator; else None.

        Such things are recorded.
        """
        ...


class AuditEvent(msgspec.Struct, frozen=True, kw_only=True):
    """Something that whoever looks into a security incident wants to know. Never holds a secret.

    Time, writer and number are the audit log's to add.
    """

    kind: str
    """What happened, stable, lower case with dots: `authentication.refused`, `access.denied`, `limit.hit` …"""
    outcome: str
    """`done`, `refused` or `failed`."""
    actor: str | None = None
    """The pseudonym of who did it; None when nobody is known."""
    issuer: str | None = None
    subject: str | None = None
    """With the issuer: who the pseudonym stands for. Only the audit log says so."""
    address: str | None = None
    """The client's address."""
    api: str | None = None
    operation: str | None = None
    """The command, query or path."""
    target: str | None = None
    """The stream, setting or key that it was about."""
    code: str | None = None
    """Why, as a stable code."""
    trace_id: str | None = None
    detail: str | None = None
    """One line for people, of text that this program chose."""


class AuditUnavailable(Unavailable):
    """A security event can't be recorded, and the setting is to refuse then what can't be recorded."""

    code = "AUDIT_UNAVAILABLE"


class Auditor(Protocol):
    """Records security events."""

    def note(self, event: AuditEvent) -> None:
        """Records an event soon; repeats may be counted instead of written each. Never waits, never raises."""
        ...

    async def record(self, event: AuditEvent) -> None:
        """Records an event, durable when this returns. Raises AuditUnavailable."""
        ...


class SubjectErased(KisekiError):
    """Personal data was to be written for a subject that was erased."""

    code = "SUBJECT_ERASED"


class SubjectKeyMissing(KisekiError):
    """The key of a subject is neither there nor marked as erased: the key store does not belong to this journal."""

    code = "SUBJECT_KEY_MISSING"


class SubjectCipher(Protocol):
    """Encrypts and decrypts for one subject. Pure computation: the keys are in memory."""

    def seal(self, plaintext: bytes, context: bytes) -> str:
        """The ciphertext as text (`<key id>.<base64url>`), bound to the context."""
        ...

    def open(self, sealed: str, context: bytes) -> bytes:
        """The plaintext. Raises KisekiError when the text was not sealed for this subject and context."""
        ...


class Protector(Protocol):
    """Keeps the keys of subjects. Each subject has its own; destroying it erases the subject's data everywhere."""

    async def ciphers(self, subjects: Collection[str]) -> Mapping[str, SubjectCipher | Erased]:
        """The cipher of each subject, `ERASED` for one whose keys were destroyed; unknown subjects are left out.

        Raises Unavailable when the key store can't be read.
        """
        ...

    async def ensure(self, subjects: Collection[str]) -> Mapping[str, SubjectCipher]:
        """As `ciphers`, with new keys for unknown subjects, durable before this returns.

        Raises SubjectErased when one of them was erased, Unavailable when the key store can't be used.
        """
        ...

    async def destroy(self, subject: str) -> None:
        """As `erase`, for a subject that is in the log of erasures already; again it finishes what a failure left."""
        ...

    async def erase(self, subject: str) -> None:
        """Destroys the subject's keys for ever, durable before this returns; again is fine. Raises Unavailable."""
        ...

    def digest(self, scope: str, value: str) -> str:
        """A keyed hash of a value (hex), the same for the same scope and value: for claims and idempotency keys."""
        ...


class Telemetry(Protocol):
    """What the core loops report about themselves, so that no store and no context can forget to."""

    def command(self, name: str, outcome: str, seconds: float) -> None:
        """A command ended: `outcome` is accepted, unchanged, rejected, or the error's code."""
        ...

    def decided(self, name: str, seconds: float) -> None:
        """One run of `decide`."""
        ...

    def conflict(self, aggregate_type: str) -> None:
        """An append met a stream that had moved."""
        ...

    def appended(self, events: int, seconds: float) -> None:
        """A commit became durable."""
        ...

    def append_failed(self, code: str) -> None:
        """A commit did not become durable."""
        ...

    def group_committed(self, commits: int, seconds: float) -> None:
        """One durable write carried this many commits."""
        ...

    def loaded(self, aggregate_type: str, events: int, *, cached: bool, from_snapshot: bool) -> None:
        """A state was found in the cache or rebuilt by this many events."""
        ...

    def snapshot(self, aggregate_type: str, outcome: str) -> None:
        """A snapshot was saved, or could not be (`saved`, `failed`, `unreadable`)."""
        ...

    def evicted(self, states: int) -> None:
        """States left the cache."""
        ...

    def upcast(self, type_name: str, version: int) -> None:
        """An event of an old version was read."""
        ...

    def projected(self, projection: str, events: int, seconds: float) -> None:
        """A page was applied to a read model."""
        ...

    def parked(self, projection: str, code: str) -> None:
        """A stream was parked."""
        ...

    def projection_retry(self, projection: str, code: str) -> None:
        """Applying failed for a passing reason and will be tried again."""
        ...

    def query(self, name: str, outcome: str, seconds: float) -> None:
        """A query ended: `ok` or the error's code."""
        ...
