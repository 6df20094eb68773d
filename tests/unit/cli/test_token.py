"""Unit: `kiseki token issue`, `inspect` and `revoke`."""

from __future__ import annotations

import io
import json
import sys
from types import SimpleNamespace

import pytest

from kiseki.cli.token import TokenMissing, inspect, issue, revoke
from kiseki.security.identity.issuing import IssuingRefused, TokenIssuer
from kiseki.security.identity.revocations import MemoryRevocations, RevocationList
from tests.unit.security.identity.token_parts import HS256, ISSUER, RULES, Setup, b64, bearer, signed

Capture = pytest.CaptureFixture[str]


def given(monkeypatch: pytest.MonkeyPatch, text: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(text)))


async def test_a_new_token_stands_alone_on_standard_output(capsys: Capture) -> None:
    setup = Setup()
    issuer = TokenIssuer(HS256, rules=RULES, clock=setup.clock, auditor=setup.audited, production=False)
    await issue(issuer, "u-1", roles=["admin"], lifetime=60, user_id="01J", actor="me", production=False)
    shown = capsys.readouterr()
    principal = await setup.identity.identify(bearer(shown.out.strip().encode()))
    assert (principal.user_id, principal.roles) == ("01J", frozenset({"admin"}))
    assert "good until 2026-01-01 00:01:00 UTC" in shown.err
    assert shown.out.strip() not in shown.err


async def test_in_production_it_has_to_be_meant(capsys: Capture) -> None:
    setup = Setup()
    issuer = TokenIssuer(HS256, rules=RULES, clock=setup.clock, auditor=setup.audited, production=True)
    with pytest.raises(IssuingRefused):
        await issue(issuer, "u-1", roles=[], lifetime=60, user_id=None, actor=None, production=False)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("around", [b"%b", b"%b\n", b"  %b\r\n", b"Bearer %b\n", b"bearer  %b"])
async def test_a_token_from_standard_input(around: bytes, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    setup = Setup()
    token = setup.token(sub="u-7")
    given(monkeypatch, around % token)
    assert await inspect(None, verifier=setup.verifier, json=False) == 0
    shown = capsys.readouterr()
    assert '"sub": "u-7"' in shown.out
    assert '"exp": 1767226200  (2026-01-01 00:10:00 UTC)' in shown.out
    assert "accepted: yes" in shown.out
    assert token.rpartition(b".")[2].decode() not in shown.out + shown.err
    assert "arguments" not in shown.err


async def test_an_argument_is_warned_of(capsys: Capture) -> None:
    setup = Setup()
    assert await inspect(setup.token().decode(), verifier=setup.verifier, json=False) == 0
    assert "standard input is safer" in capsys.readouterr().err


async def test_why_a_token_is_not_accepted(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    setup = Setup()
    token = setup.token()
    setup.clock.advance(611)
    given(monkeypatch, token)
    assert await inspect("-", verifier=setup.verifier, json=True) == 1
    shown = json.loads(capsys.readouterr().out)
    assert (shown["accepted"], shown["code"], shown["claims"]["sub"]) == (False, "EXPIRED", "u-1")
    given(monkeypatch, token[:-3])
    assert await inspect(None, verifier=setup.verifier, json=False) == 1
    assert "accepted: no, BAD_SIGNATURE" in capsys.readouterr().out


@pytest.mark.parametrize("token", [b"rubbish", b"a.b.c", b"\xff\xfe", b"x" * 100_000, b"a.b.c.d.e"])
async def test_what_is_no_token(token: bytes, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    given(monkeypatch, token)
    assert await inspect(None, verifier=Setup().verifier, json=True) == 1
    assert json.loads(capsys.readouterr().out)["header"] is None


@pytest.mark.parametrize("token", [b"", b" \n", b"Bearer \n"])
async def test_no_token(token: bytes, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    given(monkeypatch, token)
    try:
        assert await inspect(None, verifier=Setup().verifier, json=False) == 1
    except TokenMissing as problem:
        assert "standard input" in str(problem)  # noqa: PT017
    assert "accepted: yes" not in capsys.readouterr().out


async def test_a_token_does_not_write_to_the_terminal(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    setup = Setup()
    claims = setup.claims(sub="\x1b]0;owned\x07\x9b31m\u202e", more={"\x1b[2J": "\x7f"})
    given(monkeypatch, signed(HS256, {"alg": "HS256", "x": "\x1b[31m"}, claims))
    await inspect(None, verifier=setup.verifier, json=False)
    assert all(character == "\n" or " " <= character <= "~" for character in capsys.readouterr().out)


async def test_times_that_are_none(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    setup = Setup()
    for value in (1e300, -1, True, "x", None):
        text = json.dumps({"exp": value}).encode()
        given(monkeypatch, b64(b'{"alg":"HS256"}') + b"." + b64(text) + b".AAAA")
        assert await inspect(None, verifier=setup.verifier, json=False) == 1
    assert "BAD_SIGNATURE" in capsys.readouterr().out


async def test_revoking(capsys: Capture) -> None:
    setup = Setup()
    store = MemoryRevocations()
    revocations = RevocationList(store, clock=setup.clock, auditor=setup.audited, max_lifetime=3600, leeway=10)
    await revoke(revocations, ISSUER, "u-1", actor="me")
    assert list(await store.load(0)) == [(ISSUER, "u-1")]
    assert setup.audited.kinds() == ["token.revoked"]
    assert "revoked" in capsys.readouterr().out
