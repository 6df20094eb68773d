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
from concurrent.futures import ThreadPoolExecutor
from functools import partial
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
        self.first("query-api")
        self.serve("command-api", "updater")
        asyncio.run(self.ready("query-api"))
        asyncio.run(self.people())
        with ThreadPoolExecutor() as together:
            revoking = together.submit(self.task, "operator", "token", "revoke", "--subject", "somebody")
            self.stop("updater")
            asyncio.run(self.by_the_function())
            asyncio.run(self.half_erased(partial(self.task, "operator", "erasure", "replay")))
            revoking.result()
        asyncio.run(self.revoked())
        self.task("backup", "backup", "create")
        self.account.leave_remains()
        with ThreadPoolExecutor() as together:
            # 1: there was no drill.
            asked = together.submit(self.task, "backup", "dr", "status", "--embedded-metrics", code=1)
            proved = [together.submit(self.task, "backup", log, "verify") for log in ("audit", "journal")]
            asyncio.run(self.lost())
            asked.result()
            for one in proved:
                one.result()
            self.task("operator", "erasure", "verify")
        self.stop("command-api", "query-api")
        self.task("operator", *_RESTORE, "--part", "journal")
        self.task("operator", *_RESTORE, "--part", "keys")
        with ThreadPoolExecutor() as together:
            release = together.submit(self.task, "migrate", "migrate")
            self.task("operator", "keys", "rotate")
            release.result()
        self.serve(*_SERVING)
        with ThreadPoolExecutor() as together:
            # 1: there is no copy of keys left.
            pruned = together.submit(self.task, "backup", "backup", "prune", code=1, BACKUP_PRIVATE_DAYS="0.00001")
            asyncio.run(self.people())
            self.stop("updater")
            asyncio.run(self.by_the_function())
            pruned.result()
        self.stop("command-api", "query-api")

    def task(self, process: str, *arguments: str, code: int = 0, **settings: str) -> None:
        """A one-off task that ends as it should."""
        done = self.account.run(process, *arguments, **settings)
        assert done.returncode == code, f"{process}: {done.stdout[-2_000:]}{done.stderr[-2_000:]}"

    def start(self, process: str) -> None:
        """Without waiting."""
        self.running[process] = self.account.service(process)
        self.running[process].start()

    def first(self, process: str) -> None:
        """Starts it, and waits until it has noted how far erasures are in force: who is first does."""
        self.start(process)
        deadline = time.monotonic() + 30
        while not self._noted(process):
            assert time.monotonic() < deadline, self.running[process].log.read_text()[-3_000:]
            time.sleep(0.05)

    def serve(self, *processes: str) -> None:
        """Starts them and waits until they are ready."""
        for process in processes:
            self.start(process)
        for process in processes:
            asyncio.run(self.ready(process))

    async def ready(self, process: str) -> None:
        """Waits until it is."""
        await self.running[process].ready()

    def _noted(self, process: str) -> bool:
        return any(
            call.process == process
            and call.needed.action == "dynamodb:PutItem"
            and call.needed.resource.endswith("-erasures")
            for call in list(self.account.gate.calls)
        )

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
        self.deliver(damaged=True)
        await self.until(ivan, {"firstName": "Ivan", "lastName": "Holm"})
        await self.send(ERASE, userAccountId=ivan)
        self.deliver()
        await self.until(ivan, None)
        await self.half_erased(self.deliver)

    async def lost(self) -> None:
        """Somebody whom the backup does not know."""
        await self.send(CREATE, firstName="Lena", lastName="Moor", emailAddress=_mail("lena"))

    def deliver(self, *, damaged: bool = False) -> None:
        """Gives the function what is new in the stream, as its event source mapping does: with the function's role.
        What is `damaged` can't be read out of the stream any more."""
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
        if damaged:
            for record in records:
                record["dynamodb"]["NewImage"] = record["dynamodb"]["Keys"]
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
