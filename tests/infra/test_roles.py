"""Every process works with the policy of its role: nothing is missing, and nothing more is in it.

The policies are those that Terraform makes. A whole service runs with them on an emulator of AWS (`roles_story`): each
process is one of its own, in the production profile, with temporary credentials of its role.

They are enforced twice. The emulator judges by IAM as far as it goes: actions, tables and their indexes, objects and
secrets. What it does not know (streams, backups and policies of tables, conditions on requests to KMS, aliases of keys,
what a restore writes, the use of the customer's key by DynamoDB, S3 and Secrets Manager) the proxy before it judges
(`roles_proxy`), for every request and by the whole policy. Neither knows what AWS does inside with a role: those rights
stand below, with where AWS says that it needs them.

That a database lets nobody in by IAM but the user of a token is RDS's business: here PostgreSQL is reached by a socket,
and the rights to connect are compared with the users that the settings name.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

import pytest
from botocore.exceptions import ClientError

from kiseki.clients.aws_rds import RdsTokens
from tests.infra.roles_policies import Grant, Needed, Policy
from tests.infra.roles_proxy import Call
from tests.infra.roles_rendered import Rendered, rendered
from tests.infra.roles_service import ACCOUNT, NAME, AwsAccount
from tests.infra.roles_story import CREATE, Story
from tests.infra.support import ROOT
from tests.servers.emulator import REGION, AwsEmulator, NoEmulator
from tests.servers.postgres import NoPostgres, PostgresServer
from tests.servers.redis import NoRedis, RedisServer

TABLE: Final = f"arn:aws:dynamodb:{REGION}:{ACCOUNT}:table/{NAME}"
PROCESSES: Final = {"backup", "command-api", "migrate", "operator", "query-api", "updater", "updater-function"}

REASONS: Final[Mapping[tuple[str, str, str], str]] = {
    ("*", "rds-db:connect", "*"): "signing in is the database's business; see the test of the databases",
    ("command-api", "dynamodb:DeleteItem", "*-claims"): "a command lets go of a unique value; people have none here",
    ("updater", "dynamodb:DeleteItem", "*-claims"): "an erasure lets go of the unique values of a person",
    ("operator", "dynamodb:DeleteItem", "*-claims"): "an erasure lets go of the unique values of a person",
    ("query-api", "dynamodb:PutItem", "*-keys"): "who hears of an erasure carries it out, if nobody has yet",
    ("command-api", "dynamodb:GetItem", "*-journal"): "whose commit is there, when the answer of a transaction is lost",
    ("updater", "dynamodb:GetItem", "*-journal"): "the same for the fact of an erasure",
    ("operator", "dynamodb:GetItem", "*-journal"): "the same for the fact of an erasure",
    ("updater", "dynamodb:PutItem", "*-journal"): "the fact of an erasure that was begun and not decided",
    ("operator", "dynamodb:PutItem", "*-journal"): "the fact of an erasure that was begun and not decided",
    ("updater", "dynamodb:*", "*-snapshots"): "an erasure's snapshots, unless the process that began it removed them",
    ("operator", "dynamodb:*", "*-snapshots"): "an erasure's snapshots, unless the process that began it removed them",
    ("operator", "dynamodb:PutItem", "*-keys"): "the keys of a person, unless the updater destroyed them first",
    ("operator", "dynamodb:PutItem", "*-erasures"): "the line of an erasure, unless the updater ended it first",
    ("backup", "dynamodb:DeleteBackup", "*"): "what is over its age; of the journal the last one that was proved stays",
    ("backup", "s3:AbortMultipartUpload", "*"): "the upload of a large file that somebody cut off",
    ("backup", "s3:ListMultipartUploadParts", "*"): "when that upload was last alive",
    ("operator", "cloudwatch:DeleteAlarms", "*"): "alarms of tables that a restore made before it failed",
    ("operator", "dynamodb:DeleteResourcePolicy", "*"): "a fence that a restore put before it failed, on any table",
    ("operator", "dynamodb:DeleteBackup", "*"): "a backup, of any table, whose maker died before noting it",
    ("operator", "dynamodb:RestoreTableToPointInTime", "*"): "--until; the emulator restores the present",
    ("operator", "dynamodb:DescribeContinuousBackups", "*"): "how far back --until reaches",
    ("updater-function", "dynamodb:ListStreams", "*"): "Lambda refuses a mapping whose role lacks it",
    ("updater-function", "logs:*", "*"): "Lambda writes what the function prints",
    ("updater-function", "ec2:*", "*"): "Lambda attaches the function to the network",
    (
        "updater-function",
        "s3:*",
        "*-failures*",
    ): "Lambda writes what the function gave up, and looks at the bucket before",
    (
        "updater-function",
        "kms:GenerateDataKey",
        "*",
    ): "Lambda writes what the function gave up, into an encrypted bucket",
}
"""Why a process may do what the story does not show that it needs, or not each time. By process, action, resource."""


class World(NamedTuple):
    """The account after the story."""

    account: AwsAccount
    policies: Rendered
    story: tuple[Call, ...]
    """What happened in it."""


@pytest.fixture(scope="module")
def made(infra_tools: None) -> Rendered:
    """What Terraform makes."""
    return rendered()


@contextmanager
def told(made: Rendered, folder: Path) -> Iterator[World]:
    """Everything has happened in it once."""
    with ExitStack() as opened:
        try:
            emulator = opened.enter_context(AwsEmulator(auth=True))
            postgres = opened.enter_context(PostgresServer())
            redis = opened.enter_context(RedisServer())
        except NoEmulator as problem:
            pytest.skip(f"AWS tests need the emulator: {problem}")
        except NoPostgres as problem:
            pytest.skip(f"PostgreSQL tests need a server: {problem}")
        except NoRedis as problem:
            pytest.skip(f"Redis tests need a server: {problem}")
        account = opened.enter_context(AwsAccount(emulator, postgres, redis, folder))
        policies = made.about(data_key=account.data_key, master_key=account.master_key)
        account.gate.key_policies = {
            account.data_key: Policy(policies.key_policies["data"]),
            account.master_key: Policy(policies.key_policies["master"]),
        }
        for process, document in policies.policies.items():
            account.give_role(process, document)
        with Story(account) as story:
            story.everything()
        yield World(account, policies, tuple(account.gate.calls))


@pytest.mark.timeout(300)
def test_the_service_works_with_its_roles_and_nothing_more(
    made: Rendered, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One test, since all of it needs the story, which takes most of a minute."""
    with told(made, tmp_path) as world:
        nothing_is_missing(world)
        nothing_is_more(world)
        for refused in REFUSED:
            it_may_not(world, refused)
        who_makes_backups_opens_nothing(world)
        a_master_key_is_for_wrapping_alone(world)
        for judge in ("the gate", "the emulator"):
            an_action_less_is_missed(world, judge)
        databases(world)
        asyncio.run(a_token_for_a_database_is_signed_here(world, monkeypatch))


