"""`Gatekeeper`: a proxy over TLS before the emulator. It notes who calls what, and refuses what no policy allows.

It judges by `roles_policies` what `roles_requests` reads out of each request, so that resources, indexes, encryption
contexts and the use of the customer's KMS key count, also where the emulator leaves them out. Also an endpoint of
credentials, as ECS gives tasks those of their role.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import threading
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Final, NamedTuple, Self

import aiohttp
from aiohttp import web
from yarl import URL

from tests.infra.roles_policies import Grant, Needed, Policy
from tests.infra.roles_requests import Account, Request, credential_of, needs_of
from tests.servers.certificates import Authority
from tests.servers.processes import free_port

__all__ = ["Call", "Caller", "Gatekeeper"]

_OF_A_HOP: Final = frozenset({"connection", "keep-alive", "transfer-encoding", "te", "upgrade", "content-length"})


class Caller(NamedTuple):
    """Who has an access key."""

    process: str
    role: str
    """The ARN."""
    policy: Policy
    credentials: Mapping[str, Any]
    """As STS gave them."""


class Call(NamedTuple):
    """One thing that a process needed, and what of its policy allowed it."""

    process: str
    needed: Needed
    grants: tuple[Grant, ...]


class Gatekeeper:
    """`endpoint` goes to the emulator; `credentials(process)` is where a process gets its keys."""

    def __init__(self, emulator: str, directory: Path, account: Account) -> None:
        self.calls: list[Call] = []
        self.key_policies: dict[str, Policy] = {}
        """By the ARN of the key; these have to allow, too."""
        self.broken: tuple[str, str, str] | None = None
        """A process, an action, and how a resource ends: that is refused and not noted."""
        self._emulator = emulator
        self._account = account
        self._callers: dict[str, Caller] = {}
        self._authority = Authority(directory, "Emulator Authority")
        self.trust = self._authority.trust
        self._certificate = self._authority.issue("emulator")
        self._ports = (free_port(), free_port())
        self.endpoint = f"https://localhost:{self._ports[0]}"
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="gatekeeper", daemon=True)
        self._session: aiohttp.ClientSession | None = None
        self._runners: list[web.AppRunner] = []

    def __enter__(self) -> Self:
        self._thread.start()
        self._run(self._start())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._run(self._stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def admit(self, caller: Caller) -> None:
        """From now on this access key is known; another one of the same process counts no more."""
        self._callers = {
            **{key: each for key, each in self._callers.items() if each.process != caller.process},
            caller.credentials["AccessKeyId"]: caller,
        }

    def credentials(self, process: str) -> str:
        """The URL for AWS_CONTAINER_CREDENTIALS_FULL_URI."""
        return f"http://127.0.0.1:{self._ports[1]}/{process}"

    def refused(self) -> list[Call]:
        """What was asked for and not allowed."""
        return [call for call in self.calls if not call.grants]

    def _run(self, work: Any) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    async def _start(self) -> None:
        self._session = aiohttp.ClientSession(auto_decompress=False, timeout=aiohttp.ClientTimeout(total=60))
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(self._certificate.certificate, self._certificate.key)
        for handler, port, context in (
            (self._forward, self._ports[0], tls),
            (self._keys, self._ports[1], None),
        ):
            served = web.Application(client_max_size=64 * 1024 * 1024)
            served.router.add_route("*", "/{path:.*}", handler)
            runner = web.AppRunner(served, access_log=None)
            await runner.setup()
            self._runners.append(runner)
            await web.TCPSite(runner, "127.0.0.1", port, ssl_context=context).start()

    async def _stop(self) -> None:
        for runner in self._runners:
            await runner.cleanup()
        if self._session is not None:
            await self._session.close()

    async def _keys(self, request: web.Request) -> web.Response:
        process = request.path.removeprefix("/")
        for caller in self._callers.values():
            if caller.process == process:
                given = caller.credentials
                return web.json_response(
                    {
                        "AccessKeyId": given["AccessKeyId"],
                        "SecretAccessKey": given["SecretAccessKey"],
                        "Token": given["SessionToken"],
                        "Expiration": given["Expiration"].isoformat(),
                        "RoleArn": caller.role,
                    }
                )
        return web.Response(status=404)

    async def _forward(self, request: web.Request) -> web.Response:
        body = await request.read()
        headers = {name.lower(): value for name, value in request.headers.items()}
        refusal = self._judge(Request(request.method, request.raw_path, headers, body))
        if refusal is not None:
            return refusal
        assert self._session is not None
        kept = {name: value for name, value in request.headers.items() if name.lower() not in _OF_A_HOP}
        url = URL(f"{self._emulator}{request.raw_path}", encoded=True)
        async with self._session.request(request.method, url, headers=kept, data=body, allow_redirects=False) as answer:
            content = await answer.read()
            given = {name: value for name, value in answer.headers.items() if name.lower() not in _OF_A_HOP}
            if request.method == "HEAD" and "Content-Length" in answer.headers:
                given["Content-Length"] = answer.headers["Content-Length"]
            return web.Response(status=answer.status, headers=given, body=content)

    def _judge(self, request: Request) -> web.Response | None:
        """The answer when something is not allowed."""
        credential = credential_of(request)
        caller = None if credential is None else self._callers.get(credential.access_key)
        if credential is None or caller is None:
            return _refusal(request, "nobody here has these credentials")
        for needed in needs_of(request, credential, self._account):
            if self._is_broken(caller, needed):
                return _refusal(request, "broken on purpose")
            grants = self._grants(caller, needed)
            self.calls.append(Call(caller.process, needed, grants))
            if not grants:
                return _refusal(request, f"{caller.role} is not authorized to perform: {needed}")
        return None

    def _is_broken(self, caller: Caller, needed: Needed) -> bool:
        if self.broken is None:
            return False
        process, action, end = self.broken
        return (caller.process, needed.action) == (process, action) and needed.resource.endswith(end)

    def _grants(self, caller: Caller, needed: Needed) -> tuple[Grant, ...]:
        known = needed._replace(context={**needed.context, "aws:PrincipalArn": [caller.role]})
        if needed.action.startswith("kms:") and not self.key_policies[needed.resource].allowed_by(known):
            return ()
        return tuple(caller.policy.allowed_by(known))


def _refusal(request: Request, message: str) -> web.Response:
    if "x-amz-target" in request.headers:
        answer = {"__type": "com.amazon.coral.service#AccessDeniedException", "Message": message}
        return web.Response(status=400, text=json.dumps(answer), content_type="application/x-amz-json-1.0")
    text = f"<Error><Code>AccessDenied</Code><Message>{message}</Message></Error>"
    return web.Response(status=403, text=text, content_type="application/xml")
