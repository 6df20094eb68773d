"""What an operator reads when S3 does not do its work. Answers that the emulator does not give are made by the front,
after AWS's documentation: not seen on AWS."""

from __future__ import annotations

import re
from datetime import timedelta
from pathlib import Path

import msgspec
import pytest
from aiohttp import web

from kiseki.operations.errors import ClockWrong, NoRoom, OperationFailed, PlaceUnavailable
from kiseki.operations.places.s3 import S3Place
from kiseki.operations.places.s3_address import S3Address
from tests.integration.operations.places.s3_front import S3Front, Seen, refusal
from tests.servers.processes import free_port


async def told(address: S3Address, error: type[Exception] = PlaceUnavailable) -> str:
    """What a first use says, after the name of the place."""
    place = S3Place(address, setting="backup")
    try:
        with pytest.raises(error) as raised:
            await place.write("a", b"x")
    finally:
        await place.close()
    line = str(raised.value)
    assert "\n" not in line
    return line.removeprefix(f"{address.label}: ")


async def test_the_wrong_region(address: S3Address) -> None:
    wrong = msgspec.structs.replace(address, region="us-east-1")
    assert await told(wrong) == "the bucket is in eu-west-1, not in us-east-1; correct region=eu-west-1 in backup"


async def test_a_bucket_that_is_not_there(address: S3Address) -> None:
    missing = msgspec.structs.replace(address, bucket="no-such-bucket-here")
    assert await told(missing) == "there is no bucket no-such-bucket-here; make it, or correct backup"


async def test_nothing_answers(address: S3Address) -> None:
    port = free_port()
    silent = msgspec.structs.replace(address, endpoint=f"http://127.0.0.1:{port}")
    assert await told(silent) == (
        f"http://127.0.0.1:{port} does not answer (EndpointConnectionError); look at network and proxy, "
        "then begin again"
    )


async def test_no_credentials(address: S3Address, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    assert await told(address) == (
        "no credentials for AWS: Unable to locate credentials; set AWS_PROFILE, or give the machine a role"
    )
    monkeypatch.setenv("AWS_PROFILE", "operator")
    assert "(operator) could not be found; set AWS_PROFILE" in await told(address)


_DENIED = "User: arn:aws:iam::123456789012:user/ann is not authorized to perform: kms:GenerateDataKey on resource: x"


@pytest.mark.parametrize(
    ("status", "code", "message", "error", "line"),
    [
        (403, "AccessDenied", "Access Denied", PlaceUnavailable, "access denied; give this account s3:PutObject on it"),
        (403, "AccessDenied", _DENIED, PlaceUnavailable, "access denied; give this account kms:GenerateDataKey on it"),
        (
            400,
            "ExpiredToken",
            "",
            PlaceUnavailable,
            "the credentials for AWS have ended; sign in again, .*",
        ),
        (
            403,
            "InvalidAccessKeyId",
            "",
            PlaceUnavailable,
            "AWS does not know these credentials .*",
        ),
        (
            400,
            "KMS.DisabledException",
            "",
            PlaceUnavailable,
            "the key of KMS can't be used .*Disabled.*",
        ),
        (
            507,
            "XMinioStorageFull",
            "",
            NoRoom,
            r"no room for more .*; free some, or set backup to .*",
        ),
        (
            501,
            "NotImplemented",
            "",
            PlaceUnavailable,
            "this S3 can't do put_object, .*; set backup to .*",
        ),
        (503, "SlowDown", "", PlaceUnavailable, r"S3 is not able to answer now \(SlowDown\); begin again later"),
        (
            400,
            "Odd",
            "secret words",
            OperationFailed,
            r"S3 refused put_object \(Odd\); look at the bucket .*",
        ),
    ],
)
async def test_refusals(
    address: S3Address, front: S3Front, status: int, code: str, message: str, error: type[Exception], line: str
) -> None:
    async def refuse(seen: Seen) -> web.StreamResponse | None:
        return refusal(status, code, Message=message) if seen.method == "PUT" else None

    front.rule = refuse
    said = await told(msgspec.structs.replace(address, endpoint=front.endpoint), error)
    assert re.fullmatch(line, said)
    assert "ann" not in said.split()
    assert "secret" not in said


@pytest.mark.parametrize(
    ("method", "query", "permission"),
    [
        ("HEAD", "", "s3:ListBucket"),
        ("GET", "list-type", "s3:ListBucket"),
        ("GET", "versions", "s3:ListBucketVersions"),
        ("GET", "uploads", "s3:ListBucketMultipartUploads"),
        ("POST", "delete", "s3:DeleteObjectVersion"),
    ],
)
async def test_which_permission_is_missing(
    address: S3Address, front: S3Front, method: str, query: str, permission: str
) -> None:
    async def refuse(seen: Seen) -> web.StreamResponse | None:
        if seen.method != method or (query and query not in seen.query):
            return None
        return refusal(403, "AccessDenied") if method != "HEAD" else web.Response(status=403)

    async def works() -> None:
        async with place.workspace("journal/one"):
            await place.write("a", b"x")
            await place.remove("a")

    place = S3Place(msgspec.structs.replace(address, endpoint=front.endpoint), setting="backup")
    front.rule = refuse
    try:
        with pytest.raises(PlaceUnavailable, match=f"access denied; give this account {permission} on it"):
            await works()
    finally:
        await place.close()


@pytest.mark.parametrize(("minutes", "words"), [(-30, "ahead of"), (30, "behind")])
async def test_a_clock_that_is_wrong(address: S3Address, front: S3Front, minutes: int, words: str) -> None:
    front.ahead = timedelta(minutes=minutes)

    async def refuse(seen: Seen) -> web.StreamResponse | None:
        if seen.method != "PUT":
            return None
        date = (await seen.forwarded()).headers["Date"]
        return refusal(403, "RequestTimeTooSkewed", headers={"Date": date})

    front.rule = refuse
    said = await told(msgspec.structs.replace(address, endpoint=front.endpoint), ClockWrong)
    match = re.fullmatch(
        rf"the clock of this machine is (\d+) s {words} AWS's; set it right \(NTP\), then begin again", said
    )
    assert match is not None
    assert abs(int(match[1]) - 1800) < 60


async def test_a_region_that_only_the_answer_to_a_write_tells(address: S3Address, front: S3Front) -> None:
    """As from another S3 that names no region when it is asked for the bucket."""

    async def refuse(seen: Seen) -> web.StreamResponse | None:
        if seen.method == "HEAD":
            return web.Response(status=200)
        return refusal(400, "IllegalLocationConstraintException") if seen.method == "PUT" else None

    front.rule = refuse
    said = await told(msgspec.structs.replace(address, endpoint=front.endpoint))
    assert said == "the bucket is not in eu-west-1; correct region in backup"


async def test_closed(address: S3Address) -> None:
    place = S3Place(address, setting="backup")
    await place.close()
    with pytest.raises(PlaceUnavailable, match="is closed"):
        await place.names()
