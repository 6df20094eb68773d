"""Commands (one transaction each) and queries of user accounts."""

from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker
from ulid import ULID

from benchmarks.baseline.database import StoredEvent, UserAccountRow
from benchmarks.baseline.domain import (
    EVENT_TYPES,
    UserAccountEvent,
    decide_create,
    decide_rename,
    replay,
)


class UserAccountService:
    """The write side and the read side on one database."""

    def __init__(
        self,
        write_sessions: async_sessionmaker[AsyncSession],
        read_sessions: async_sessionmaker[AsyncSession],
    ) -> None:
        self._write_sessions = write_sessions
        self._read_sessions = read_sessions

    async def create(self, first_name: str, last_name: str, email_address: str) -> str:
        event = decide_create(first_name, last_name, email_address)
        account_id = str(ULID())
        now = datetime.now(UTC)
        async with self._write_sessions.begin() as session:
            session.add(_stored(account_id, 1, event, now))
            session.add(
                UserAccountRow(
                    id=account_id,
                    first_name=event.first_name,
                    last_name=event.last_name,
                    email_address=event.email_address,
                    created_at=now,
                    updated_at=now,
                )
            )
        return account_id

    async def rename(self, account_id: str, first_name: str, last_name: str) -> str:
        now = datetime.now(UTC)
        async with self._write_sessions.begin() as session:
            rows = await session.scalars(
                select(StoredEvent).where(StoredEvent.stream_id == account_id).order_by(StoredEvent.seq)
            )
            history = rows.all()
            state = replay(EVENT_TYPES[row.event_type](**row.payload) for row in history)
            event = decide_rename(state, first_name, last_name)
            session.add(_stored(account_id, len(history) + 1, event, now))
            account = await session.get_one(UserAccountRow, account_id)
            account.first_name = event.first_name
            account.last_name = event.last_name
            account.updated_at = now
        return account_id

    async def get(self, account_id: str) -> UserAccountRow | None:
        async with self._read_sessions() as session:
            return await session.get(UserAccountRow, account_id)

    async def list(self, first: int, after: str | None) -> Sequence[UserAccountRow]:
        page = select(UserAccountRow).order_by(UserAccountRow.id).limit(first)
        if after is not None:
            page = page.where(UserAccountRow.id > after)
        async with self._read_sessions() as session:
            return (await session.scalars(page)).all()


def _stored(account_id: str, seq: int, event: UserAccountEvent, occurred_at: datetime) -> StoredEvent:
    return StoredEvent(
        stream_id=account_id,
        seq=seq,
        event_type=type(event).__name__,
        payload=asdict(event),
        occurred_at=occurred_at,
    )
