"""Every pair of a journal and a read model that the README names, on real servers, as settings and as environment."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Final, NamedTuple

import pytest

from kiseki.service.settings import Settings
from tests.servers.emulator import REGION

__all__ = ["PAIRS", "Pair", "make_pair"]

PAIRS: Final = (
    "sqlite+sqlite",
    "sqlite+postgresql",
    "postgresql+postgresql",
    "postgresql+sqlite",
    "dynamodb+postgresql",
    "dynamodb+sqlite",
)
# Any do for an emulator; they lead nowhere.
_CREDENTIALS: Final = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_SESSION_TOKEN": "test"}


class Pair(NamedTuple):
    """Where journal (and keys) and read model are."""

    name: str
    journal: str
    read_model: str

    @property
    def environment(self) -> Mapping[str, str]:
        """For a process of kiseki."""
        return {"KISEKI_JOURNAL": self.journal, "KISEKI_READ_MODEL": self.read_model, **_CREDENTIALS}

    def settings(self, data_dir: Path) -> Settings:
        """For opening the same stores in the test itself."""
        return Settings(data_dir=data_dir, journal=self.journal, read_model=self.read_model)


def make_pair(name: str, request: pytest.FixtureRequest) -> Pair:
    """Empty stores of a pair, such as `postgresql+sqlite`."""
    journal, read_model = name.split("+")
    url = None
    if "postgresql" in (journal, read_model):
        url = str(request.getfixturevalue("postgres_url"))
    if journal == "dynamodb":
        endpoint = request.getfixturevalue("aws_endpoint")
        patch = request.getfixturevalue("monkeypatch")
        for variable, value in _CREDENTIALS.items():
            patch.setenv(variable, value)
        place = f"dynamodb://test-{secrets.token_hex(6)}?region={REGION}&endpoint={endpoint}"
    else:
        place = url if journal == "postgresql" and url else "sqlite:"
    return Pair(name, place, url if read_model == "postgresql" and url else "sqlite:")
