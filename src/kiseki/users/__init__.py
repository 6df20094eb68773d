"""User accounts: the context that kiseki ships, and the application that runs when no other is named.

Written only against `import kiseki`, like any context outside.
"""

from kiseki import Allow, Application, Context
from kiseki.users.read_model import get_user_accounts_query, queries, user_accounts
from kiseki.users.user_account import (
    CreateUserAccount,
    DeleteUserAccount,
    EraseUserAccount,
    RenameUserAccount,
    user_account,
)

__all__ = ["app", "users"]

OWN_OR_ADMIN = Allow({"admin"}, owner={"user"})
"""A person decides on their own account, an administrator on every one."""

users = Context(
    "users",
    deciders=[user_account],
    projections=[user_accounts],
    queries=queries,
    access={
        CreateUserAccount: {"user", "admin"},
        RenameUserAccount: OWN_OR_ADMIN,
        DeleteUserAccount: OWN_OR_ADMIN,
        EraseUserAccount: OWN_OR_ADMIN,
    },
    admin={"users": get_user_accounts_query},
)

app = Application(contexts=[users])
