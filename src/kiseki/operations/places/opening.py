"""`open_place`: the place that a setting names, a folder or S3. Used by all that makes, reads or removes backups."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

from kiseki.clients.urls import StoreUrlInvalid
from kiseki.operations.places.folder import FolderPlace
from kiseki.operations.places.port import Place
from kiseki.operations.places.s3_address import S3Address
from kiseki.service.settings import SettingsError

__all__ = ["open_place"]

_FORMS = "a folder, or s3://bucket/prefix?region=eu-west-1"


def open_place(text: str, *, setting: str) -> Place:
    """A folder (`/var/backups/shop`, `file:/var/backups/shop`) or S3 (`s3://bucket/prefix?region=eu-west-1`, with
    `&kms=<key>` and `&endpoint=<http URL>` if need be). Nothing is touched before its first use.

    `setting` is where the text is from. Raises SettingsError, which never shows the text: it may hold a password.
    """
    scheme = text.partition(":")[0].lower() if ":" in text else ""
    if scheme == "s3":
        return _on_s3(text, setting)
    if scheme == "file":
        return FolderPlace(_path(text, setting), setting=setting)
    if "://" in text:
        raise SettingsError(f"{setting} has to be {_FORMS}")
    if not text.strip() or "\0" in text:
        raise SettingsError(f"{setting} is empty; set it to {_FORMS}")
    return FolderPlace(Path(text), setting=setting)


def _on_s3(text: str, setting: str) -> Place:
    try:
        address = S3Address.parse(text)
    except StoreUrlInvalid as problem:
        raise SettingsError(f"{setting}: {problem}") from problem
    try:
        from kiseki.operations.places.s3 import S3Place
    except ModuleNotFoundError as problem:
        if (problem.name or "").startswith("kiseki"):
            raise
        raise SettingsError(
            f"{setting} is on S3, but {problem.name} is not installed; pip install 'kiseki[aws]'"
        ) from problem
    return S3Place(address, setting=setting)


def _path(text: str, setting: str) -> Path:
    path = text[len("file:") :]
    if path.startswith("//"):
        path = path[2:]
        if not path.startswith("/"):  # what stands there is another machine
            raise SettingsError(f"{setting}: a file: URL is of this machine, as file:/var/backups")
    if not path.strip("/") or urlsplit(path).query or "\0" in path:
        raise SettingsError(f"{setting}: a file: URL has a path, as file:/var/backups")
    return Path(path)
