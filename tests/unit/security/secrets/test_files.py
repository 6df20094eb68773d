"""Secrets in files: only safe ones, of bounded size."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kiseki.security.secrets.reading import SECRET_BYTES, SecretRefused, read_secret_file


def write(path: Path, content: bytes, mode: int = 0o600) -> Path:
    path.write_bytes(content)
    path.chmod(mode)
    return path


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"s3cret", "s3cret"),
        (b"s3cret\n", "s3cret"),
        (b"s3cret\r\n", "s3cret"),
        (b"s3cret\n\n", "s3cret\n"),
        (b" s3cret \n", " s3cret "),
        ("geheim-ß-秘密\n".encode(), "geheim-ß-秘密"),
        (b"x" * SECRET_BYTES, "x" * SECRET_BYTES),
    ],
)
def test_one_newline_at_the_end_is_no_part_of_it(tmp_path: Path, content: bytes, text: str) -> None:
    assert read_secret_file(write(tmp_path / "secret", content)) == text


@pytest.mark.parametrize("mode", [0o600, 0o400, 0o640, 0o440])
def test_a_group_may_read(tmp_path: Path, mode: int) -> None:
    """Kubernetes gives a pod's group the right."""
    assert read_secret_file(write(tmp_path / "secret", b"x", mode)) == "x"


@pytest.mark.parametrize("mode", [0o604, 0o644, 0o602, 0o601, 0o620, 0o660, 0o666, 0o777])
def test_a_file_that_others_may_use_is_refused(tmp_path: Path, mode: int) -> None:
    with pytest.raises(SecretRefused, match="chmod 600"):
        read_secret_file(write(tmp_path / "secret", b"x", mode))


@pytest.mark.parametrize("content", [b"", b"\n", b"\r\n", b"a\0b", b"\xff\xfe", b"x" * (SECRET_BYTES + 1)])
def test_what_can_be_no_secret_is_refused(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(SecretRefused) as refused:
        read_secret_file(write(tmp_path / "secret", content))
    assert "\n" not in str(refused.value)


def test_what_is_no_file_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe", 0o600)
    (tmp_path / "folder").mkdir(0o700)
    for path in (tmp_path / "pipe", tmp_path / "folder", tmp_path / "none", Path("/dev/zero")):
        with pytest.raises(SecretRefused):
            read_secret_file(path)


def test_a_link_counts_as_what_it_points_to(tmp_path: Path) -> None:
    (tmp_path / "good").symlink_to(write(tmp_path / "a", b"x", 0o400))
    (tmp_path / "bad").symlink_to(write(tmp_path / "b", b"x", 0o644))
    assert read_secret_file(tmp_path / "good") == "x"
    with pytest.raises(SecretRefused):
        read_secret_file(tmp_path / "bad")
