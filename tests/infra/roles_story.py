"""`Story`: what happens to a service from its first release to a restore, once through all its processes.

People are created, renamed, deleted and erased; an erasure is left half done by the command API and finished by the
updater; read models are built by the updater and by the function; tokens are revoked; backups are made, pruned and
restored, and everything begins again on the restored tables.
"""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Final, Self

from tests.e2e.client import Client, Reply
from tests.e2e.processes import Service
from tests.infra.roles_service import AwsAccount
from tests.servers.lambda_runtime import LambdaRuntime

__all__ = ["Story"]

CREATE: Final = "mutation ($i: CreateUserAccountInput!) { createUserAccount(input: $i) { id } }"
RENAME: Final = "mutation ($i: RenameUserAccountInput!) { renameUserAccount(input: $i) { id } }"
DELETE: Final = "mutation ($i: DeleteUserAccountInput!) { deleteUserAccount(input: $i) { id } }"
ERASE: Final = "mutation ($i: EraseUserAccountInput!) { eraseUserAccount(input: $i) { id } }"
GET: Final = "query ($id: String!) { getUserAccount(userAccountId: $id) { firstName lastName } }"
_RESTORE: Final = ("backup", "restore", "--discard-newer", "--writers-stopped")
_SERVING: Final = ("command-api", "query-api", "updater")