def nothing_is_missing(world: World) -> None:
    assert {call.process for call in world.story} == PROCESSES
    assert [str(call.needed) for call in world.story if not call.grants] == []


def nothing_is_more(world: World) -> None:
    """Each grant is one without which something of the story would have been refused."""
    needed = {(call.process, *whole(call.grants)) for call in world.story if len(whole(call.grants)) == 1}
    unneeded = [
        f"{process}: {grant}"
        for process, document in world.policies.policies.items()
        for grant in sorted(whole(Policy(document).grants()))
        if (process, grant) not in needed and not reasons_for(process, grant)
    ]
    assert unneeded == []


def test_every_reason_is_of_something(made: Rendered) -> None:
    granted = [(process, grant) for process, document in made.policies.items() for grant in Policy(document).grants()]
    used = {reason for process, grant in granted for reason in reasons_for(process, grant)}
    assert set(REASONS) - used == set()


def whole(grants: Any) -> set[Grant]:
    """Of the tables of the infrastructure and of a restore's the former: the two are one thing at different times."""
    return {grant._replace(resource=re.sub(r"-r\?+T\?+Z-\?+-(?!\*)", "-", grant.resource)) for grant in grants}


def reasons_for(process: str, grant: Grant) -> list[tuple[str, str, str]]:
    return [
        reason
        for reason in REASONS
        if fnmatchcase(process, reason[0])
        and fnmatchcase(grant.action, reason[1])
        and fnmatchcase(re.sub(r"/(backup|index|stream)/.*", "", grant.resource), reason[2])
    ]


