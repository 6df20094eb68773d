"""`needs_of`: what IAM has to allow for a request to AWS. Used by the proxy that stands before the emulator.

That is the operation on each resource that it names, as AWS's service authorization reference says; and what the
service then does in the caller's name with the customer's KMS key, which the emulator does not do: a table's key is
decrypted for who uses the table, a secret's for who reads it, and a data key is made or decrypted for objects of S3.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

from kiseki.clients.dynamodb_generations import OPERATIONS_TABLE
from kiseki.journal.dynamodb.schema import TABLES
from kiseki.security.dynamodb_key_items import KEYS_TABLE
from kiseki.security.erasure.dynamodb_ledger import ERASURES_TABLE
from kiseki.security.identity.dynamodb_revocations import REVOCATIONS_TABLE
from tests.infra.roles_policies import Context, Needed

__all__ = ["Account", "Request", "credential_of", "needs_of"]

_CREDENTIAL: Final = re.compile(r"Credential=([^/]+)/[0-9]{8}/([a-z0-9-]+)/([a-z0-9-]+)/aws4_request")
_STREAM: Final = re.compile(r"arn:aws:dynamodb:[^|\"]*/stream/[^|\"]*")
_IN_TRANSACTION: Final = {
    "Put": "PutItem",
    "Update": "UpdateItem",
    "Delete": "DeleteItem",
    "ConditionCheck": "ConditionCheckItem",
}
_ITEMS: Final = frozenset(
    {"GetItem", "BatchGetItem", "Query", "Scan", "PutItem", "UpdateItem", "DeleteItem", "ConditionCheckItem"}
)
_HASH_KEYS: Final = {
    spec.name: spec.hash_key.name for spec in (*TABLES, KEYS_TABLE, REVOCATIONS_TABLE, ERASURES_TABLE, OPERATIONS_TABLE)
}
_OF_STREAMS: Final = frozenset({"GetRecords"})


class Credential(NamedTuple):
    """Who signed, and for which service where."""

    access_key: str
    region: str
    service: str


class Request(NamedTuple):
    """One request as it came."""

    method: str
    target: str
    headers: Mapping[str, str]
    """With names in lower case."""
    body: bytes


class Account(NamedTuple):
    """What is needed to name resources."""

    number: str
    data_key: str
    """The ARN of the key that tables, secrets and buckets are encrypted with."""
    key_arn: Callable[[str], str]
    """The ARN of a KMS key, by id, ARN or alias."""
    secret_arn: Callable[[str], str]
    """The ARN of a secret, by name or ARN."""


def credential_of(request: Request) -> Credential | None:
    """None when nobody signed it."""
    found = _CREDENTIAL.search(request.headers.get("authorization", ""))
    return None if found is None else Credential(*found.groups())


def needs_of(request: Request, credential: Credential, account: Account) -> list[Needed]:
    """Raises AssertionError for a service that is not known here."""
    region = credential.region
    if credential.service == "s3":
        return _s3(request, region, account)
    prefix, _, operation = request.headers.get("x-amz-target", "").rpartition(".")
    given: Mapping[str, Any] = json.loads(request.body or b"{}")
    if prefix.startswith("DynamoDB"):
        return _dynamodb(operation, given, region, account)
    if prefix == "TrentService":
        return [_kms(operation, given, account)]
    if prefix == "secretsmanager":
        arn = account.secret_arn(given["SecretId"])
        context = {"kms:EncryptionContext:SecretARN": [arn]}
        return [
            Needed(f"secretsmanager:{operation}", arn, {}),
            _by_service("Decrypt", f"secretsmanager.{region}.amazonaws.com", account, context),
        ]
    if prefix == "GraniteServiceVersion20100801":
        names = given.get("AlarmNames") or [given["AlarmName"]] if operation != "DescribeAlarms" else ["*"]
        return [
            Needed(f"cloudwatch:{operation}", f"arn:aws:cloudwatch:{region}:{account.number}:alarm:{name}", {})
            for name in names
        ]
    raise AssertionError(f"{prefix}.{operation} of {credential.service} is not known here")


def _dynamodb(operation: str, given: Mapping[str, Any], region: str, account: Account) -> list[Needed]:
    needs = [
        Needed(f"dynamodb:{action}", _table_arn(resource, region, account), context)
        for action, resource, context in _on_tables(operation, given)
    ]
    tables = f"dynamodb.{region}.amazonaws.com"
    actions = {need.action.removeprefix("dynamodb:") for need in needs}
    if actions & (_ITEMS | _OF_STREAMS):
        needs.append(_by_service("Decrypt", tables, account, {}))
    if actions & {"CreateTable", "RestoreTableFromBackup", "RestoreTableToPointInTime"}:
        needs += [_by_service(each, tables, account, {}) for each in _OF_NEW_TABLES]
    return needs


def _on_tables(operation: str, given: Mapping[str, Any]) -> list[tuple[str, str, Context]]:
    """Action, table or ARN, and context."""
    if operation.startswith("Transact"):
        return [
            (
                _IN_TRANSACTION[kind],
                part["TableName"],
                {"dynamodb:EnclosingOperation": [operation], **_leading(part["TableName"], part)},
            )
            for item in given["TransactItems"]
            for kind, part in item.items()
        ]
    if operation.startswith("Batch"):
        return [(operation, table, {}) for table in given["RequestItems"]]
    if operation in ("ListTables", "ListBackups"):
        return [(operation, "*", {})]
    if operation == "GetRecords":
        # An iterator names its stream; how, AWS does not say.
        return [(operation, _stream_of(given["ShardIterator"]), {})]
    named = given.get("StreamArn") or given.get("ResourceArn") or given.get("BackupArn") or given.get("TableName")
    if operation == "RestoreTableFromBackup":
        return [
            (operation, given["BackupArn"], {}),
            *((each, given["TargetTableName"], {}) for each in _OF_RESTORES),
        ]
    if operation == "RestoreTableToPointInTime":
        return [
            (operation, given["SourceTableName"], {}),
            *((each, given["TargetTableName"], {}) for each in _OF_RESTORES),
        ]
    assert named is not None, f"{operation} names no table"
    if "IndexName" in given:
        return [(operation, f"{named}/index/{given['IndexName']}", {})]
    return [(operation, named, _leading(named, given))]


def _leading(table: str, given: Mapping[str, Any]) -> Context:
    """The partition key, of what names one item."""
    key = given.get("Item") or given.get("Key")
    if key is None:
        return {}
    ((_, value),) = key[_HASH_KEYS[table.rpartition("-")[2]]].items()
    return {"dynamodb:LeadingKeys": [value]}


_OF_NEW_TABLES: Final = ("CreateGrant", "DescribeKey", "Encrypt", "GenerateDataKey", "ReEncryptFrom", "ReEncryptTo")
"""What DynamoDB asks of who makes a table under a customer's key, besides decryption."""

