"""Unit: what a Host header may say, and which hosts are answered for."""

from __future__ import annotations

import pytest

from kiseki.service.hosts import ANY_HOST, HostName, Hosts, InvalidHostName, read_host


@pytest.mark.parametrize(
    ("value", "host"),
    [
        (b"localhost", HostName("localhost", None)),
        (b"LocalHost:18080", HostName("localhost", 18080)),
        (b"api.example.com", HostName("api.example.com", None)),
        (b"api.example.com.", HostName("api.example.com", None)),
        (b"xn--r8jz45g.jp:443", HostName("xn--r8jz45g.jp", 443)),
        (b"command_api:80", HostName("command_api", 80)),
        (b"127.0.0.1", HostName("127.0.0.1", None)),
        (b"10.1.2.3:65535", HostName("10.1.2.3", 65535)),
        (b"[::1]", HostName("::1", None)),
        (b"[2001:DB8:0:0::1]:8443", HostName("2001:db8::1", 8443)),
        (b"[::ffff:10.0.0.1]", HostName("::ffff:a00:1", None)),
        (b"1a.example", HostName("1a.example", None)),
    ],
)
def test_hosts_are_read(value: bytes, host: HostName) -> None:
    assert read_host(value) == host


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b" ",
        b".",
        b":80",
        b"a:",
        b"a:0",
        b"a:65536",
        b"a:000080",
        b"a:80:80",
        b"a:8x",
        b"a:+80",
        b"a: 80",
        b"a b",
        b"a\tb",
        b"a,b",
        b"a, b",
        b"user@a",
        b"user:password@a:80",
        b"a/b",
        b"a\\b",
        b"a?b",
        b"a#b",
        b"http://a",
        b"a..b",
        b"a..",
        b"-a",
        b"a-",
        b"a.-b",
        b"*",
        b"*.example.com",
        b"%61",
        b"a%2eb",
        b"a;b",
        b"a'b",
        b'a"b',
        b"<a>",
        b"a\x00b",
        b"a\r\nX: y",
        b"a\n",
        b"\xe5\xa4\xaa\xe9\x83\x8e.jp",
        b"\xff",
        b"::1",
        b"[::1",
        b"::1]",
        b"[]",
        b"[::1]x",
        b"[::1]:",
        b"[::1%eth0]",
        b"[::1%25eth0]",
        b"[v1.a]",
        b"[:::]",
        b"[1:2:3:4:5:6:7:8:9]",
        b"[127.0.0.1]",
        b"127.1",
        b"127.0.0.01",
        b"127.0.0.256",
        b"1.2.3.4.5",
        b"2130706433",
        b"0x7f000001",
        b"0x7f.1",
        b"127.0.0.0x1",
        b"a" * 64,
        b".".join([b"a" * 50] * 6),
        b"a" * 100_000,
        b"a." * 50_000,
    ],
)
def test_what_is_no_host_is_not_read(value: bytes) -> None:
    assert read_host(value) is None


def _allows(hosts: Hosts, value: bytes) -> bool:
    host = read_host(value)
    assert host is not None
    return hosts.allow(host)


def test_an_entry_without_a_port_allows_every_port_and_one_with_a_port_only_that() -> None:
    hosts = Hosts(["API.example.com", "admin.example.com:8443", "[::1]", "127.0.0.1"])
    assert hosts.listed
    for good in (b"api.example.com", b"Api.Example.Com.:9", b"admin.example.com:8443", b"[0:0::1]:5", b"127.0.0.1:1"):
        assert _allows(hosts, good)
    for bad in (
        b"example.com",
        b"x.api.example.com",
        b"api.example.com.evil.org",
        b"xapi.example.com",
        b"admin.example.com",
        b"admin.example.com:443",
        b"[::2]",
        b"127.0.0.2",
    ):
        assert not _allows(hosts, bad)


def test_without_a_list_every_name_is_allowed_and_with_an_empty_one_none() -> None:
    assert not ANY_HOST.listed
    assert _allows(ANY_HOST, b"anything.example")
    assert not _allows(Hosts([]), b"anything.example")


@pytest.mark.parametrize("name", ["", "*", "*.example.com", "http://a", "a/b", "太郎.jp", "a b", "a:0"])
def test_a_list_with_something_else_is_refused(name: str) -> None:
    with pytest.raises(InvalidHostName, match="`hosts` has"):
        Hosts(["good.example", name])
