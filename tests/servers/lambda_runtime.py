"""`LambdaRuntime`: runs a function with AWS's own runtime client, as one execution environment of Lambda does.

    with LambdaRuntime("package.module.handler", path=[...], environment={...}) as function:
        result = function.invoke({"Records": []})       # result.value, or result.error as AWS words it

The process is started by the first invocation and stays warm; one that died, or was killed because its time was up, is
started anew by the next. https://docs.aws.amazon.com/lambda/latest/dg/runtimes-api.html
"""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Final, NamedTuple, Self

from tests.servers.processes import clean_environment, die_with_parent

__all__ = ["LambdaRuntime", "Result"]

_LOOK: Final = 0.02
_KEPT_OUTPUT: Final = 1_000_000
_START_SECONDS: Final = 60.0


class Result(NamedTuple):
    """How an invocation ended: with a value, or with an error (`errorType`, `errorMessage`)."""

    value: Any
    error: dict[str, Any] | None
    seconds: float


class _Invocation(NamedTuple):
    request_id: str
    event: bytes


class _Answer(NamedTuple):
    request_id: str | None
    """None for an error while the process was starting."""
    failed: bool
    body: bytes


class LambdaRuntime:
    """One execution environment at a time, and the Runtime API on loopback that it asks for events."""

    def __init__(
        self,
        handler: str,
        *,
        path: Sequence[Path | str] = (),
        environment: Mapping[str, str] | None = None,
        timeout: float = 30.0,
        name: str = "function",
        python: str = sys.executable,
    ) -> None:
        """`path`: where modules are, the first of them is the function's package. `timeout`: seconds of an event, to
        which the start of the process does not count."""
        self.timeout = timeout
        self.name = name
        self.starts = 0
        """How many environments there were."""
        self._handler = handler
        self._path = [str(part) for part in path]
        self._environment = dict(environment or {})
        self._python = python
        self._events: queue.Queue[_Invocation] = queue.Queue()
        self._answers: queue.Queue[_Answer] = queue.Queue()
        self._process: subprocess.Popen[bytes] | None = None
        self._taken_at: float | None = None
        self._output = bytearray()
        self._server = _Server(self)

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()
        self._server.shutdown()
        self._server.server_close()

    @property
    def output(self) -> str:
        """What the function wrote, newest last."""
        return self._output.decode(errors="replace")

    def lines(self) -> list[dict[str, Any]]:
        """The lines of its output that are JSON."""
        return [json.loads(line) for line in self.output.splitlines() if line.startswith("{")]

    def reports(self, count: int) -> list[dict[str, Any]]:
        """The lines that report on an invocation, once there are so many: a pipe may bring them after the answer."""
        deadline = time.monotonic() + _START_SECONDS
        while len(found := [line for line in self.lines() if "_aws" in line]) < count:
            assert time.monotonic() < deadline, f"{len(found)} of {count} invocations were reported"
            time.sleep(_LOOK)
        return found

    def invoke(self, event: Any) -> Result:
        """One event through the handler. An error, a crash and a timeout come back as errors, as from Lambda."""
        started = time.perf_counter()
        process = self._running()
        invocation = _Invocation(str(uuid.uuid4()), json.dumps(event).encode())
        self._taken_at = None
        self._events.put(invocation)
        put_at = time.monotonic()
        while True:
            try:
                answer = self._answers.get(timeout=_LOOK)
            except queue.Empty:
                if process.poll() is not None:
                    self.kill()
                    return _error("Runtime.ExitError", f"the process ended with {process.returncode}", started)
                taken_at = self._taken_at
                deadline = put_at + _START_SECONDS if taken_at is None else taken_at + self.timeout
                if time.monotonic() > deadline:
                    self.kill()  # with all that was in the environment
                    return _error("Sandbox.Timedout", f"timed out after {self.timeout:g} seconds", started)
                continue
            if answer.request_id is None:
                self.kill()
            elif answer.request_id != invocation.request_id:
                continue
            seconds = time.perf_counter() - started
            body = json.loads(answer.body or b"null")
            return Result(None, body, seconds) if answer.failed else Result(body, None, seconds)

    def freeze(self) -> None:
        """Stops the process where it is, as Lambda does between two invocations."""
        os.killpg(self._alive().pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """Lets it go on."""
        os.killpg(self._alive().pid, signal.SIGCONT)

    def kill(self) -> None:
        """Ends the environment without a word; the next invocation starts another one."""
        process, self._process = self._process, None
        if process is not None:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        for waiting in (self._events, self._answers):
            while not waiting.empty():
                waiting.get_nowait()

    def _alive(self) -> subprocess.Popen[bytes]:
        assert self._process is not None
        return self._process

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            self.kill()
            root = self._path[0] if self._path else "/"
            environment = clean_environment(
                {
                    "AWS_LAMBDA_RUNTIME_API": f"127.0.0.1:{self._server.server_port}",
                    "_HANDLER": self._handler,
                    "LAMBDA_TASK_ROOT": root,
                    "AWS_LAMBDA_FUNCTION_NAME": self.name,
                    "AWS_LAMBDA_FUNCTION_VERSION": "$LATEST",
                    "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": "512",
                    "AWS_LAMBDA_LOG_GROUP_NAME": f"/aws/lambda/{self.name}",
                    "AWS_LAMBDA_LOG_STREAM_NAME": "local",
                    "AWS_LAMBDA_INITIALIZATION_TYPE": "on-demand",
                    "AWS_REGION": "eu-west-1",
                    "AWS_DEFAULT_REGION": "eu-west-1",
                    "AWS_ACCESS_KEY_ID": "test",
                    "AWS_SECRET_ACCESS_KEY": "test",
                    "AWS_SESSION_TOKEN": "test",
                    "PYTHONPATH": os.pathsep.join(self._path),
                    "PYTHONDONTWRITEBYTECODE": "1",
                    **self._environment,
                }
            )
            self.starts += 1
            self._process = subprocess.Popen(
                # The client reads the handler's name from its arguments.
                [self._python, "-m", "awslambdaric", self._handler],
                env=environment,
                cwd=root,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                preexec_fn=die_with_parent(signal.SIGKILL),  # noqa: PLW1509  # it allocates nothing
                start_new_session=True,
            )
            threading.Thread(target=self._drain, args=(self._process,), daemon=True).start()
        return self._process

    def _drain(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            self._output += line
            del self._output[:-_KEPT_OUTPUT]

    def next_event(self) -> _Invocation | None:
        """Waits for an event, as long as the process that asks for one lives."""
        process = self._process
        while process is not None and process is self._process and process.poll() is None:
            try:
                invocation = self._events.get(timeout=0.2)
            except queue.Empty:
                continue
            self._taken_at = time.monotonic()
            return invocation
        return None

    def answered(self, answer: _Answer) -> None:
        """The process has ended with an event, or could not start."""
        self._answers.put(answer)


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, runtime: LambdaRuntime) -> None:
        super().__init__(("127.0.0.1", 0), _Api)
        self.runtime = runtime

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A killed process resets its connection; that is no news."""


class _Api(BaseHTTPRequestHandler):
    """The Runtime API. Answers go out in one piece: a second piece would wait 40 ms for the first one's receipt."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1
    server: _Server

    def do_GET(self) -> None:
        if not self.path.endswith("/runtime/invocation/next"):
            self._say(404, b"{}")
            return
        invocation = self.server.runtime.next_event()
        if invocation is None:
            self.close_connection = True
            return
        name, timeout = self.server.runtime.name, self.server.runtime.timeout
        self._say(
            200,
            invocation.event,
            {
                "Lambda-Runtime-Aws-Request-Id": invocation.request_id,
                "Lambda-Runtime-Deadline-Ms": str(int((time.time() + timeout) * 1000)),
                "Lambda-Runtime-Invoked-Function-Arn": f"arn:aws:lambda:eu-west-1:000000000000:function:{name}",
                "Lambda-Runtime-Trace-Id": "Root=1-5bef4de7-ad49b0e87f6ef6c87fc2e700;Sampled=0",
            },
        )

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        *_, request_id, kind = self.path.split("/")
        if kind in ("response", "error"):
            is_start = self.path.endswith("/runtime/init/error")
            self.server.runtime.answered(_Answer(None if is_start else request_id, kind == "error", body))
        self._say(202, b'{"status":"OK"}')

    def _say(self, status: int, body: bytes, headers: Mapping[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {
            "Content-Type": "application/json",
            "Content-Length": str(len(body)),
            **(headers or {}),
        }.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)
        self.wfile.flush()

    def log_message(self, *_: Any) -> None: ...


def _error(kind: str, message: str, started: float) -> Result:
    return Result(None, {"errorType": kind, "errorMessage": message}, time.perf_counter() - started)