_OF_RESTORES: Final = ("BatchWriteItem", "DeleteItem", "GetItem", "PutItem", "Query", "Scan", "UpdateItem")
"""What AWS does on the new table with the rights of who restores."""


def _table_arn(resource: str, region: str, account: Account) -> str:
    if resource == "*" or resource.startswith("arn:"):
        return resource
    return f"arn:aws:dynamodb:{region}:{account.number}:table/{resource}"


def _stream_of(iterator: str) -> str:
    found = _STREAM.search(iterator)
    if found is None:
        found = _STREAM.search(base64.b64decode(iterator + "==").decode("latin-1"))
    assert found is not None, f"no stream in the iterator {iterator[:200]}"
    return found[0]


def _kms(operation: str, given: Mapping[str, Any], account: Account) -> Needed:
    given_context = given.get("EncryptionContext") or {}
    context = {f"kms:EncryptionContext:{name}": [value] for name, value in given_context.items()}
    context["kms:CallerAccount"] = [account.number]
    if given_context:
        context["kms:EncryptionContextKeys"] = list(given_context)
    return Needed(f"kms:{operation}", account.key_arn(given["KeyId"]), context)


def _by_service(operation: str, service: str, account: Account, more: Context) -> Needed:
    context = {
        "kms:CallerAccount": [account.number],
        "kms:ViaService": [service],
        "kms:GrantIsForAWSResource": ["true"],
        **more,
    }
    return Needed(f"kms:{operation}", account.data_key, context)


def _s3(request: Request, region: str, account: Account) -> list[Needed]:
    parts = urlsplit(request.target)
    bucket, _, key = unquote(parts.path).removeprefix("/").partition("/")
    query = parse_qs(parts.query, keep_blank_values=True)
    arn = f"arn:aws:s3:::{bucket}"
    encryption = f"s3.{region}.amazonaws.com"
    context = {"kms:EncryptionContext:aws:s3:arn": [arn]}
    if not key:
        listing = {"s3:prefix": query.get("prefix", [""])}
        if request.method == "POST" and "delete" in query:
            keys = re.findall(rb"<Object>(.*?)</Object>", request.body, re.DOTALL)
            return [need for each in keys for need in _deleted(arn, each.decode())]
        if "versions" in query:
            return [Needed("s3:ListBucketVersions", arn, listing)]
        if "uploads" in query:
            return [Needed("s3:ListBucketMultipartUploads", arn, {})]
        assert request.method in ("GET", "HEAD"), f"{request.method} {request.target} is not known here"
        return [Needed("s3:ListBucket", arn, listing)]
    item = f"{arn}/{key}"
    if request.method in ("PUT", "POST"):
        needs = [Needed("s3:PutObject", item, {}), _by_service("GenerateDataKey", encryption, account, context)]
        if "uploadId" in query:
            needs.append(_by_service("Decrypt", encryption, account, context))
        return needs
    if request.method == "DELETE" and "uploadId" in query:
        return [Needed("s3:AbortMultipartUpload", item, {})]
    if request.method == "GET" and "uploadId" in query:
        return [Needed("s3:ListMultipartUploadParts", item, {})]
    assert request.method in ("GET", "HEAD"), f"{request.method} {request.target} is not known here"
    return [Needed("s3:GetObject", item, {}), _by_service("Decrypt", encryption, account, context)]


def _deleted(bucket: str, item: str) -> list[Needed]:
    found = re.search(r"<Key>(.*?)</Key>", item, re.DOTALL)
    assert found is not None
    actions = ["s3:DeleteObject", *(["s3:DeleteObjectVersion"] if "<VersionId>" in item else [])]
    return [Needed(action, f"{bucket}/{found[1]}", {}) for action in actions]
