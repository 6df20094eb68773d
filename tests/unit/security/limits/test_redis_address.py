"""The address of the shared store: what it may say, and that its password is never shown."""

from __future__ import annotations

import pytest

from kiseki.clients.urls import StoreUrlInvalid
from kiseki.security.limits.redis_address import RedisAddress


def test_an_address_is_read() -> None:
    address = RedisAddress("rediss://limits:p%40ss%2Fword@redis.example:6380/3", ca_file="/etc/ca.pem")
    assert (address.tls, address.host, address.port, address.database) == (True, "redis.example", 6380, 3)
    assert (address.user, address.password, address.ca_file) == ("limits", "p@ss/word", "/etc/ca.pem")
    plain = RedisAddress("redis://:secret@[2001:db8::1]")
    assert (plain.tls, plain.host, plain.port, plain.database) == (False, "2001:db8::1", 6379, 0)
    assert (plain.user, plain.password) == (None, "secret")


def test_an_address_shows_no_password_and_no_user() -> None:
    address = RedisAddress("rediss://limits:hunter2@[2001:db8::1]:6380/3")
    assert repr(address) == str(address) == "<RedisAddress rediss://[2001:db8::1]:6380/3>"
    assert "hunter2" not in f"{address!r}{address}"


@pytest.mark.parametrize(
    "url",
    [
        "",
        "hunter2",
        "http://:hunter2@redis.example",
        "unix:///run/hunter2.sock",
        "redis:hunter2",
        "redis://",
        "redis://:hunter2@",
        "redis://:hunter2@/0",
        "redis://:hunter2@redis.example:port",
        "redis://:hunter2@redis.example:99999",
        "redis://:hunter2@[2001:db8::1",
        "redis://:hunter2@redis.example/zero",
        "redis://:hunter2@redis.example/-1",
        "redis://:hunter2@redis.example/1024",
        "redis://:hunter2@redis.example/0/1",
        "redis://:hunter2@redis.example/\u00b2",
        "rediss://:hunter2@redis.example/0?ssl_cert_reqs=none",
        "rediss://:hunter2@redis.example?ssl_check_hostname=false",
        "rediss://:hunter2@redis.example?",
        "redis://:hunter2#@redis.example",
        "redis://:hunter2@redis.example#",
    ],
)
def test_an_address_that_can_not_be_used_is_refused_and_not_shown(url: str) -> None:
    with pytest.raises(StoreUrlInvalid) as refused:
        RedisAddress(url)
    assert "hunter2" not in str(refused.value)
    assert "redis.example" not in str(refused.value)
    assert refused.value.__cause__ is None
    assert refused.value.__suppress_context__ or refused.value.__context__ is None


def test_an_authority_for_a_connection_without_tls_is_refused() -> None:
    with pytest.raises(StoreUrlInvalid, match="rediss"):
        RedisAddress("redis://redis.example", ca_file="/etc/ca.pem")
