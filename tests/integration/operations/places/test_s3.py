"""S3 as a place: what is sent, what is removed, killed uploads, and leases. Against the emulator, through a front
where the emulator does not fail by itself."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import os
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiobotocore.session import get_session
from aiohttp import web

from kiseki.operations.errors import BackupDamaged, NoRoom, OperationFailed, OperatorBusy, PlaceUnavailable
from kiseki.operations.places.port import LAST
from kiseki.operations.places.s3 import S3Place
from kiseki.operations.places.s3_address import S3Address
from kiseki.operations.places.s3_lease import Pace
from kiseki.operations.places.s3_transfer import PART
from tests.integration.operations.places.place_parts import child, kill, published
from tests.integration.operations.places.s3_front import S3Front, Seen, held, refusal
from tests.servers.emulator import REGION


@asynccontextmanager
async def opened(address: S3Address, front: S3Front | None = None, pace: Pace | None = None) -> AsyncIterator[S3Place]:
    """A place of its own, behind the front."""
    if front is not None:
        address = msgspec.structs.replace(address, endpoint=front.endpoint)
    place = S3Place(address, setting="backup", **({} if pace is None else {"pace": pace}))
    try:
        yield place
    finally:
        await place.close()


@asynccontextmanager
async def client_of(address: S3Address) -> AsyncIterator[Any]:
    async with get_session().create_client("s3", region_name=REGION, endpoint_url=address.endpoint) as client:
        yield client


async def versions_in(address: S3Address) -> list[str]:
    """The keys of all versions and markers, but for locks that were given back."""
    async with client_of(address) as client:
        answer = await client.list_object_versions(Bucket=address.bucket)
    found = [*answer.get("Versions", ()), *answer.get("DeleteMarkers", ())]
    return sorted(each["Key"] for each in found if "/.locks/" not in each["Key"])


async def uploads_in(address: S3Address) -> list[str]:
    async with client_of(address) as client:
        answer = await client.list_multipart_uploads(Bucket=address.bucket)
    return [each["Key"] for each in answer.get("Uploads", ())]


def big_file(path: Path) -> Path:
    """One that goes in two parts."""
    path.write_bytes(os.urandom(PART) + b"the rest")
    return path


@pytest.mark.parametrize(("kms", "encryption"), [(None, "AES256"), ("alias/backups", "aws:kms")])
async def test_every_upload_is_encrypted_and_has_a_checksum(
    address: S3Address, front: S3Front, tmp_path: Path, kms: str | None, encryption: str
) -> None:
    async with opened(msgspec.structs.replace(address, kms=kms), front) as place:
        await published(place, "journal/one", data=b"1")
        await place.write("heads", b"2")
        await place.put("big", big_file(tmp_path / "big"))
        async with place.lock("journal"):
            pass
    puts = [seen for seen in front.requests if seen.method == "PUT"]
    assert len(puts) > 8
    for seen in puts:
        digest = base64.b64encode(hashlib.sha256(seen.body).digest()).decode()
        assert seen.headers["x-amz-checksum-sha256"] == digest
    whole = [seen for seen in puts if "partNumber" not in seen.query]
    whole += [seen for seen in front.requests if seen.method == "POST" and "uploads" in seen.query]
    assert {seen.headers["x-amz-server-side-encryption"] for seen in whole} == {encryption}
    assert {seen.headers.get("x-amz-server-side-encryption-aws-kms-key-id") for seen in whole} == {kms}


async def test_a_large_file(s3: S3Place, address: S3Address, tmp_path: Path) -> None:
    big = big_file(tmp_path / "big")
    await s3.put("big", big)
    async with s3.workspace("journal/one") as folder:
        big.rename(folder / "big")
        (folder / LAST).write_bytes(b"{}")
        data = (folder / "big").read_bytes()
        await s3.publish(folder, "journal/one")
    assert await s3.read("big") == data
    async with s3.fetched("journal/one", ["big"]) as fetched:
        assert (fetched / "big").read_bytes() == data
    assert await uploads_in(address) == []


async def test_the_manifest_is_last_and_only_if_there_is_none(address: S3Address, front: S3Front) -> None:
    async with opened(address, front) as place:
        await published(place, "journal/one", aaa=b"1", zzz=b"2")
    puts = [seen for seen in front.requests if seen.method == "PUT" and "/.part" not in seen.path]
    assert [seen.path.rpartition("/")[2] for seen in puts] == ["aaa", "zzz", LAST]
    assert puts[-1].headers["If-None-Match"] == "*"


async def test_what_is_altered_on_the_way_is_not_kept(address: S3Address, front: S3Front, tmp_path: Path) -> None:
    async def alter(seen: Seen) -> web.StreamResponse | None:
        if seen.method == "PUT" and seen.path.endswith(("data", "big")) and seen.body:
            seen.body = seen.body[:-1] + bytes([seen.body[-1] ^ 1])
        return None

    async with opened(address, front) as place:
        front.rule = alter
        with pytest.raises(PlaceUnavailable, match="what arrived is not what was sent"):
            await place.write("data", b"12345")
        with pytest.raises(PlaceUnavailable, match="what arrived is not what was sent"):
            await place.put("big", big_file(tmp_path / "big"))
        with pytest.raises(PlaceUnavailable, match="what arrived is not what was sent"):
            await published(place, "journal/one", data=b"1", more=b"2")
        assert await versions_in(address) == []
        assert await uploads_in(address) == []
        front.rule = None
        await published(place, "journal/one", data=b"1", more=b"2")
    assert len(await versions_in(address)) == 3


async def test_a_download_that_breaks_off_goes_on_where_it_was(address: S3Address, front: S3Front) -> None:
    data = os.urandom(5_000_000)
    async with opened(address, front) as place:
        await published(place, "journal/one", data=data)
        front.rule = _breaks(times=3)
        async with place.fetched("journal/one", ["data"]) as folder:
            assert (folder / "data").read_bytes() == data
        ranges = [seen.headers["Range"] for seen in front.requests if "Range" in seen.headers]
        assert len(ranges) == 3
        assert len(set(ranges)) == 3, "each goes further"
        front.rule = _breaks(times=100, after=1000)
        with pytest.raises(PlaceUnavailable, match="journal/one/data broke off 5 times while it was read"):
            async with place.fetched("journal/one", ["data"]):
                raise AssertionError
        with pytest.raises(PlaceUnavailable, match="journal/one/data broke off 5 times while it was read"):
            await place.read("journal/one/data")


def _breaks(*, times: int, after: int = 1_500_000) -> Any:
    left = times

    async def rule(seen: Seen) -> web.StreamResponse | None:
        nonlocal left
        if seen.method != "GET" or not seen.path.endswith("/data") or not left:
            return None
        left -= 1
        whole = await seen.forwarded()
        assert isinstance(whole.body, bytes)
        response = web.StreamResponse(status=whole.status, headers=whole.headers)
        response.content_length = len(whole.body)
        await response.prepare(seen.request)
        await response.write(whole.body[:after])
        assert seen.request.transport is not None
        seen.request.transport.close()
        return response

    return rule


async def test_nothing_is_left_in_any_version(s3: S3Place, address: S3Address) -> None:
    """Copies of keys have to be gone when they are removed, and when they are replaced."""
    await s3.write("keys-increments/1", b"old keys")
    await s3.write("keys-increments/1", b"new keys")
    assert await versions_in(address) == ["shop/keys-increments/1"]
    async with client_of(address) as client:  # as a tool would that knows of no versions
        await client.put_object(Bucket=address.bucket, Key="shop/keys-increments/1", Body=b"newer")
        await client.delete_object(Bucket=address.bucket, Key="shop/keys-increments/1")
        await client.put_object(Bucket=address.bucket, Key="other/keys", Body=b"not of this place")
    assert len(await versions_in(address)) == 4
    await published(s3, "keys/one", data=b"1")
    await s3.remove("keys/one")
    await s3.remove("keys-increments")
    assert await versions_in(address) == ["other/keys"]


async def test_a_lock_leaves_one_small_object(s3: S3Place, address: S3Address) -> None:
    for _ in range(3):
        async with s3.lock("journal"):
            pass
    async with client_of(address) as client:
        answer = await client.list_object_versions(Bucket=address.bucket)
    assert [each["Key"] for each in answer["Versions"]] == ["shop/.locks/journal"]


async def test_object_lock_forbids_to_remove(aws_keys: None, address: S3Address) -> None:
    locked = msgspec.structs.replace(address, bucket=f"{address.bucket}-locked")
    retention = {"Mode": "COMPLIANCE", "Days": 30}
    async with client_of(locked) as client:
        await client.create_bucket(
            Bucket=locked.bucket,
            ObjectLockEnabledForBucket=True,
            CreateBucketConfiguration={"LocationConstraint": REGION},
        )
        await client.put_object_lock_configuration(
            Bucket=locked.bucket,
            ObjectLockConfiguration={"ObjectLockEnabled": "Enabled", "Rule": {"DefaultRetention": retention}},
        )
    async with opened(locked) as place:
        await place.write("keys-increments/1", b"keys")
        with pytest.raises(
            OperationFailed, match=r"object lock keeps it until 20\d\d-\d\d-\d\d, .*without object lock"
        ):
            await place.remove("keys-increments/1")


_PUBLISHES = """
import asyncio, sys
from kiseki.operations.places.opening import open_place
async def main():
    place = open_place(sys.argv[1], setting="backup")
    async with place.workspace("journal/one") as folder:
        (folder / "data").write_bytes(b"1")
        (folder / "large").write_bytes(bytes(17 << 20))
        (folder / "manifest.json").write_bytes(b"{}")
        await place.publish(folder, "journal/one")