class Refused(NamedTuple):
    """Something that a process may not do."""

    process: str
    service: str
    operation: str
    request: Mapping[str, Any]


def item(table: str, **given: str) -> dict[str, Any]:
    return {
        "TableName": f"{NAME}-{table}",
        "Item": {name.replace("_", "-"): {"S": value} for name, value in given.items()},
    }


COMMIT: Final = {
    "TableName": f"{NAME}-journal",
    "Item": {"persistence-id": {"S": "UserAccount-1"}, "sequence-nr": {"N": "1"}},
}
LINE: Final = {"TableName": f"{NAME}-erasures", "Item": {"ledger": {"S": "erasures"}, "number": {"N": "99"}}}
IN_FORCE: Final = item("operations", name="journal", generation="r20260101T000000Z-aaaaaa")
KEY: Final = {"TableName": f"{NAME}-keys", "Item": {"subject": {"S": "UserAccount-1"}, "number": {"N": "0"}}}
SECRET: Final = {"SecretId": f"{NAME}/rate-store"}


REFUSED: Final = [
    Refused("query-api", "dynamodb", "PutItem", COMMIT),
    Refused("query-api", "dynamodb", "PutItem", LINE),
    Refused("query-api", "dynamodb", "PutItem", item("claims", key="idempotency#1")),
    Refused("query-api", "dynamodb", "PutItem", item("snapshots", stream="UserAccount-1", version="1")),
    Refused("updater-function", "dynamodb", "PutItem", COMMIT),
    Refused("updater-function", "secretsmanager", "GetSecretValue", SECRET),
    Refused("updater", "secretsmanager", "GetSecretValue", SECRET),
    Refused("updater", "secretsmanager", "GetSecretValue", {"SecretId": f"{NAME}/token"}),
    Refused("updater", "dynamodb", "PutItem", item("claims", key="claim#user.name#1")),
    Refused("migrate", "dynamodb", "DeleteTable", {"TableName": f"{NAME}-journal"}),
    Refused("migrate", "dynamodb", "PutItem", COMMIT),
    Refused("command-api", "dynamodb", "UpdateTable", {"TableName": f"{NAME}-journal"}),
    Refused("command-api", "dynamodb", "DeleteItem", {"TableName": f"{NAME}-journal", "Key": COMMIT["Item"]}),
    Refused("command-api", "dynamodb", "DeleteItem", {"TableName": f"{NAME}-keys", "Key": KEY["Item"]}),
    Refused("command-api", "dynamodb", "DeleteItem", {"TableName": f"{NAME}-erasures", "Key": LINE["Item"]}),
    Refused("command-api", "dynamodb", "PutItem", IN_FORCE),
    Refused("command-api", "dynamodb", "Scan", {"TableName": f"{NAME}-keys"}),
    Refused("command-api", "s3", "ListObjectsV2", {"Bucket": f"{NAME}-key-backup"}),
    Refused("backup", "dynamodb", "PutItem", COMMIT),
    Refused("backup", "dynamodb", "PutItem", IN_FORCE),
    Refused("backup", "dynamodb", "DeleteTable", {"TableName": f"{NAME}-journal"}),
    Refused("backup", "dynamodb", "DeleteTable", {"TableName": f"{NAME}-r20260101T000000Z-aaaaaa-journal"}),
    Refused("backup", "dynamodb", "Scan", {"TableName": f"{NAME}-erasures"}),
    Refused("operator", "dynamodb", "DeleteTable", {"TableName": f"{NAME}-journal"}),
    Refused("operator", "dynamodb", "DeleteItem", {"TableName": f"{NAME}-erasures", "Key": LINE["Item"]}),
    Refused("operator", "s3", "PutObject", {"Bucket": f"{NAME}-backup", "Key": "journal/journal/x/manifest.json"}),
    Refused("operator", "secretsmanager", "GetSecretValue", SECRET),
]


def it_may_not(world: World, refused: Refused) -> None:
    """The emulator refuses it, and so does the gate."""
    of_the_emulator = world.account.client(refused.service, world.account.credentials(refused.process))
    of_the_gate = world.account.through_the_gate(refused.service, refused.process)
    for client in [of_the_gate] if refused in CONDITIONS else [of_the_emulator, of_the_gate]:
        with pytest.raises(ClientError) as raised:
            client._make_api_call(refused.operation, dict(refused.request))
        assert "AccessDenied" in str(raised.value), refused


