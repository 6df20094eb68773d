"""What S3 and its library say when something fails, as errors of operations: one line with what to do.

S3's own words are left out, but for the name of a permission: they may hold names of accounts. Used by `S3Bucket`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Final

import aiohttp
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    CredentialRetrievalError,
    HTTPClientError,
    NoCredentialsError,
    PartialCredentialsError,
    ProfileNotFound,
    SSOError,
    TokenRetrievalError,
    UnauthorizedSSOTokenError,
)
from botocore.exceptions import ConnectionError as NotConnected

from kiseki.kernel.errors import KisekiError
from kiseki.operations.errors import ClockWrong, NoRoom, OperationFailed, PlaceUnavailable
from kiseki.operations.places.s3_address import S3Address

__all__ = ["explain", "time_there", "wrong_region"]

# https://docs.aws.amazon.com/service-authorization/latest/reference/list_amazons3.html
_PERMISSIONS: Final = {
    "put_object": "s3:PutObject",
    "create_multipart_upload": "s3:PutObject",
    "upload_part": "s3:PutObject",
    "complete_multipart_upload": "s3:PutObject",
    "abort_multipart_upload": "s3:AbortMultipartUpload",
    "list_multipart_uploads": "s3:ListBucketMultipartUploads",
    "list_parts": "s3:ListMultipartUploadParts",
    "get_object": "s3:GetObject",
    "head_object": "s3:GetObject",
    "head_bucket": "s3:ListBucket",
    "list_objects_v2": "s3:ListBucket",
    "list_object_versions": "s3:ListBucketVersions",
    "delete_objects": "s3:DeleteObjectVersion",
}
_DENIED: Final = frozenset({"AccessDenied", "403", "Forbidden", "AllAccessDisabled", "AccountProblem"})
_NO_BUCKET: Final = frozenset({"NoSuchBucket", "404", "NotFound"})
_REGION: Final = frozenset(
    {"PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException", "301", "307"}
)
_ENDED: Final = frozenset({"ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired"})
_REFUSED: Final = frozenset({"InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken", "InvalidSecurity"})
_FULL: Final = frozenset({"507", "XMinioStorageFull", "QuotaExceeded", "EntityTooLarge"})
_DAMAGED: Final = frozenset(
    {"BadDigest", "InvalidDigest", "XAmzContentSHA256Mismatch", "InvalidPart", "EntityTooSmall"}
)
_PERFORM: Final = re.compile(r"perform: ([a-z0-9-]{1,20}:[A-Za-z]{1,60})")
_NAME: Final = re.compile(r"[a-z0-9-]{4,30}")
_CODE: Final = re.compile(r"[A-Za-z0-9._]{1,60}")
_CREDENTIALS: Final = (
    CredentialRetrievalError,
    NoCredentialsError,
    PartialCredentialsError,
    ProfileNotFound,
    SSOError,
    TokenRetrievalError,
    UnauthorizedSSOTokenError,
)
_GET_SOME: Final = "set AWS_PROFILE, or give the machine a role"


def explain(problem: Exception, operation: str, *, address: S3Address, setting: str) -> KisekiError:
    """The error that stands for what went wrong in a call of `operation`, as the library names it."""
    where = address.label
    if isinstance(problem, ClientError):
        return _refusal(problem, operation, address=address, setting=setting)
    if isinstance(problem, _CREDENTIALS):
        reason = " ".join(str(problem).split())[:300]  # may name a profile, a path or a role, never a key
        return PlaceUnavailable(f"{where}: no credentials for AWS: {reason.rstrip('.')}; {_GET_SOME}")
    if isinstance(problem, (NotConnected, HTTPClientError, aiohttp.ClientError, OSError)):
        to = address.endpoint or f"S3 in {address.region}"
        return PlaceUnavailable(
            f"{where}: {to} does not answer ({type(problem).__name__}); look at network and proxy, then begin again"
        )
    if isinstance(problem, BotoCoreError):
        return PlaceUnavailable(
            f"{where}: {operation} failed ({type(problem).__name__}); look at {setting} and at ~/.aws"
        )
    return OperationFailed(f"{where}: {operation} failed ({type(problem).__name__})")


def time_there(answer: Mapping[str, Any]) -> datetime | None:
    """The time of the place (UTC) at which it gave an answer."""
    try:
        return parsedate_to_datetime(answer["ResponseMetadata"]["HTTPHeaders"]["date"]).astimezone(UTC)
    except (KeyError, TypeError, ValueError):
        return None


def _refusal(problem: ClientError, operation: str, *, address: S3Address, setting: str) -> KisekiError:
    where = address.label
    error: Mapping[str, Any] = problem.response.get("Error", {})
    answer: Mapping[str, Any] = problem.response
    code = str(error.get("Code", ""))
    status = answer.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    if code in _REGION:
        return PlaceUnavailable(f"{where}: {wrong_region(_region_of(answer), address, setting)}")
    if code in _NO_BUCKET:
        return PlaceUnavailable(f"{where}: there is no bucket {address.bucket}; make it, or correct {setting}")
    if code == "RequestTimeTooSkewed":
        return ClockWrong(f"{where}: {_difference(answer)}; set it right (NTP), then begin again")
    if code in _DENIED:
        return PlaceUnavailable(f"{where}: access denied; {_missing(error, operation, address)}")
    if code in _ENDED:
        return PlaceUnavailable(f"{where}: the credentials for AWS have ended; sign in again, then begin again")
    if code in _REFUSED:
        return PlaceUnavailable(f"{where}: AWS does not know these credentials ({code}); {_GET_SOME}")
    if code in _FULL or status == 507:
        return NoRoom(f"{where}: no room for more ({_shown(code)}); free some, or set {setting} to another place")
    if code in _DAMAGED:
        return PlaceUnavailable(f"{where}: what arrived is not what was sent ({code}); it was not kept; begin again")
    if code.startswith("KMS."):
        return PlaceUnavailable(
            f"{where}: the key of KMS can't be used ({_shown(code)}); enable it, or correct {setting}"
        )
    if code == "InvalidObjectState":
        return PlaceUnavailable(f"{where}: an object is archived (Glacier); have S3 restore it, then begin again")
    if code in ("NotImplemented", "MethodNotAllowed", "501", "405"):
        return PlaceUnavailable(f"{where}: this S3 can't do {operation}, which backups need; set {setting} to another")
    if status >= 500 or status == 429 or code in ("SlowDown", "RequestTimeout", "Throttling"):
        return PlaceUnavailable(f"{where}: S3 is not able to answer now ({_shown(code)}); begin again later")
    return OperationFailed(f"{where}: S3 refused {operation} ({_shown(code)}); look at the bucket and at {setting}")


def wrong_region(right: str | None, address: S3Address, setting: str) -> str:
    """What to say of a bucket that is elsewhere; `right` is None where that is not known."""
    if right is None:
        return f"the bucket is not in {address.region}; correct region in {setting}"
    return f"the bucket is in {right}, not in {address.region}; correct region={right} in {setting}"


def _region_of(answer: Mapping[str, Any]) -> str | None:
    headers = answer.get("ResponseMetadata", {}).get("HTTPHeaders", {})
    region = str(headers.get("x-amz-bucket-region") or answer.get("Error", {}).get("Region") or "")
    return region if _NAME.fullmatch(region) else None


def _missing(error: Mapping[str, Any], operation: str, address: S3Address) -> str:
    said = _PERFORM.search(str(error.get("Message", "")))
    action = said[1] if said else _PERMISSIONS.get(operation, operation)
    if said is None and address.kms is not None and action in ("s3:PutObject", "s3:GetObject"):
        return f"give this account {action} on it, and kms:GenerateDataKey and kms:Decrypt on its key"
    return f"give this account {action} on it"


def _difference(answer: Mapping[str, Any]) -> str:
    there = time_there(answer)
    said = str(answer.get("Error", {}).get("ServerTime", ""))
    if there is None and said:
        try:
            there = datetime.fromisoformat(said).astimezone(UTC)
        except ValueError:
            there = None
    if there is None:
        return "the clock of this machine differs from AWS's"
    seconds = (datetime.now(UTC) - there).total_seconds()
    return f"the clock of this machine is {abs(seconds):.0f} s {'ahead of' if seconds > 0 else 'behind'} AWS's"


def _shown(code: str) -> str:
    return code if _CODE.fullmatch(code) else "no reason given"
