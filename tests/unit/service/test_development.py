"""Unit: who the development user is, and who is not."""

from __future__ import annotations

import pytest

from kiseki.kernel.ports import Credentials, Unauthenticated
from kiseki.service.development import DevelopmentIdentity

IDENTITY = DevelopmentIdentity(actor="pseudonym", roles=frozenset({"user", "admin"}))


def credentials(
    *authorization: bytes, peer: str | None = "127.0.0.1", host: str | None = "localhost:18080", forwarded: bool = False
) -> Credentials:
    return Credentials(authorization=authorization, peer=peer, host=host, forwarded=forwarded)


async def error_of(given: Credentials) -> str | None:
    with pytest.raises(Unauthenticated) as refused:
        await IDENTITY.identify(given)
    return refused.value.error


@pytest.mark.parametrize("peer", ["127.0.0.1", "127.8.8.8", "::1", "::ffff:127.0.0.1"])
@pytest.mark.parametrize("host", ["localhost", "LocalHost:1", "127.0.0.1:18080", "[::1]", "[::1]:18080"])
async def test_a_request_from_this_machine_is_the_development_user(peer: str, host: str) -> None:
    principal = await IDENTITY.identify(credentials(peer=peer, host=host))
    assert (principal.subject, principal.actor, principal.roles) == (
        "development",
        "pseudonym",
        frozenset({"user", "admin"}),
    )


@pytest.mark.parametrize("peer", [None, "", "10.0.0.1", "192.168.1.2", "::ffff:10.0.0.1", "2001:db8::1", "0.0.0.0"])
async def test_other_machines_are_refused(peer: str | None) -> None:
    assert await error_of(credentials(peer=peer)) is None


@pytest.mark.parametrize(
    "host",
    [
        None,
        "",
        "example.com",
        "localhost.example.com",
        "127.0.0.1.example.com",
        "evil@localhost",
        "localhost:80:80",
        "localhost:",
        "127.0.0.2",
        "[::2]",
        "::1",
        "localhost\n",
    ],
)
async def test_other_names_for_this_machine_are_refused(host: str | None) -> None:
    # A page whose name was rebound to 127.0.0.1 comes from loopback, but says its own name.
    assert await error_of(credentials(host=host)) is None


async def test_what_a_proxy_forwarded_is_refused() -> None:
    assert await error_of(credentials(forwarded=True)) is None


@pytest.mark.parametrize("value", [b"Bearer abc", b"bearer abc.def-_~+/==", b"Basic dXNlcjpwYXNz", b"X  y"])
async def test_credentials_that_can_not_be_checked_are_an_invalid_token(value: bytes) -> None:
    assert await error_of(credentials(value)) == "invalid_token"


@pytest.mark.parametrize(
    "value",
    [b"", b"Bearer", b"Bearer ", b"Bearer a b", b"Bearer \xff", b"Bearer a,b", b"abc", b"Bearer =", b" Bearer a"],
)
async def test_a_malformed_header_is_an_invalid_request(value: bytes) -> None:
    assert await error_of(credentials(value)) == "invalid_request"


async def test_a_doubled_header_is_an_invalid_request() -> None:
    assert await error_of(credentials(b"Bearer abc", b"Bearer abc")) == "invalid_request"
