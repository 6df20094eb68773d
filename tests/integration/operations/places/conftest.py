"""Places that tests use: a folder, and a bucket of the emulator."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiobotocore.session import get_session

from kiseki.operations.places.folder import FolderPlace
from kiseki.operations.places.port import Place
from kiseki.operations.places.s3 import S3Place
from kiseki.operations.places.s3_address import S3Address
from tests.integration.operations.places.s3_front import S3Front
from tests.servers.emulator import REGION


@pytest.fixture(autouse=True)
def own_scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Temporary files of a test's own, so that it can see that none is left."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    return scratch


@pytest.fixture
def aws_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys in the environment that the emulator takes."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.delenv("AWS_SESSION_TOKEN", raising=False)


@pytest.fixture
async def address(aws_keys: None, aws_endpoint: str) -> S3Address:
    """A new bucket that keeps versions, which is the harder case."""
    bucket = f"backups-{secrets.token_hex(6)}"
    async with get_session().create_client("s3", region_name=REGION, endpoint_url=aws_endpoint) as client:
        await client.create_bucket(Bucket=bucket, CreateBucketConfiguration={"LocationConstraint": REGION})
        await client.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    return S3Address(bucket=bucket, prefix="shop", region=REGION, endpoint=aws_endpoint)


@pytest.fixture
async def s3(address: S3Address) -> AsyncIterator[S3Place]:
    place = S3Place(address, setting="backup")
    yield place
    await place.close()


@pytest.fixture
async def s3_again(address: S3Address) -> AsyncIterator[S3Place]:
    """The same bucket, opened by another process, as far as it can tell."""
    place = S3Place(address, setting="backup")
    yield place
    await place.close()


@pytest.fixture
async def front(aws_endpoint: str) -> AsyncIterator[S3Front]:
    async with S3Front(aws_endpoint) as server:
        yield server


@pytest.fixture(params=["folder", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """Each kind of place."""
    if request.param == "folder":
        return FolderPlace(tmp_path / "backups", setting="backup")
    given: Place = request.getfixturevalue("s3")
    return given


@pytest.fixture
def another(place: Place, request: pytest.FixtureRequest) -> Place:
    """The same place, opened by another process, as far as it can tell."""
    if isinstance(place, FolderPlace):
        return FolderPlace(Path(place.label), setting="backup")
    given: Place = request.getfixturevalue("s3_again")
    return given