asyncio.run(main())
"""


async def test_killed_in_the_middle_of_publishing(
    address: S3Address, front: S3Front, own_scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrived = asyncio.Event()

    async def hold(seen: Seen) -> web.StreamResponse | None:
        if seen.query.get("partNumber") == "2":
            arrived.set()
            return await held(seen)
        return None

    front.rule = hold
    monkeypatch.setenv("TMPDIR", str(own_scratch))
    url = f"s3://{address.bucket}/{address.prefix}?region={REGION}&endpoint={front.endpoint}"
    process = child(_PUBLISHES, url)
    await asyncio.wait_for(arrived.wait(), 60)
    async with opened(address) as place:
        assert await place.names() == []
        assert len(list(own_scratch.glob("*/.journal*"))) == 1
        with pytest.raises(OperatorBusy, match=rf"journal/one is held by \S+, process {process.pid} on "):
            await published(place, "journal/one", data=b"2")
        assert "shop/journal/one/data" in await versions_in(address), "it is still being published"
    kill(process)
    front.rule = None
    assert await versions_in(address) == ["shop/journal/one/.part", "shop/journal/one/data"]
    assert await uploads_in(address) == ["shop/journal/one/large"]
    async with opened(address, front) as place, place.workspace("journal/two"):
        assert len(await versions_in(address)) == 2, "who was killed a moment ago may be slow only"
    front.ahead = timedelta(minutes=61)
    async with opened(address, front) as place:
        async with place.workspace("journal/two"):
            assert await versions_in(address) == []
            assert await uploads_in(address) == []
            assert len(list(own_scratch.glob("*/.journal*"))) == 1, "the one of now"
        await published(place, "journal/one", data=b"2")
        assert [each.name for each in await place.names()] == ["journal/one/data", f"journal/one/{LAST}"]
    assert list(own_scratch.glob("*/.journal*")) == []


async def test_a_manifest_whose_answer_got_lost(address: S3Address, front: S3Front) -> None:
    """The library repeats it, and meets its own."""
    lost: list[str] = []

    async def lose(seen: Seen) -> web.StreamResponse | None:
        if seen.method == "PUT" and seen.path.endswith((LAST, ".part", "journal")) and seen.path not in lost:
            lost.append(seen.path)
            await seen.forwarded()
            return refusal(500, "InternalError")
        return None

    async with opened(address, front) as place:
        front.rule = lose
        async with place.lock("journal"):
            await published(place, "journal/one", data=b"1")
    assert len(lost) == 3
    assert await versions_in(address) == ["shop/journal/one/data", f"shop/journal/one/{LAST}"]


async def test_failing_in_the_middle_leaves_nothing(address: S3Address, front: S3Front) -> None:
    async def fail(seen: Seen) -> web.StreamResponse | None:
        return refusal(403, "AccessDenied") if seen.path.endswith("more") and seen.method == "PUT" else None

    async with opened(address, front) as place:
        front.rule = fail
        with pytest.raises(PlaceUnavailable, match="give this account s3:PutObject on it"):
            await published(place, "journal/one", data=b"1", more=b"2")
    assert await versions_in(address) == []


async def test_cancelled_in_the_middle_leaves_nothing(address: S3Address, front: S3Front, tmp_path: Path) -> None:
    arrived = asyncio.Event()

    async def hold(seen: Seen) -> web.StreamResponse | None:
        if seen.query.get("partNumber") == "2":
            arrived.set()
            return await held(seen)
        return None

    async with opened(address, front) as place:
        front.rule = hold
        big = big_file(tmp_path / "big").read_bytes()
        publishing = asyncio.create_task(published(place, "journal/one", data=b"1", large=big))
        await arrived.wait()
        publishing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await publishing
    assert await versions_in(address) == []
    assert await uploads_in(address) == []


async def test_a_lock_of_a_killed_holder_is_free_after_five_minutes(address: S3Address, front: S3Front) -> None:
    """By the clock of S3: that of this machine does not count."""
    async with opened(address) as holder, opened(address, front) as place, holder.lock("journal"):
        front.ahead = timedelta(seconds=290)
        with pytest.raises(OperatorBusy, match="or 5 minutes if it was killed, then begin again"):
            async with place.lock("journal"):
                raise AssertionError
        front.ahead = timedelta(seconds=305)
        async with place.lock("journal"):
            front.ahead = timedelta()
            with pytest.raises(OperatorBusy):
                async with place.lock("journal"):
                    raise AssertionError
    async with opened(address) as place, place.lock("journal"):
        pass


async def test_a_lock_is_renewed(address: S3Address, front: S3Front) -> None:
    async with opened(address, front, Pace(renew=0.01)) as place, opened(address) as other:
        async with place.lock("journal"):
            renewals = await _count(front, 3)
            with pytest.raises(OperatorBusy):
                async with other.lock("journal"):
                    raise AssertionError
        assert all("If-Match" in seen.headers for seen in renewals)


async def test_a_holder_who_lost_its_lock_is_stopped(address: S3Address, front: S3Front, aws_endpoint: str) -> None:
    """As one that was asleep for too long: another took over meanwhile, and goes on undisturbed."""
    late = asyncio.Event()

    async def hold(seen: Seen) -> web.StreamResponse | None:
        if seen.method == "PUT":
            await late.wait()
        return None

    async def works(place: S3Place, lock: AbstractAsyncContextManager[None]) -> None:
        async with place.lock("journal"):
            front.rule = hold
            await lock.__aenter__()
            late.set()
            await asyncio.Event().wait()

    async with S3Front(aws_endpoint) as later, opened(address, front, Pace(renew=0.01)) as place:
        later.ahead = timedelta(minutes=6)
        async with opened(address, later) as other:
            lock = other.lock("journal")
            with pytest.raises(OperationFailed, match="journal: its lock was taken over by another; begin again"):
                await works(place, lock)
            with pytest.raises(OperatorBusy):
                async with place.lock("journal"):
                    raise AssertionError
            await lock.__aexit__(None, None, None)
        async with place.lock("journal"):
            pass


async def test_a_holder_who_cannot_renew_stops_before_another_begins(address: S3Address, front: S3Front) -> None:
    async def fail(seen: Seen) -> web.StreamResponse | None:
        return refusal(403, "AccessDenied") if seen.method == "PUT" else None

    async def works(place: S3Place) -> None:
        async with place.lock("journal"):
            front.rule = fail
            await asyncio.Event().wait()

    async with opened(address, front, Pace(renew=0.01, give_up=0.1)) as place:
        with pytest.raises(OperationFailed, match="its lock could not be renewed; begin again"):
            await works(place)
        front.rule = None


async def test_a_lock_that_is_not_ours_to_read(s3: S3Place, address: S3Address) -> None:
    async with client_of(address) as client:
        await client.put_object(Bucket=address.bucket, Key="shop/.locks/journal", Body=b"\x00something else")
    with pytest.raises(OperatorBusy, match="journal is held by somebody who has not said who"):
        async with s3.lock("journal"):
            raise AssertionError


async def _count(front: S3Front, least: int) -> list[Seen]:
    """Waits for so many writes of a lock."""
    enough = asyncio.Event()
    found: list[Seen] = []

    async def watch(seen: Seen) -> web.StreamResponse | None:
        if seen.method == "PUT":
            found.append(seen)
            if len(found) >= least:
                enough.set()
        return None

    front.rule = watch
    await asyncio.wait_for(enough.wait(), 30)
    return found


async def test_a_temporary_folder_that_is_full(s3: S3Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not seen on a disk: the system's answer is made here."""
    await published(s3, "journal/one", data=b"1")
    real = os.write

    def full(descriptor: int, data: Any) -> int:
        if bytes(data) == b"1":
            raise OSError(28, "No space left on device")
        return real(descriptor, data)

    monkeypatch.setattr("os.write", full)
    with pytest.raises(
        NoRoom, match=r"can't write journal/one/data: the disk is full; .* set TMPDIR to another folder"
    ):
        async with s3.fetched("journal/one", ["data"]):
            raise AssertionError


async def test_a_temporary_folder_that_another_made_is_not_used(s3: S3Place, own_scratch: Path) -> None:
    (own_scratch / f"kiseki-{os.geteuid()}").symlink_to(own_scratch)
    with pytest.raises(PlaceUnavailable, match="permission denied"):
        async with s3.workspace("journal/one"):
            raise AssertionError


async def test_an_object_that_was_removed_meanwhile(s3: S3Place, address: S3Address) -> None:
    await published(s3, "journal/one", data=b"1", more=b"2")
    async with client_of(address) as client:
        await client.delete_object(Bucket=address.bucket, Key="shop/journal/one/more")
    with pytest.raises(BackupDamaged, match=f"s3://{address.bucket}/shop: journal/one has no file more"):
        async with s3.fetched("journal/one", ["data", "more"]):
            raise AssertionError
