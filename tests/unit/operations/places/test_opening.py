"""Which places a setting can name, and what is said of one that is none."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from kiseki.operations.places.folder import FolderPlace
from kiseki.operations.places.opening import open_place
from kiseki.operations.places.s3 import S3Place
from kiseki.operations.places.s3_address import S3Address
from kiseki.service.settings import SettingsError


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("/var/backups/shop", "/var/backups/shop"),
        ("file:/var/backups/shop", "/var/backups/shop"),
        ("file:///var/backups/shop/", "/var/backups/shop"),
        ("backups", str(Path.cwd() / "backups")),
        ("file:backups", str(Path.cwd() / "backups")),
        ("/var/a:b", "/var/a:b"),
    ],
)
def test_folders(text: str, label: str) -> None:
    place = open_place(text, setting="backup")
    assert isinstance(place, FolderPlace)
    assert place.label == label


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("s3://shop-backups/live/eu/?region=eu-west-1", "s3://shop-backups/live/eu"),
        ("s3://shop-backups?region=eu-west-1&endpoint=http://127.0.0.1:9000", "s3://shop-backups"),
        ("s3://shop-backups/?region=eu-west-1&kms=alias/backups", "s3://shop-backups"),
    ],
)
def test_s3(text: str, label: str) -> None:
    place = open_place(text, setting="backup")
    assert isinstance(place, S3Place)
    assert place.label == label


def test_all_of_an_address() -> None:
    key = "arn:aws:kms:eu-west-1:123456789012:key/1234-abcd"
    address = S3Address.parse(f"s3://b-1.x/live?region=eu-west-1&kms={key}&endpoint=https://s3.test:1/")
    assert address == S3Address("b-1.x", "live", "eu-west-1", key, "https://s3.test:1")
    assert (address.key("a/b"), address.name("live/a/b")) == ("live/a/b", "a/b")
    whole = S3Address.parse("s3://bucket?region=eu-west-1")
    assert (whole.key("a/b"), whole.name("a/b"), whole.label) == ("a/b", "a/b", "s3://bucket")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is empty"),
        ("  ", "is empty"),
        ("https://user:hunter2@bucket/x", "has to be a folder, or s3://"),
        ("file://hunter2/var", "of this machine"),
        ("file:", "has a path"),
        ("file:/", "has a path"),
        ("s3:/hunter2", "a bucket of S3 has"),
        ("s3://hunter2:secret@bucket/x?region=eu-west-1", "and no user"),
        ("s3://Bucket/x?region=eu-west-1", "a bucket of S3 has"),
        ("s3://bucket/../x?region=eu-west-1", "the prefix of a place"),
        ("s3://bucket/a//b?region=eu-west-1", "the prefix of a place"),
        ("s3://bucket/.hidden?region=eu-west-1", "the prefix of a place"),
        ("s3://bucket/hunter2", "needs a region"),
        ("s3://bucket/x?region=hunter2", "needs a region"),
        ("s3://bucket/x?region=eu-west-1&region=eu-west-1", "each once"),
        ("s3://bucket/x?region=eu-west-1&secret=hunter2", "each once"),
        ("s3://bucket/x?region=eu-west-1&kms=hunter2%20x", "kms in the URL"),
        ("s3://bucket/x?region=eu-west-1&endpoint=http://hunter2:x@host", "the endpoint of S3"),
        ("s3://bucket/x?region=eu-west-1&endpoint=ftp://host", "the endpoint of S3"),
        ("s3://bucket/x?region=eu-west-1&endpoint=http://host:99999", "the endpoint of S3"),
        ("s3://bucket/x?region=eu-west-1#hunter2", "the URL of a place on S3 is"),
    ],
)
def test_what_is_no_place(text: str, words: str) -> None:
    with pytest.raises(SettingsError, match=words) as raised:
        open_place(text, setting="backup_keys")
    line = str(raised.value)
    assert line.startswith("backup_keys")
    assert "\n" not in line
    assert "hunter2" not in line


def test_the_libraries_of_s3_are_loaded_for_s3_alone() -> None:
    code = (
        "import sys; from kiseki.operations.places.opening import open_place; open_place('/tmp/x', setting='backup');"
        "print([each for each in ('aiohttp', 'aiobotocore', 'botocore') if each in sys.modules])"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.strip() == "[]"


def test_the_extra_is_named_when_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "kiseki.operations.places.s3")
    for name in [name for name in sys.modules if name.startswith("kiseki.operations.places.s3_bucket")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "aiobotocore.config", None)
    with pytest.raises(SettingsError, match=r"backup is on S3, but aiobotocore.* is not installed; pip install"):
        open_place("s3://bucket?region=eu-west-1", setting="backup")