class Story:
    """The processes of one service in an account."""

    def __init__(self, account: AwsAccount) -> None:
        self.account = account
        self.running: dict[str, Service] = {}
        self.function: LambdaRuntime = account.function()
        self._read: dict[str, set[str]] = {}

    def __enter__(self) -> Self:
        self.function.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.function.__exit__(kind, problem, trace)
        for service in self.running.values():
            if service.process is not None:
                service.kill()

    def everything(self) -> None:
        """All of it, in order."""
        self.task("migrate", "migrate")
        self.serve(*_SERVING)
        asyncio.run(self.people())
        self.task("operator", "token", "revoke", "--subject", "somebody")
        asyncio.run(self.revoked())
        self.stop("updater")
        asyncio.run(self.by_the_function())
        self.task("backup", "backup", "create")
        self.task("backup", "backup", "prune")
        # 1: there was no drill.
        self.task("backup", "dr", "status", "--embedded-metrics", code=1)
        asyncio.run(self.lost())
        self.stop("command-api", "query-api")
        self.task("operator", *_RESTORE, "--part", "journal")
        self.task("operator", *_RESTORE, "--part", "keys")
        self.task("operator", "keys", "rotate")
        self.serve(*_SERVING)
        asyncio.run(self.people())
        self.stop("updater")
        asyncio.run(self.by_the_function())
        self.stop("command-api", "query-api")

    def task(self, process: str, *arguments: str, code: int = 0) -> None:
        """A one-off task that ends as it should."""
        done = self.account.run(process, *arguments)
        assert done.returncode == code, f"{process}: {done.stdout[-2_000:]}{done.stderr[-2_000:]}"

    def serve(self, *processes: str) -> None:
        """Starts them and waits until they are ready."""
        for process in processes:
            self.running[process] = self.account.service(process)
            self.running[process].start()
        for process in processes:
            asyncio.run(self.running[process].ready())

    def stop(self, *processes: str) -> None:
        """As a release does."""
        for process in processes:
            service = self.running.pop(process)
            assert service.terminate() == 0, service.log.read_text()[-3_000:]

    async def people(self) -> None:
        """Commands in, and what queries then answer."""
        person = {"firstName": "Anna", "lastName": "Berg", "emailAddress": _mail("anna")}
        anna = await self.send(CREATE, key=person["emailAddress"], **person)
        assert await self.send(CREATE, key=person["emailAddress"], **person) == anna
        otto = await self.send(CREATE, firstName="Otto", lastName="Fels", emailAddress=_mail("otto"))
        for name in ("Tal", "See", "Ufer", "Wald"):
            await self.send(RENAME, userAccountId=anna, firstName="Anna", lastName=name)
        await self.until(anna, {"firstName": "Anna", "lastName": "Wald"})
        await self.send(DELETE, userAccountId=otto)
        await self.until(otto, None)
        await self.half_erased(self._nobody)
        await self.send(ERASE, userAccountId=anna)
        await self.until(anna, None)

    async def half_erased(self, deliver: Callable[[], None]) -> None:
        """The command API can't destroy a key for a moment; the updater does it, or the function that is handed it."""
        jana = await self.send(CREATE, firstName="Jana", lastName="Kern", emailAddress=_mail("jana"))
        deliver()
        await self.until(jana, {"firstName": "Jana", "lastName": "Kern"})
        self.account.gate.broken = ("command-api", "dynamodb:PutItem", "-keys")
        reply = await self.post("command-api", ERASE, {"i": {"userAccountId": jana}})
        assert reply.status == 503, reply.body
        deliver()
        await self.until(jana, None)
        self.account.gate.broken = None

    def _nobody(self) -> None:
        """The updater reads the stream by itself."""

    async def revoked(self) -> None:
        """Both APIs hear of it."""
        for process in ("command-api", "query-api"):
            async with asyncio.timeout(20):
                while (await self.post(process, "{ __typename }", {}, subject="somebody")).status != 401:
                    await asyncio.sleep(0.1)

    async def by_the_function(self) -> None:
        """What the function alone brings to the read models."""
        ivan = await self.send(CREATE, firstName="Ivan", lastName="Holm", emailAddress=_mail("ivan"))
        self.deliver()
        await self.until(ivan, {"firstName": "Ivan", "lastName": "Holm"})
        await self.send(ERASE, userAccountId=ivan)
        self.deliver()
        await self.until(ivan, None)
        await self.half_erased(self.deliver)

    async def lost(self) -> None:
        """Somebody whom the backup does not know."""
        await self.send(CREATE, firstName="Lena", lastName="Moor", emailAddress=_mail("lena"))

    def deliver(self) -> None:
        """Gives the function what is new in the stream, as its event source mapping does: with the function's role."""
        streams = self.account.through_the_gate("dynamodbstreams", "updater-function")
        arn = self.account.journal_stream()
        delivered = self._read.setdefault(arn, set())
        records = []
        for shard in streams.describe_stream(StreamArn=arn)["StreamDescription"]["Shards"]:
            iterator = streams.get_shard_iterator(
                StreamArn=arn, ShardId=shard["ShardId"], ShardIteratorType="TRIM_HORIZON"
            )["ShardIterator"]
            found = streams.get_records(ShardIterator=iterator)["Records"]
            records += [each for each in found if each["dynamodb"]["SequenceNumber"] not in delivered]
        delivered |= {each["dynamodb"]["SequenceNumber"] for each in records}
        event = {
            "Records": [{**each, "eventSourceARN": arn} for each in json.loads(json.dumps(records, default=_plain))]
        }
        result = self.function.invoke(event)
        assert result.value == {"batchItemFailures": []}, f"{result}\n{self.function.output[-3_000:]}"

    async def send(self, document: str, *, key: str | None = None, **given: str) -> str:
        """A command that is accepted; the id in its answer."""
        reply = await self.post("command-api", document, {"i": given}, key=key)
        assert reply.status == 200, reply.body
        answer = reply.json()
        assert "errors" not in answer, answer
        return str(next(iter(answer["data"].values()))["id"])

    async def until(self, account: str, wanted: Mapping[str, str] | None) -> None:
        """Waits until queries say this of an account."""
        answer: Any = None
        try:
            async with asyncio.timeout(20):
                while True:
                    reply = await self.post("query-api", GET, {"id": account})
                    assert reply.status == 200, reply.body
                    answer = reply.json()["data"]["getUserAccount"]
                    if answer == wanted:
                        return
                    await asyncio.sleep(0.05)
        except TimeoutError:
            raise AssertionError(f"queries answer {answer}, not {wanted}") from None

    async def post(
        self, process: str, document: str, given: Mapping[str, Any], *, subject: str = "ops", key: str | None = None
    ) -> Reply:
        """A request of an administrator."""
        tokens = self.account.tokens
        token = tokens.made(tokens.claims(subject, "admin", "user"), "HS256")
        headers = {"authorization": f"Bearer {token}", **({} if key is None else {"idempotency-key": key})}
        service = self.running[process]
        port = service.command_port if process == "command-api" else service.query_port
        async with Client(port) as client:
            return await client.graphql(document, given, **headers)


def _mail(name: str) -> str:
    return f"{name}-{time.monotonic_ns()}@example.com"


def _plain(value: Any) -> Any:
    return base64.b64encode(value).decode() if isinstance(value, bytes) else value.timestamp()
