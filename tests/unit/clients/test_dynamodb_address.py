"""The URLs of DynamoDB tables."""

from __future__ import annotations

import pytest

from kiseki.clients.dynamodb import DynamoDbAddress, StoreUrlInvalid


def test_prefix_and_region_are_enough() -> None:
    address = DynamoDbAddress.parse("dynamodb://My_app.v1?region=eu-west-1")
    assert address == DynamoDbAddress(prefix="My_app.v1", region="eu-west-1", endpoint=None)
    assert address.table("journal") == "My_app.v1-journal"
    assert address.service_url == "https://dynamodb.eu-west-1.amazonaws.com"
    assert address.streams_url == "https://streams.dynamodb.eu-west-1.amazonaws.com"
    assert not address.is_loopback


def test_china_has_a_domain_of_its_own() -> None:
    address = DynamoDbAddress.parse("dynamodb://k?region=cn-north-1")
    assert address.service_url == "https://dynamodb.cn-north-1.amazonaws.com.cn"
    assert address.streams_url == "https://streams.dynamodb.cn-north-1.amazonaws.com.cn"


@pytest.mark.parametrize(
    ("endpoint", "kept", "is_loopback"),
    [
        ("http://127.0.0.1:8000", "http://127.0.0.1:8000", True),
        ("http://localhost:8000/", "http://localhost:8000", True),
        ("http://[::1]:8000", "http://[::1]:8000", True),
        ("http://127.0.0.1.example.com", "http://127.0.0.1.example.com", False),
        ("https://vpce-1.dynamodb.eu-west-1.vpce.amazonaws.com", None, False),
        ("http%3A%2F%2F127.0.0.1%3A8000", "http://127.0.0.1:8000", True),
        ("http://10.0.0.1:8000", None, False),
    ],
)
def test_an_endpoint_takes_the_place_of_both(endpoint: str, kept: str | None, is_loopback: bool) -> None:
    address = DynamoDbAddress.parse(f"dynamodb://k?region=eu-west-1&endpoint={endpoint}")
    assert address.service_url == address.streams_url == address.endpoint == (kept or endpoint)
    assert address.is_loopback is is_loopback


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://k?region=eu-west-1",
        "dynamodb:k?region=eu-west-1",
        "dynamodb://?region=eu-west-1",
        "dynamodb://k",
        "dynamodb://k?region=",
        "dynamodb://k?region=Ireland",
        "dynamodb://k?region=eu-west-1&region=eu-west-2",
        "dynamodb://k?region=eu-west-1&profile=prod",
        "dynamodb://k?region=eu-west-1&endpoint=",
        "dynamodb://k?region=eu-west-1&endpoint=ftp://127.0.0.1",
        "dynamodb://k?region=eu-west-1&endpoint=http://",
        "dynamodb://k?region=eu-west-1&endpoint=http://127.0.0.1:x",
        "dynamodb://k?region=eu-west-1&endpoint=http://127.0.0.1/path",
        "dynamodb://k?region=eu-west-1&endpoint=http://key:verysecret@127.0.0.1",
        "dynamodb://key:verysecret@k?region=eu-west-1",
        "dynamodb://k/verysecret?region=eu-west-1",
        "dynamodb://k?region=eu-west-1#verysecret",
        "dynamodb://verysecret space?region=eu-west-1",
        f"dynamodb://{'k' * 101}?region=eu-west-1",
        "dynamodb://[verysecret?region=eu-west-1",
        "dynamodb://k?region=eu-west-1&endpoint=http://[verysecret",
    ],
)
def test_what_can_not_be_meant_is_refused_without_showing_it(url: str) -> None:
    with pytest.raises(StoreUrlInvalid) as caught:
        DynamoDbAddress.parse(url)
    assert caught.value.code == "STORE_URL"
    assert "verysecret" not in str(caught.value)
    assert "\n" not in str(caught.value)
