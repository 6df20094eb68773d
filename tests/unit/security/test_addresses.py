"""Client addresses: what a client writes into headers is never taken for its address."""

from __future__ import annotations

import ipaddress
import re
from typing import ClassVar

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from kiseki.kernel.errors import DefinitionError
from kiseki.security.addresses import (
    MAX_HOPS,
    UNKNOWN,
    ClientAddresses,
    parse_networks,
    rate_key,
    wide_networks,
)

PROXY = "10.0.0.1"
ADDRESSES = ClientAddresses(parse_networks(["10.0.0.0/8", "2001:db8:ffff::/48"]))
NO_PROXIES = ClientAddresses()


def resolve(*headers: str | bytes, peer: str | None = PROXY) -> str:
    return ADDRESSES.resolve(peer, [line if isinstance(line, bytes) else line.encode() for line in headers])


def test_without_proxies_the_peer_is_the_client_whatever_it_says() -> None:
    assert NO_PROXIES.resolve("203.0.113.9", [b"198.51.100.1"]) == "203.0.113.9"
    assert NO_PROXIES.resolve("127.0.0.1", [b"198.51.100.1"]) == "127.0.0.1"
    assert NO_PROXIES.resolve("2001:DB8:0:0::9", [b"198.51.100.1", b"::1"]) == "2001:db8::9"


def test_a_peer_that_is_no_trusted_proxy_is_the_client_whatever_it_says() -> None:
    assert resolve("198.51.100.1", peer="203.0.113.9") == "203.0.113.9"
    assert resolve("10.0.0.7", peer="11.0.0.1") == "11.0.0.1"
    assert resolve("198.51.100.1", peer="2001:db8:fffe::1") == "2001:db8:fffe::1"


@pytest.mark.parametrize("peer", [None, "", "testclient", "/run/kiseki.sock", "999.1.1.1", "1.2.3.4\n", "१.२.३.४"])
def test_a_peer_without_an_address_is_unknown_and_trusted_with_nothing(peer: str | None) -> None:
    assert resolve("198.51.100.1", peer=peer) == UNKNOWN


def test_a_proxy_says_who_the_client_is() -> None:
    assert resolve("203.0.113.9") == "203.0.113.9"
    assert resolve("203.0.113.9", peer="2001:db8:ffff::1") == "203.0.113.9"
    assert resolve("203.0.113.9", peer="::ffff:10.0.0.1") == "203.0.113.9"
    assert resolve("203.0.113.9", peer="2001:db8:ffff::1%eth0") == "203.0.113.9"
    assert resolve(peer=PROXY) == PROXY


@pytest.mark.parametrize(
    ("headers", "client"),
    [
        (["198.51.100.66, 203.0.113.9"], "203.0.113.9"),  # what the client wrote stands to the left
        (["198.51.100.66,203.0.113.9,10.1.1.1"], "203.0.113.9"),  # two proxies
        (["10.9.9.9, 203.0.113.9"], "203.0.113.9"),  # the client says that a proxy stood before it
        (["127.0.0.1, 203.0.113.9, 10.1.1.1, 10.2.2.2"], "203.0.113.9"),
        (["198.51.100.66", "203.0.113.9"], "203.0.113.9"),  # a proxy that appends a header
        (["198.51.100.66", "1.1.1.1, 203.0.113.9", "10.1.1.1"], "203.0.113.9"),
        (["198.51.100.66", "203.0.113.9", ""], PROXY),
        (["10.3.3.3, 10.2.2.2"], "10.3.3.3"),  # proxies only: the one farthest away
    ],
)
def test_what_stands_left_of_the_first_untrusted_address_is_only_what_a_client_says(
    headers: list[str], client: str
) -> None:
    assert resolve(*headers) == client


