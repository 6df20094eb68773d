"""Unit: which stores the settings name."""

from __future__ import annotations

import pytest

from kiseki.service.settings import Settings, SettingsError
from kiseki.service.store_urls import StoreKind, store_urls

PG = "postgresql://kiseki:hidden@db/shop"
DYNAMO = "dynamodb://shop?region=eu-west-1"


@pytest.mark.parametrize(
    ("given", "kinds"),
    [
        ({}, "sqlite sqlite sqlite"),
        ({"journal": PG}, "postgresql postgresql postgresql"),
        ({"journal": PG, "read_model": "sqlite:"}, "postgresql postgresql sqlite"),
        ({"journal": PG, "keys": DYNAMO}, "postgresql dynamodb postgresql"),
        ({"read_model": PG}, "sqlite sqlite postgresql"),
        ({"journal": DYNAMO, "read_model": PG}, "dynamodb dynamodb postgresql"),
        ({"journal": DYNAMO, "read_model": "sqlite:", "keys": "sqlite:/srv/keys.db"}, "dynamodb sqlite sqlite"),
        ({"journal": "POSTGRES://db/shop"}, "postgresql postgresql postgresql"),
    ],
)
def test_what_is_not_set_follows_the_journal(given: dict[str, str], kinds: str) -> None:
    urls = store_urls(Settings(**given))  # type: ignore[arg-type]
    assert " ".join(url.kind for url in urls) == kinds
    assert [url.setting for url in urls] == ["journal", "keys", "read_model"]


def test_embedded_keys_stay_in_the_data_directory_when_the_journal_is_elsewhere() -> None:
    urls = store_urls(Settings(journal="sqlite:/srv/journal.db"))
    assert [url.text for url in urls] == ["sqlite:/srv/journal.db", "sqlite:", "sqlite:"]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"journal": "mysql://kiseki:hidden@db/shop"}, "journal names no store that is known; set it to sqlite:, "),
        ({"journal": "hidden"}, "journal names no store"),
        ({"journal": "postgresql:hidden"}, "journal names no store"),
        ({"journal": DYNAMO}, "read_model has to be set"),
        ({"read_model": DYNAMO}, "read_model can't be on DynamoDB"),
        ({"keys": "redis://hidden"}, "keys names no store"),
    ],
)
def test_what_can_not_be_is_named_without_its_value(given: dict[str, str], said: str) -> None:
    with pytest.raises(SettingsError, match=said) as refused:
        store_urls(Settings(**given))  # type: ignore[arg-type]
    assert "hidden" not in str(refused.value)


def test_a_url_is_never_shown() -> None:
    settings = Settings(journal=PG, read_model=PG, keys=PG)
    urls = store_urls(settings)
    assert "hidden" not in repr(settings)
    assert "hidden" not in repr(urls)
    assert urls.journal.kind is StoreKind.POSTGRESQL
