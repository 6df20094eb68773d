"""The GraphQL schema, by Strawberry."""

from datetime import datetime

import strawberry
from strawberry.extensions import ParserCache, ValidationCache
from strawberry.fastapi import BaseContext
from strawberry.types import Info

from benchmarks.baseline.database import UserAccountRow
from benchmarks.baseline.service import UserAccountService

MAX_PAGE = 1000


class Context(BaseContext):
    """What resolvers get for one request."""

    def __init__(self, subject: str, service: UserAccountService) -> None:
        super().__init__()
        self.subject = subject
        self.service = service


@strawberry.input
class CreateUserAccountInput:
    first_name: str
    last_name: str
    email_address: str


@strawberry.input
class RenameUserAccountInput:
    user_account_id: str
    first_name: str
    last_name: str


@strawberry.type
class UserAccountId:
    id: str


@strawberry.type
class UserAccount:
    id: str
    first_name: str
    last_name: str
    full_name: str
    created_at: datetime
    updated_at: datetime

    @classmethod
    def from_row(cls, row: UserAccountRow) -> "UserAccount":
        return cls(
            id=row.id,
            first_name=row.first_name,
            last_name=row.last_name,
            full_name=f"{row.first_name} {row.last_name}",
            created_at=row.created_at,
            updated_at=row.updated_at,
        )


@strawberry.type
class Mutation:
    @strawberry.mutation
    async def create_user_account(self, info: Info[Context, None], input: CreateUserAccountInput) -> UserAccountId:
        account_id = await info.context.service.create(input.first_name, input.last_name, input.email_address)
        return UserAccountId(id=account_id)

    @strawberry.mutation
    async def rename_user_account(self, info: Info[Context, None], input: RenameUserAccountInput) -> UserAccountId:
        account_id = await info.context.service.rename(input.user_account_id, input.first_name, input.last_name)
        return UserAccountId(id=account_id)


@strawberry.type
class Query:
    @strawberry.field
    async def get_user_account(self, info: Info[Context, None], user_account_id: str) -> UserAccount | None:
        row = await info.context.service.get(user_account_id)
        return None if row is None else UserAccount.from_row(row)

    @strawberry.field
    async def get_user_accounts(
        self, info: Info[Context, None], first: int = 100, after: str | None = None
    ) -> list[UserAccount]:
        rows = await info.context.service.list(max(0, min(first, MAX_PAGE)), after)
        return [UserAccount.from_row(row) for row in rows]


def create_schema(*, caches: bool) -> strawberry.Schema:
    """The schema, with or without Strawberry's parser and validation caches."""
    return strawberry.Schema(
        query=Query,
        mutation=Mutation,
        extensions=[ParserCache, ValidationCache] if caches else [],
    )
