"""`Account`: an AWS account on the emulator with the stores of one service, and the service's processes, each with the
role that the infrastructure gives it, as tasks of ECS have them: the production profile, temporary credentials of the
role, TLS to AWS.
"""

from __future__ import annotations

import json
import secrets
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from botocore.config import Config
from botocore.session import get_session

from kiseki.clients.dynamodb_generations import OPERATIONS_TABLE
from kiseki.clients.dynamodb_tables import IndexSpec, Key, TableSpec
from kiseki.journal.dynamodb.schema import TABLES
from kiseki.security.dynamodb_key_items import KEYS_TABLE
from kiseki.security.erasure.dynamodb_ledger import ERASURES_TABLE
from kiseki.security.identity.dynamodb_revocations import REVOCATIONS_TABLE
from tests.e2e.processes import Service
from tests.infra import roles_requests
from tests.infra.roles_policies import Policy
from tests.infra.roles_proxy import Caller, Gatekeeper
from tests.servers.emulator import REGION, AwsEmulator
from tests.servers.lambda_runtime import LambdaRuntime
from tests.servers.postgres import PostgresServer
from tests.servers.processes import clean_environment
from tests.servers.production import AUDIENCE, ISSUER, Tokens
from tests.servers.redis import RedisServer

__all__ = ["ACCOUNT", "NAME", "AwsAccount"]

ACCOUNT: Final = "000000000000"
NAME: Final = "kiseki-test"
_ROOT: Final = Path(__file__).parents[2]
_SECONDS: Final = 90
_ALIASES: Final = (f"alias/{NAME}-data", f"alias/{NAME}-master")
_BY_ARN: Final = frozenset(
    f"dynamodb:{operation}"
    for operation in (
        "DeleteBackup",
        "DeleteResourcePolicy",
        "DescribeBackup",
        "DescribeStream",
        "GetRecords",
        "GetResourcePolicy",
        "GetShardIterator",
        "ListTagsOfResource",
        "PutResourcePolicy",
        "RestoreTableFromBackup",
        "RestoreTableToPointInTime",
        "TagResource",
    )
)
"""What names no table, or another thing besides."""
_DATABASES: Final = {"kiseki": "kiseki", "kiseki_audit": "audit", "kiseki_anchors": "anchors"}
"""By user: what each of them owns."""


