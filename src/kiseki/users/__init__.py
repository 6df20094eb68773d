"""User accounts: the context that kiseki ships, and the application that runs when no other is named.

Written only against `import kiseki`, like any context outside.
"""

from kiseki import Application, Context
from kiseki.users.read_model import queries, user_accounts
from kiseki.users.user_account import (
    CreateUserAccount,
    DeleteUserAccount,
    EraseUserAccount,
    RenameUserAccount,
    user_account,
)

__all__ = ["app", "users"]

users = Context(
    "users",
    deciders=[user_account],
    projections=[user_accounts],
    queries=queries,
    access={
        CreateUserAccount: {"user", "admin"},
        RenameUserAccount: {"user", "admin"},
        DeleteUserAccount: {"user", "admin"},
        EraseUserAccount: {"user", "admin"},
    },
)

app = Application(contexts=[users])
