"""What is stored and what is on the wire changes only on purpose: compared with the committed files in `schema/`.

After a change that is meant, `python -m tests.unit.users.test_storage_format` writes the files anew; read the
difference.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kiseki.graphql.schema import command_schema, query_schema, sdl
from kiseki.users import app

SCHEMA = Path(__file__).parents[3] / "schema"


def current() -> dict[str, str]:
    return {
        "command-api.graphql": sdl(command_schema(app)),
        "query-api.graphql": sdl(query_schema(app)),
        "events.json": json.dumps(app.schema.describe(), indent=2, ensure_ascii=False) + "\n",
    }


@pytest.mark.parametrize("name", sorted(current()))
def test_nothing_changed_by_accident(name: str) -> None:
    assert current()[name] == (SCHEMA / name).read_text(encoding="utf-8")


if __name__ == "__main__":
    for file, text in current().items():
        (SCHEMA / file).write_text(text, encoding="utf-8")