@pytest.mark.parametrize(
    "garbage",
    [
        "unknown",
        "_hidden",
        "",
        " ",
        "203.0.113.9 evil",
        "203.0.113.9;evil",
        "203.0.113.9\t10.0.0.1",
        "203.0.113",
        "203.0.113.009",
        "0xcb007109",
        "3405803785",
        "203.0.113.256",
        "203.0.113.9/32",
        "203.0.113.9:",
        "203.0.113.9:http",
        "203.0.113.9:123456",
        "203.0.113.9:-1",
        "203.0.113.9:80:80",
        "[203.0.113.9]",
        "[203.0.113.9]:80",
        "[2001:db8::9",
        "2001:db8::9]",
        "[2001:db8::9]]",
        "[2001:db8::9]x",
        "[[2001:db8::9]]",
        "2001:db8::9%eth0",
        "[2001:db8::9%25eth0]",
        "fe80::1%' OR 1=1--",
        "2001:db8::9::1",
        "1:2:3:4:5:6:7:8:9",
        '"[2001:db8::9]"',
        "for=203.0.113.9",
        "localhost",
        "example.com",
        "../../etc/passwd",
        "<script>alert(1)</script>",
        "203.0.113.9\x00",
        "203.0.113.9\r\nSet-Cookie: a=b",
        "२०३.0.113.9",
        "２０３.0.113.9",
        "\u202e203.0.113.9",
        "\u00b2.1.1.1",
        "-1.1.1.1",
        "+1.1.1.1",
        "1_0.0.0.1",
        ":",
        "::g",
        ".",
        "[]",
        "[]:80",
        "A" * 65,
        "1" * 10_000,
        ":" * 60,
        "0" * 60 + "1.1.1.1",
    ],
)
def test_an_entry_that_is_no_address_ends_the_chain_at_the_last_address_that_was_believed(garbage: str) -> None:
    assert resolve(garbage) == PROXY
    assert resolve(f"198.51.100.66, {garbage}") == PROXY
    assert resolve(f"198.51.100.66, {garbage}, 10.7.7.7") == "10.7.7.7"
    assert resolve(f"198.51.100.66, {garbage}, 203.0.113.9") == "203.0.113.9"


@pytest.mark.parametrize(
    "garbage", [b"\xff\xfe", b"203.0.113.9\xa0", b"\xb9.1.1.1", bytes(range(256)).replace(b",", b"")]
)
def test_bytes_that_are_no_text_are_no_address(garbage: bytes) -> None:
    assert resolve(b"198.51.100.66, " + garbage) == PROXY


@pytest.mark.parametrize(
    ("entry", "client"),
    [
        ("203.0.113.9:80", "203.0.113.9"),
        ("203.0.113.9:65535", "203.0.113.9"),
        ("\t203.0.113.9 ", "203.0.113.9"),
        ("2001:DB8::9", "2001:db8::9"),
        ("2001:0db8:0:0:0:0:0:9", "2001:db8::9"),
        ("[2001:db8::9]", "2001:db8::9"),
        ("[2001:db8::9]:443", "2001:db8::9"),
        ("::ffff:203.0.113.9", "203.0.113.9"),
        ("::FFFF:cb00:7109", "203.0.113.9"),
        ("[::ffff:203.0.113.9]:443", "203.0.113.9"),
        ("::ffff:10.1.1.1", "10.1.1.1"),
    ],
)
def test_an_address_is_read_in_all_its_forms_and_given_in_one(entry: str, client: str) -> None:
    assert resolve(entry) == client


def test_a_mapped_address_of_a_proxy_is_the_proxy() -> None:
    assert resolve("203.0.113.9, ::ffff:10.1.1.1, [::ffff:10.2.2.2]:80") == "203.0.113.9"
    mapped = ClientAddresses(parse_networks(["::ffff:10.0.0.0/104"]))
    assert mapped.resolve("10.0.0.1", [b"203.0.113.9"]) == "203.0.113.9"
    assert mapped.resolve("11.0.0.1", [b"203.0.113.9"]) == "11.0.0.1"


def test_a_long_chain_of_proxies_ends_at_the_last_one_that_was_looked_at() -> None:
    most = [f"10.1.1.{number}" for number in range(1, MAX_HOPS + 1)]
    assert resolve(", ".join(["203.0.113.9", *most[1:]])) == "203.0.113.9"
    assert resolve(", ".join(["203.0.113.9", *most])) == most[0]
    assert resolve(*["203.0.113.9", *most]) == most[0]


def test_the_rest_of_a_huge_header_is_not_looked_at() -> None:
    """Counted in reads, not in seconds: an entry that is read is cut off first."""

    class Watched(bytes):
        cuts: ClassVar[list[int]] = []

        def rsplit(self, *arguments: object) -> list[bytes]:
            found = super().rsplit(*arguments)  # type: ignore[arg-type]
            self.cuts.append(len(found))
            return found

    lines = [Watched(b"1.1.1.1," * 100_000 + b"10.1.1.1") for _ in range(100)]
    assert ADDRESSES.resolve(PROXY, lines) == "1.1.1.1"
    assert Watched.cuts == [MAX_HOPS + 1]
    proxies = [Watched(b"10.1.1.1," * 100_000 + b"10.1.1.1") for _ in range(100)]
    Watched.cuts.clear()
    assert ADDRESSES.resolve(PROXY, proxies) == "10.1.1.1"
    assert sum(Watched.cuts) <= 2 * (MAX_HOPS + 1)