CONDITIONS: Final = [
    Refused("query-api", "dynamodb", "PutItem", COMMIT),
    Refused("query-api", "dynamodb", "PutItem", LINE),
    Refused("query-api", "dynamodb", "PutItem", item("claims", key="idempotency#1")),
    Refused("updater", "dynamodb", "PutItem", item("claims", key="claim#user.name#1")),
    Refused("backup", "dynamodb", "PutItem", IN_FORCE),
]
"""Those that only the key of an item tells from what is allowed, which the emulator does not look at."""


def who_makes_backups_opens_nothing(world: World) -> None:
    keys = world.account.through_the_gate("kms", "command-api")
    context = {"kiseki-context": "0" * 64}
    sealed = keys.encrypt(KeyId=f"alias/{NAME}-master", Plaintext=b"secret", EncryptionContext=context)[
        "CiphertextBlob"
    ]
    asked = {"KeyId": world.account.master_key, "CiphertextBlob": sealed, "EncryptionContext": context}
    assert keys.decrypt(**asked)["Plaintext"] == b"secret"
    with pytest.raises(ClientError, match="AccessDenied"):
        world.account.through_the_gate("kms", "backup").decrypt(**asked)
    with pytest.raises(ClientError, match="AccessDenied"):
        world.account.client("kms", world.account.credentials("backup")).decrypt(**asked)


def a_master_key_is_for_wrapping_alone(world: World) -> None:
    """Without the context of a wrapped key, or with another one, nobody gets an answer."""
    keys = world.account.through_the_gate("kms", "command-api")
    for context in ({}, {"purpose": "other"}, {"kiseki-context": "0", "purpose": "other"}):
        with pytest.raises(ClientError, match="AccessDenied"):
            keys.encrypt(KeyId=world.account.master_key, Plaintext=b"secret", EncryptionContext=context)


def test_who_administers_a_key_can_not_use_it(made: Rendered) -> None:
    administrator = {"aws:PrincipalArn": [f"arn:aws:iam::{ACCOUNT}:role/admin"], "kms:CallerAccount": [ACCOUNT]}
    context = {"kms:EncryptionContextKeys": ["kiseki-context"], **administrator}
    for name, document in made.key_policies.items():
        policy = Policy(document)
        for action in ("Decrypt", "Encrypt", "GenerateDataKey", "ReEncryptFrom", "CreateGrant"):
            assert not policy.allowed_by(Needed(f"kms:{action}", "*", context)), (name, action)
        assert policy.allowed_by(Needed("kms:ScheduleKeyDeletion", "*", administrator))


def an_action_less_is_missed(world: World, judge: str) -> None:
    """The command API, without the right to keep the key of a person, makes no person; with it again, it does."""
    account, policy = world.account, world.policies.policies["command-api"]
    less = without(policy, "KeysOfPeople", "dynamodb:PutItem")
    put: Callable[[Mapping[str, Any]], Any] = (
        account.judge_at_the_gate("command-api")
        if judge == "the gate"
        else lambda given: account.put_policy("command-api", given)
    )
    with Story(account) as story:
        story.serve("command-api")

        async def status() -> int:
            given = {"firstName": "Nora", "lastName": "Ost", "emailAddress": "nora@example.com"}
            return (await story.post("command-api", CREATE, {"i": given})).status

        assert asyncio.run(status()) == 200
        put(less)
        assert asyncio.run(status()) == 503
        put(policy)
        assert asyncio.run(status()) == 200


def without(document: Mapping[str, Any], sid: str, action: str) -> dict[str, Any]:
    """The policy without one action of one statement."""
    statements = [
        {**each, "Action": [one for one in each["Action"] if one != action]} if each["Sid"] == sid else each
        for each in document["Statement"]
    ]
    assert statements != document["Statement"]
    return {**document, "Statement": statements}


