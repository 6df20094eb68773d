"""A secret shows itself to nobody who does not ask for it."""

from __future__ import annotations

import copy
import json
import logging
import pickle
import traceback
from dataclasses import dataclass

import msgspec
import pytest

from kiseki.security.secrets.secret import Secret

TEXT = "correct-horse-battery"


@dataclass
class Holder:
    secret: Secret


@pytest.mark.parametrize(
    "shown",
    [
        repr(Secret(TEXT)),
        str(Secret(TEXT)),
        f"{Secret(TEXT)}",
        f"{Secret(TEXT)!r:>40}",
        f"{Secret(TEXT):>40}",
        "{0}".format(Secret(TEXT)),  # noqa: UP030, UP032
        "%s %r" % (Secret(TEXT), Secret(TEXT)),  # noqa: UP031
        repr([Secret(TEXT)]),
        repr({"a": Secret(TEXT)}),
        repr(Holder(Secret(TEXT))),
        repr(copy.deepcopy(Secret(TEXT))),
    ],
)
def test_no_way_of_showing_shows_it(shown: str) -> None:
    assert TEXT not in shown
    assert TEXT[:5] not in shown
    assert len(shown.strip()) < 60, "its length is nobody's business either"


def test_only_asking_gives_it() -> None:
    assert Secret(TEXT).reveal() == TEXT


@pytest.mark.parametrize("write", [pickle.dumps, json.dumps, msgspec.json.encode, msgspec.msgpack.encode])
def test_it_is_written_nowhere(write: object) -> None:
    assert callable(write)
    with pytest.raises(TypeError) as refused:
        write(Secret(TEXT))
    assert TEXT not in str(refused.value)


def test_a_log_and_a_traceback_do_not_have_it(caplog: pytest.LogCaptureFixture) -> None:
    secret = Secret(TEXT)
    try:
        raise RuntimeError(secret)
    except RuntimeError:
        logging.getLogger("t").exception("failed with %s", secret)
        assert TEXT not in traceback.format_exc()
    assert TEXT not in caplog.text


def test_secrets_are_compared_as_wholes_and_with_secrets_only(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[bytes, bytes]] = []

    def watched(one: bytes, other: bytes) -> bool:
        asked.append((one, other))
        return one == other

    monkeypatch.setattr("kiseki.security.secrets.secret.hmac.compare_digest", watched)
    assert Secret("a") == Secret("a")
    assert Secret("a") != Secret("b")
    assert asked == [(b"a", b"a"), (b"a", b"b")], "in constant time"
    assert Secret("a") != "a"
    assert Secret("\ud800") == Secret("\ud800")


def test_it_does_not_change_and_is_no_key() -> None:
    secret = Secret(TEXT)
    with pytest.raises(AttributeError):
        secret._text = "other"
    with pytest.raises(AttributeError):
        secret.more = 1
    with pytest.raises(AttributeError):
        del secret._text
    with pytest.raises(TypeError):
        hash(secret)
    assert not hasattr(secret, "__dict__")
    assert bool(secret)
    assert not Secret("")