def test_who_is_a_proxy_is_known_for_peers_too() -> None:
    assert ADDRESSES.is_proxy("10.200.0.1")
    assert ADDRESSES.is_proxy("::ffff:10.200.0.1")
    assert not ADDRESSES.is_proxy("203.0.113.9")
    assert not ADDRESSES.is_proxy("nonsense")


_ENTRY = st.one_of(
    st.ip_addresses().map(str),
    st.ip_addresses(v=4).map(lambda one: f"{one}:80"),
    st.ip_addresses(v=6).map(lambda one: f"[{one}]:80"),
    st.text(max_size=30),
    st.sampled_from(["", "10.0.0.2", "unknown", "[", "]", "::", "%"]),
)


@given(written=st.lists(st.lists(_ENTRY, max_size=20).map(",".join), max_size=4), client=st.ip_addresses())
@example(written=["198.51.100.66"], client=ipaddress.ip_address("203.0.113.9"))
def test_a_client_can_write_what_it_likes_and_is_still_who_the_proxy_saw(
    written: list[str], client: ipaddress.IPv4Address | ipaddress.IPv6Address
) -> None:
    seen = getattr(client, "ipv4_mapped", None) or client
    lines = [line.encode("utf-8", "surrogatepass") for line in written]
    appended = [*lines[:-1], lines[-1] + b", " + str(client).encode()] if lines else [str(client).encode()]
    separate = [*lines, str(client).encode()]
    if not ADDRESSES.is_proxy(str(seen)):
        assert ADDRESSES.resolve(PROXY, appended) == str(seen)
        assert ADDRESSES.resolve(PROXY, separate) == str(seen)


@given(
    peer=st.none() | st.text(max_size=20) | st.ip_addresses().map(str),
    written=st.lists(st.binary(max_size=60), max_size=5),
)
def test_what_comes_out_is_always_a_canonical_address_or_unknown(peer: str | None, written: list[bytes]) -> None:
    found = ADDRESSES.resolve(peer, written)
    assert found == UNKNOWN or str(ipaddress.ip_address(found)) == found
    assert re.fullmatch(r"[0-9a-f:.]+|unknown", found)
    assert rate_key(found) != UNKNOWN or found == UNKNOWN


def test_nobody_can_be_made_to_trust_everyone() -> None:
    for everyone in ("0.0.0.0/0", "::/0", "::ffff:0:0/96"):
        with pytest.raises(DefinitionError, match="trusting every address"):
            ClientAddresses(parse_networks([everyone]))


@pytest.mark.parametrize(
    "name", ["", "10.0.0.0/33", "10.0.0.1/8", "proxy.example", "10.0.0.0/255.0.0.255", "10.0.0.0-9"]
)
def test_a_network_that_is_none_is_named(name: str) -> None:
    with pytest.raises(DefinitionError, match=re.escape(repr(name))):
        parse_networks(["10.0.0.0/8", name])


def test_networks_wider_than_anybodys_proxies_are_found() -> None:
    networks = parse_networks(["10.0.0.0/8", " 192.0.2.1 ", "0.0.0.0/1", "128.0.0.0/7", "2000::/3", "2001:db8::/32"])
    assert [str(one) for one in wide_networks(networks)] == ["0.0.0.0/1", "128.0.0.0/7", "2000::/3"]
    assert [str(one) for one in wide_networks(parse_networks(["::ffff:0:0/97", "::ffff:10.0.0.0/104"]))] == [
        "0.0.0.0/1"
    ]


def test_ipv4_is_limited_by_address_ipv6_by_its_64_bits() -> None:
    assert rate_key("203.0.113.9") == "203.0.113.9"
    assert rate_key("::ffff:203.0.113.9") == "203.0.113.9"
    assert rate_key("2001:db8:1:2::1") == rate_key("2001:db8:1:2:ffff:ffff:ffff:ffff") == "2001:db8:1:2::/64"
    assert rate_key("2001:db8:1:3::1") != rate_key("2001:db8:1:2::1")
    assert rate_key("203.0.113.10") != rate_key("203.0.113.9")


@pytest.mark.parametrize("address", [UNKNOWN, "", "nonsense", "1.2.3", "2001:db8::1%eth0", "1" * 1_000])
def test_all_clients_without_an_address_share_one_limit(address: str) -> None:
    assert rate_key(address) == UNKNOWN
