"""Which stores the settings name: `journal`, `keys` and `read_model`, each a URL. Used by `stores`, and by checks.

sqlite:                                       embedded, in the data directory; the default
sqlite:/var/lib/shop/journal.db               embedded, elsewhere (a file; for read models a directory)
postgresql://user@host:5432/database          extra kiseki[postgres]
dynamodb://prefix?region=eu-west-1            extra kiseki[aws]; tables are named <prefix>-journal and so on
"""

from __future__ import annotations

import enum
from typing import Final, NamedTuple

from kiseki.service.settings import Settings, SettingsError

__all__ = ["StoreKind", "StoreUrl", "StoreUrls", "store_urls"]


class StoreKind(enum.StrEnum):
    """What kind of store a URL names."""

    SQLITE = "sqlite"
    POSTGRESQL = "postgresql"
    DYNAMODB = "dynamodb"


class StoreUrl(NamedTuple):
    """A store's URL. It may hold a password, so it is never shown: `setting` and `kind` say what it is."""

    setting: str
    kind: StoreKind
    text: str

    def __repr__(self) -> str:
        return f"StoreUrl({self.setting}, {self.kind})"

    @property
    def embedded(self) -> bool:
        """Whether the store is a file of this machine."""
        return self.kind is StoreKind.SQLITE


class StoreUrls(NamedTuple):
    """The three stores of a service."""

    journal: StoreUrl
    keys: StoreUrl
    read_model: StoreUrl


_KINDS: Final = {
    "sqlite": StoreKind.SQLITE,
    "postgresql": StoreKind.POSTGRESQL,
    "postgres": StoreKind.POSTGRESQL,
    "dynamodb": StoreKind.DYNAMODB,
}
_FORMS: Final = "sqlite:, postgresql://user@host/database or dynamodb://prefix?region=eu-west-1"
_READ_MODEL_FORMS: Final = "sqlite: or postgresql://user@host/database"


def store_urls(settings: Settings) -> StoreUrls:
    """The stores, those that are not set derived from the journal. Raises SettingsError.

    Keys are where the journal is: with keys of its own a second machine could not read what the first one wrote. Read
    models follow the journal to PostgreSQL; DynamoDB holds none, so with it `read_model` has to be set.
    """
    journal = _parse("journal", settings.journal, _FORMS)
    keys = _parse("keys", settings.keys, _FORMS) if settings.keys else journal._replace(setting="keys")
    if not settings.keys and journal.embedded:
        keys = StoreUrl("keys", StoreKind.SQLITE, "sqlite:")
    if settings.read_model:
        read_model = _parse("read_model", settings.read_model, _READ_MODEL_FORMS)
        if read_model.kind is StoreKind.DYNAMODB:
            raise SettingsError(f"read_model can't be on DynamoDB; set it to {_READ_MODEL_FORMS}")
    elif journal.kind is StoreKind.DYNAMODB:
        raise SettingsError(f"the journal is on DynamoDB, so read_model has to be set: {_READ_MODEL_FORMS}")
    elif journal.embedded:
        read_model = StoreUrl("read_model", StoreKind.SQLITE, "sqlite:")
    else:
        read_model = journal._replace(setting="read_model")
    return StoreUrls(journal, keys, read_model)


def _parse(setting: str, text: str, forms: str) -> StoreUrl:
    scheme, separator, rest = text.partition(":")
    kind = _KINDS.get(scheme.lower()) if separator else None
    if kind is None or (kind is not StoreKind.SQLITE and not rest.startswith("//")):
        raise SettingsError(f"{setting} names no store that is known; set it to {forms}")
    return StoreUrl(setting, kind, text)