class AwsAccount:
    """Stores, keys, secrets and roles."""

    def __init__(self, emulator: AwsEmulator, postgres: PostgresServer, redis: RedisServer, directory: Path) -> None:
        self._emulator = emulator
        self._postgres = postgres
        self.directory = directory
        self._session = get_session()
        self._arns: dict[str, str] = {}
        self._callers: dict[str, Caller] = {}
        self.tokens = Tokens()
        self._make_keys()
        self._make_tables()
        self._make_secrets(redis)
        for bucket in ("backup", "key-backup"):
            self.client("s3").create_bucket(
                Bucket=f"{NAME}-{bucket}", CreateBucketConfiguration={"LocationConstraint": REGION}
            )
            self.client("s3").put_bucket_versioning(
                Bucket=f"{NAME}-{bucket}", VersioningConfiguration={"Status": "Enabled"}
            )
        for user, database in _DATABASES.items():
            postgres.sql(f"CREATE ROLE {user} LOGIN" if user != "kiseki" else "SELECT 1")
            postgres.sql(f"CREATE DATABASE {database} OWNER {user}")
        self.gate = Gatekeeper(
            emulator.endpoint,
            directory,
            roles_requests.Account(ACCOUNT, self.data_key, self._key_arn, self._secret_arn),
        )

    def __enter__(self) -> Self:
        self.gate.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.gate.__exit__(kind, problem, trace)

    def client(self, service: str, credentials: Mapping[str, Any] | None = None) -> Any:
        """Of the emulator itself, past the gate; of who may do all unless there are credentials."""
        given = credentials or {"AccessKeyId": "test", "SecretAccessKey": "test", "SessionToken": None}
        return self._session.create_client(
            service,
            region_name=REGION,
            endpoint_url=self._emulator.endpoint,
            aws_access_key_id=given["AccessKeyId"],
            aws_secret_access_key=given["SecretAccessKey"],
            aws_session_token=given["SessionToken"],
        )

    def give_role(self, process: str, document: Mapping[str, Any]) -> Caller:
        """The process has a role with this policy from now on, and credentials of it."""
        iam, name = self.client("iam"), f"{NAME}-{process}"
        trust = {
            "Version": "2012-10-17",
            "Statement": [
                {"Effect": "Allow", "Principal": {"AWS": f"arn:aws:iam::{ACCOUNT}:root"}, "Action": "sts:AssumeRole"}
            ],
        }
        try:
            iam.create_role(RoleName=name, AssumeRolePolicyDocument=json.dumps(trust))
        except iam.exceptions.EntityAlreadyExistsException:
            pass
        self.put_policy(process, document)
        role = f"arn:aws:iam::{ACCOUNT}:role/{name}"
        given = self.client("sts").assume_role(RoleArn=role, RoleSessionName=process)["Credentials"]
        caller = Caller(process, role, Policy(document), given)
        self._callers[process] = caller
        self.gate.admit(caller)
        return caller

    def credentials(self, process: str) -> Mapping[str, Any]:
        """As STS gave them."""
        return self._callers[process].credentials

    def judge_at_the_gate(self, process: str) -> Callable[[Mapping[str, Any]], None]:
        """Gives the gate another policy for the process, and the emulator none."""
        return lambda document: self.gate.admit(self._callers[process]._replace(policy=Policy(document)))

    def put_policy(self, process: str, document: Mapping[str, Any]) -> None:
        """What the emulator judges the role by; the gate is told by `admit`."""
        text = json.dumps(self._as_far_as_emulated(document))
        self.client("iam").put_role_policy(RoleName=f"{NAME}-{process}", PolicyName="policy", PolicyDocument=text)

    def leave_remains(self) -> None:
        """What a proof, a backup and a restore leave behind that were killed long ago."""
        database, table = self.client("dynamodb"), f"{NAME}-journal"
        for run in ("verify-20260101T000000Z-aaaaaa", "r20260101T000000Z-bbbbbb", "backup-20260101T000000Z-cccccc"):
            database.put_item(
                TableName=f"{NAME}-operations",
                Item={"name": {"S": f"run#{run}"}, "renewed-at": {"S": "2026-01-01T00:00:00+00:00"}},
            )
            if run.startswith("backup"):
                database.create_backup(TableName=table, BackupName=run)
                continue
            spec = next(each for each in TABLES if each.name == "journal")
            database.create_table(**{**_creation(spec), "TableName": f"{NAME}-{run}-journal"})
            if run.startswith("r"):
                fence = {
                    "Sid": f"KisekiFence{run.replace('-', '')}",
                    "Effect": "Deny",
                    "Principal": "*",
                    "Action": "dynamodb:PutItem",
                    "Resource": "*",
                }
                arn = database.describe_table(TableName=table)["Table"]["TableArn"]
                policy = {"Version": "2012-10-17", "Statement": [fence]}
                database.put_resource_policy(ResourceArn=arn, Policy=json.dumps(policy))

    def _as_far_as_emulated(self, document: Mapping[str, Any]) -> Mapping[str, Any]:
        """The emulator has no values for conditions on KMS's requests and would refuse all, takes an alias for the
        resource where AWS takes the key, and knows the resource of a request to DynamoDB by its table's name alone."""
        aliases = {
            arn: f"arn:aws:kms:{REGION}:{ACCOUNT}:{name}" for name, arn in self._arns.items() if name in _ALIASES
        }
        statements = []
        for statement in document["Statement"]:
            given = statement["Resource"]
            resources = [given] if isinstance(given, str) else given
            conditions = {
                operator: {key: value for key, value in keys.items() if not key.startswith("kms:")}
                for operator, keys in statement.get("Condition", {}).items()
            }
            statements.append(
                {
                    **statement,
                    "Resource": [*resources, *(aliases[each] for each in resources if each in aliases)],
                    "Condition": {operator: keys for operator, keys in conditions.items() if keys},
                }
            )
            unnamed = [each for each in statement["Action"] if each in _BY_ARN]
            if unnamed and statement["Effect"] == "Allow":
                statements.append({"Effect": "Allow", "Action": unnamed, "Resource": "*"})
        return {**document, "Statement": statements}

    def through_the_gate(self, service: str, process: str) -> Any:
        """A client with the credentials of a process."""
        given = self._callers[process].credentials
        return self._session.create_client(
            service,
            region_name=REGION,
            endpoint_url=self.gate.endpoint,
            verify=str(self.gate.trust),
            aws_access_key_id=given["AccessKeyId"],
            aws_secret_access_key=given["SecretAccessKey"],
            aws_session_token=given["SessionToken"],
            config=Config(retries={"total_max_attempts": 1}, s3={"addressing_style": "path"}),
        )

    def journal_stream(self) -> str:
        """The stream of the table that is in force."""
        database = self.client("dynamodb")
        item = database.get_item(TableName=f"{NAME}-operations", Key={"name": {"S": "journal"}}).get("Item")
        table = f"{NAME}-journal" if item is None else f"{NAME}-{item['generation']['S']}-journal"
        return str(database.describe_table(TableName=table)["Table"]["LatestStreamArn"])

    def environment(self, process: str) -> dict[str, str]:
        """What the task of a process is told."""
        at = f"region={REGION}&endpoint={self.gate.endpoint}"
        settings = {
            "PROFILE": "production",
            "JOURNAL": f"dynamodb://{NAME}?{at}",
            "READ_MODEL": self._database("kiseki"),
            "MASTER_KEY": f"aws-kms://alias/{NAME}-master?{at}",
            "ERASURE_LEDGER": f"dynamodb://{NAME}?{at}",
            "AUDIT_SINKS": "stdout,database",
            "AUDIT_DATABASE": self._database("kiseki_audit"),
            "AUDIT_ANCHORS": self._database("kiseki_anchors"),
            "AUDIT_KEY": f"aws-sm://{NAME}/audit?{at}#value",
            "TOKEN_SECRET": f"aws-sm://{NAME}/token?{at}#value",
            "TOKEN_ISSUER": ISSUER,
            "TOKEN_AUDIENCE": AUDIENCE,
            "RATE_STORE": f"aws-sm://{NAME}/rate-store?{at}#value",
            "TLS_PROXY": "true",
            "TRUSTED_PROXIES": "127.0.0.1/32",
            "HOSTS": "127.0.0.1",
            "MANAGEMENT_HOST": "127.0.0.1",
            "BACKUP": f"s3://{NAME}-backup/journal?{at}&kms={self.data_key}",
            "BACKUP_KEYS": f"s3://{NAME}-key-backup/keys?{at}&kms={self.data_key}",
            "DATA_DIR": str(self.directory / process),
            "DRAIN_DELAY": "0",
            "HEALTH_INTERVAL": "0.5",
            "REVOCATION_POLL": "0.2",
            "SWEEP_INTERVAL": "1",
            "ERASURE_REPLAY_EVERY": "1",
            "SNAPSHOT_EVERY": "1",
        }
        return {
            **{f"KISEKI_{name}": value for name, value in settings.items()},
            "AWS_CONTAINER_CREDENTIALS_FULL_URI": self.gate.credentials(process),
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_SHARED_CREDENTIALS_FILE": "/nonexistent",
            "AWS_CONFIG_FILE": "/nonexistent",
            "AWS_CA_BUNDLE": str(self.gate.trust),
            "SSL_CERT_FILE": str(self.gate.trust),
        }

    def service(self, process: str) -> Service:
        """A process that serves, not yet started."""
        return Service(self.directory / process, kind=process, environment=self.environment(process))

    def run(self, process: str, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
        """A one-off task with the role of a process, and with these settings besides."""
        more = {f"KISEKI_{name}": value for name, value in settings.items()}
        return subprocess.run(
            [sys.executable, "-m", "kiseki", *arguments],
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            check=False,
            cwd=_ROOT,
            env=clean_environment({**self.environment(process), **more}),
        )

    def function(self) -> LambdaRuntime:
        """The updater as a Lambda, with the credentials of its role in its environment."""
        given = self._callers["updater-function"].credentials
        keys = {
            "AWS_ACCESS_KEY_ID": given["AccessKeyId"],
            "AWS_SECRET_ACCESS_KEY": given["SecretAccessKey"],
            "AWS_SESSION_TOKEN": given["SessionToken"],
        }
        return LambdaRuntime(
            "kiseki.service.lambda_handler.handler",
            path=[_ROOT / "src"],
            environment={**self.environment("updater-function"), **keys},
            timeout=_SECONDS,
        )

    def _database(self, user: str) -> str:
        return f"postgresql://{user}@/{_DATABASES[user]}?host={self._postgres.directory}&port={self._postgres.port}"

    def _make_keys(self) -> None:
        kms = self.client("kms")
        for name in ("data", "master"):
            arn = kms.create_key(MultiRegion=name == "master")["KeyMetadata"]["Arn"]
            kms.create_alias(AliasName=f"alias/{NAME}-{name}", TargetKeyId=arn)
            self._arns[f"alias/{NAME}-{name}"] = arn
        self.data_key = self._arns[f"alias/{NAME}-data"]
        self.master_key = self._arns[f"alias/{NAME}-master"]

    def _key_arn(self, key: str) -> str:
        return self._arns.get(key, key)

    def _secret_arn(self, secret: str) -> str:
        return self._arns.get(secret, secret)

    def _make_secrets(self, redis: RedisServer) -> None:
        values = {"audit": secrets.token_urlsafe(48), "token": self.tokens.secret, "rate-store": redis.url}
        for name, value in values.items():
            made = self.client("secretsmanager").create_secret(
                Name=f"{NAME}/{name}", SecretString=json.dumps({"value": value}), KmsKeyId=self.data_key
            )
            self._arns[made["Name"]] = made["ARN"]

    def _make_tables(self) -> None:
        """As the infrastructure of the release before has them: without an index and a time to live of this one."""
        database = self.client("dynamodb")
        for spec in (*TABLES, KEYS_TABLE, REVOCATIONS_TABLE, ERASURES_TABLE, OPERATIONS_TABLE):
            database.create_table(
                **_creation(spec),
                SSESpecification={"Enabled": True, "SSEType": "KMS", "KMSMasterKeyId": self.data_key},
                OnDemandThroughput={"MaxReadRequestUnits": 10_000, "MaxWriteRequestUnits": 5_000},
                DeletionProtectionEnabled=True,
                Tags=[{"Key": "Name", "Value": f"{NAME}-{spec.name}"}],
            )
            self.client("cloudwatch").put_metric_alarm(
                AlarmName=f"{NAME}-{spec.name}-throttles",
                Namespace="AWS/DynamoDB",
                MetricName="WriteThrottleEvents",
                Dimensions=[{"Name": "TableName", "Value": f"{NAME}-{spec.name}"}],
                Statistic="Sum",
                Period=60,
                EvaluationPeriods=1,
                Threshold=1.0,
                ComparisonOperator="GreaterThanOrEqualToThreshold",
            )


def _creation(spec: TableSpec) -> dict[str, Any]:
    made: dict[str, Any] = {
        "TableName": f"{NAME}-{spec.name}",
        "BillingMode": "PAY_PER_REQUEST",
        "KeySchema": [
            {"AttributeName": key.name, "KeyType": kind}
            for key, kind in zip(_keys(spec), ("HASH", "RANGE"), strict=False)
        ],
        "AttributeDefinitions": [{"AttributeName": key.name, "AttributeType": key.type} for key in _keys(spec)],
    }
    if spec.stream is not None:
        made["StreamSpecification"] = {"StreamEnabled": True, "StreamViewType": spec.stream}
    return made


def _keys(spec: TableSpec | IndexSpec) -> list[Key]:
    return [key for key in (spec.hash_key, spec.range_key) if key is not None]
