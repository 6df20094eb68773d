"""`kiseki token issue`, `inspect` and `revoke`: tokens for people at a terminal.

The functions get the parts they work with; who calls them opens and closes those. A token is a password for an hour:
it goes to standard output alone, and is best read from standard input.
"""

from __future__ import annotations

import json as json_codec
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Final

from kiseki.kernel.errors import KisekiError, Unavailable
from kiseki.security.identity.compact import MAX_TOKEN_BYTES, parse
from kiseki.security.identity.issuing import TokenIssuer
from kiseki.security.identity.refusals import TokenRefused
from kiseki.security.identity.revocations import RevocationList
from kiseki.security.identity.verifier import TokenVerifier

__all__ = ["TokenMissing", "inspect", "issue", "revoke"]

_DATES: Final = ("iat", "nbf", "exp")


class TokenMissing(KisekiError):
    """There is no token to look at."""

    code = "TOKEN_MISSING"


async def issue(
    issuer: TokenIssuer,
    subject: str,
    *,
    roles: Sequence[str],
    lifetime: int,
    user_id: str | None,
    actor: str | None,
    production: bool,
) -> None:
    """Prints a new token, alone on standard output. Raises IssuingRefused, AuditUnavailable."""
    issued = await issuer.issue(
        subject, roles=roles, lifetime=lifetime, user_id=user_id, actor=actor, production=production
    )
    print(f"kiseki: token {issued.id}, good until {_date(issued.expires_at)}", file=sys.stderr)
    print(issued.token)


async def inspect(argument: str | None, *, verifier: TokenVerifier, json: bool) -> int:
    """Prints what a token says and whether it would be accepted now; 0 when it would, else 1.

    The token is read from standard input when there is no argument or it is `-`. The signature is not shown.
    Raises TokenMissing.
    """
    token = _given(argument)
    shown: dict[str, Any] = {"header": None, "claims": None}
    accepted, why = True, "every check passed"
    code: str | None = None
    try:
        parsed = parse(token)
        shown = {"header": parsed.header, "claims": parsed.claims}
        await verifier.verify(token)
    except (TokenRefused, Unavailable) as problem:
        accepted, why = False, str(problem)
        code = str(problem.cause) if isinstance(problem, TokenRefused) else problem.code
    if json:
        print(json_codec.dumps({**shown, "accepted": accepted, "code": code, "why": why}))
    else:
        for name, members in shown.items():
            _print_members(name, members)
        print(f"accepted: {'yes' if accepted else 'no'}, {why}")
    return 0 if accepted else 1


async def revoke(revocations: RevocationList, issuer: str, subject: str, *, actor: str | None) -> None:
    """Revokes a subject's tokens. Raises RevocationRefused, RevocationsUnavailable, AuditUnavailable."""
    await revocations.revoke(issuer, subject, actor=actor)
    print(
        "the subject's tokens that were issued until now are revoked; processes hear of it within seconds, and accept "
        "new ones after `token_leeway`"
    )


def _given(argument: str | None) -> bytes:
    if argument is not None and argument != "-":
        print("kiseki: other users of this machine can see arguments; standard input is safer", file=sys.stderr)
        token = argument.encode("utf-8", "replace")
    else:
        token = sys.stdin.buffer.read(MAX_TOKEN_BYTES + 8)
    token = token.strip()
    if token[:7].lower() == b"bearer ":
        token = token[7:].lstrip()
    if not token:
        raise TokenMissing("there is no token; give it on standard input: kiseki token inspect < file")
    return token


def _print_members(name: str, members: dict[str, Any] | None) -> None:
    if members is None:
        return
    print(f"{name}:")
    for member, value in members.items():
        # As JSON of ASCII alone: whoever made the token does not write to this terminal.
        when = f"  ({_date(value)})" if name == "claims" and member in _DATES and _is_time(value) else ""
        print(f"  {json_codec.dumps(member)}: {json_codec.dumps(value)}{when}")


def _is_time(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 253_402_300_800


def _date(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S} UTC"