def databases(world: World) -> None:
    """A process may sign in as the users that its settings name, and as no other."""
    for process in PROCESSES:
        environment = world.account.environment(process)
        names = ["READ_MODEL"] if process == "updater-function" else ["READ_MODEL", "AUDIT_DATABASE", "AUDIT_ANCHORS"]
        users = {urlsplit(environment[f"KISEKI_{name}"]).username for name in names}
        policy = Policy(world.policies.policies[process])
        assert {
            grant.resource.rpartition("/")[2] for grant in policy.grants() if grant.action == "rds-db:connect"
        } == users
        of_the_server = f"arn:aws:rds-db:{REGION}:{ACCOUNT}:dbuser:db-ABCDEFGHIJKLMNOPQRSTUVWXYZ"
        assert policy.allowed_by(Needed("rds-db:connect", f"{of_the_server}/kiseki", {}))
        for other in ("postgres", "rdsadmin", "kiseki_other"):
            assert not policy.allowed_by(Needed("rds-db:connect", f"{of_the_server}/{other}", {}))
        assert not policy.allowed_by(Needed("rds-db:connect", of_the_server.replace("db-A", "db-B") + "/kiseki", {}))


async def a_token_for_a_database_is_signed_here(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the credentials of the role, and without a call."""
    for name, value in world.account.environment("query-api").items():
        if name.startswith("AWS_"):
            monkeypatch.setenv(name, value)
    monkeypatch.delenv("AWS_ACCESS_KEY_ID", raising=False)
    before = len(world.account.gate.calls)
    token = await RdsTokens(host="db.example.com", port=5432, user="kiseki", region=REGION).password()
    assert token.startswith("db.example.com:5432/?Action=connect&DBUser=kiseki&")
    assert world.account.credentials("query-api")["AccessKeyId"] in token
    assert len(world.account.gate.calls) == before


def test_people_may_look_at_what_is_in_force(made: Rendered) -> None:
    """Whoever runs `kiseki scale show`; its page says what it needs."""
    page = (ROOT / "docs" / "operations" / "scaling.md").read_text(encoding="utf-8")
    (said,) = re.findall(r"It needs the actions (.*?); a refusal", page, re.DOTALL)
    actions = set(re.findall(r"`([a-z-]+:[A-Za-z]+)`", said))
    assert len(actions) > 5
    assert actions <= {grant.action for grant in Policy(made.operators).grants()}


def test_no_policy_is_wide(made: Rendered) -> None:
    """No action has a wildcard, and only what AWS can't narrow down is for every resource."""
    everywhere = {
        grant.action
        for document in made.policies.values()
        for grant in Policy(document).grants()
        if grant.resource == "*"
    }
    assert everywhere == {
        "cloudwatch:DescribeAlarms",
        "dynamodb:ListBackups",
        "dynamodb:ListTables",
        "ec2:AssignPrivateIpAddresses",
        "ec2:CreateNetworkInterface",
        "ec2:DeleteNetworkInterface",
        "ec2:DescribeNetworkInterfaces",
        "ec2:DescribeSubnets",
        "ec2:UnassignPrivateIpAddresses",
    }
    wild = [grant for document in made.policies.values() for grant in Policy(document).grants() if "*" in grant.action]
    assert wild == []


def test_each_role_is_taken_by_one_service_of_this_account(made: Rendered) -> None:
    services = {
        **dict.fromkeys((f"{NAME}-{process}" for process in PROCESSES), "ecs-tasks.amazonaws.com"),
        f"{NAME}-updater-function": "lambda.amazonaws.com",
        f"{NAME}-deploy": "ecs.amazonaws.com",
        f"{NAME}-schedule": "scheduler.amazonaws.com",
        **dict.fromkeys(
            (f"{NAME}-{process}-start" for process in PROCESSES - {"operator", "updater-function"}),
            "ecs-tasks.amazonaws.com",
        ),
    }
    assert set(made.trust) == set(services)
    for role, document in made.trust.items():
        (statement,) = document["Statement"]
        assert statement["Action"] == "sts:AssumeRole"
        assert statement["Principal"] == {"Service": services[role]}
        says_for_whom = services[role] in ("ecs-tasks.amazonaws.com", "scheduler.amazonaws.com")
        operator = "StringEquals" if says_for_whom else "StringEqualsIfExists"
        assert statement["Condition"][operator] == {"aws:SourceAccount": ACCOUNT}
