"""The images and compose.yaml: pinned, without root, and everything they call is called here, without an engine.

Labelled: not seen in a container. Their commands run for real, as their users, with the environment of compose.yaml,
against a real PostgreSQL and the emulator that the other image installs; only hosts and ports are this machine's.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from kiseki.service.checks import findings
from kiseki.service.kinds import PARTS
from kiseki.service.settings import Settings
from kiseki.service.settings_sources import load_settings
from kiseki.service.shutdown_times import shutdown_shares
from tests.e2e.client import Client
from tests.e2e.test_processes import CREATE, HANAKO, ONE
from tests.infra.images import DOCKER, Image, compose, context, instructions
from tests.infra.support import ENVIRONMENT, NOT_HERE, ROOT
from tests.servers.postgres import NoPostgres, PostgresServer
from tests.servers.processes import free_port

DOCKERFILES = [DOCKER / "Dockerfile", DOCKER / "emulator.Dockerfile"]
PROCESSES = ("command-api", "query-api", "updater")
DIGEST = re.compile(r"[a-z/]+:[0-9a-z.-]+@sha256:[0-9a-f]{64}")
PORTS = ("KISEKI_COMMAND_PORT", "KISEKI_QUERY_PORT", "KISEKI_MANAGEMENT_PORT")
DEFAULTS = Settings()

each_dockerfile = pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.name)


@pytest.fixture(scope="module")
def services() -> dict[str, dict[str, Any]]:
    if not ENVIRONMENT.exists():
        pytest.skip(NOT_HERE)
    found: dict[str, dict[str, Any]] = compose()["services"]
    return found


# What stands there


@each_dockerfile
def test_a_dockerfile_has_no_finding_of_hadolint(dockerfile: Path) -> None:
    hadolint = ENVIRONMENT / "bin" / "hadolint"
    if not hadolint.exists():
        pytest.skip(NOT_HERE)
    done = subprocess.run([hadolint, dockerfile], capture_output=True, check=False, encoding="utf-8")
    assert (done.returncode, done.stdout) == (0, "")


@each_dockerfile
def test_bases_are_pinned_and_equal_and_the_frontend_is_too(dockerfile: Path) -> None:
    bases = {one.words[0] for one in instructions(dockerfile) if one.name == "FROM"}
    assert len(bases) == 1
    assert DIGEST.fullmatch(bases.pop())
    (first, *_) = dockerfile.read_text("utf-8").splitlines()
    assert re.fullmatch(r"# syntax=docker/dockerfile:[0-9.]+@sha256:[0-9a-f]{64}", first)


def test_both_images_have_one_base() -> None:
    bases = {one.words[0] for path in DOCKERFILES for one in instructions(path) if one.name == "FROM"}
    assert len(bases) == 1


@each_dockerfile
def test_an_image_runs_without_root_ends_by_sigterm_and_needs_no_shell(dockerfile: Path) -> None:
    last = {one.name: one for one in instructions(dockerfile)}
    assert last["USER"].value == "10001:10001"
    assert last["STOPSIGNAL"].value == "SIGTERM"
    assert last["ENTRYPOINT"].exec_form
    assert last["HEALTHCHECK"].exec_form
    assert "CMD [" in last["HEALTHCHECK"].value


@each_dockerfile
def test_what_comes_from_the_web_has_a_checksum_and_packages_have_hashes(dockerfile: Path) -> None:
    for one in instructions(dockerfile):
        if one.name == "ADD":
            assert re.match(r"--checksum=sha256:[0-9a-f]{64} ", one.value)
            assert re.search(r" https://\S+ ", one.value)
        if one.name == "RUN":
            for install in re.findall(r"pip (?:--python \S+ )?install ([^&]*)", one.value):
                assert "--require-hashes --only-binary :all:" in install or "--no-deps --no-index" in install
        if one.name == "COPY" and not one.value.startswith("--from="):
            assert set(one.words[:-1]) <= context()


def test_the_image_has_the_ports_and_the_folder_that_the_code_has() -> None:
    last = {one.name: one for one in instructions(DOCKER / "Dockerfile")}
    ports = [DEFAULTS.command_port, DEFAULTS.query_port, DEFAULTS.management_port]
    assert [int(port) for port in last["EXPOSE"].words] == ports
    assert f":{DEFAULTS.management_port}/ready" in last["HEALTHCHECK"].value
    assert last["VOLUME"].exec_form == ["/var/lib/kiseki"]
    assert "KISEKI_DATA_DIR=/var/lib/kiseki" in (DOCKER / "Dockerfile").read_text("utf-8")


def test_the_image_installs_the_versions_that_are_tested() -> None:
    def pins(lock: str) -> dict[str, str]:
        return dict(re.findall(r"(?m)^([a-z0-9._-]+)==(\S+)", (ROOT / lock).read_text("utf-8")))

    image, tested = pins("requirements-image.lock"), pins("requirements-dev.lock")
    assert {"asyncpg", "aiobotocore", "aiohttp", "redis"} <= image.keys()
    assert image.items() <= tested.items()
    assert not {"pytest", "hatchling", "mypy"} & image.keys()


def test_every_service_has_what_keeps_it_in(services: Mapping[str, dict[str, Any]]) -> None:
    for name, service in services.items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert "privileged" not in service, name
        assert "mem_limit" in service, name
        assert "build" in service or DIGEST.fullmatch(service["image"]), name
        assert "user" in service or "build" in service, name
        for port in service.get("ports", ()):
            assert port.startswith("127.0.0.1:"), name


def test_services_are_waited_for_as_they_can_be(services: Mapping[str, dict[str, Any]]) -> None:
    healthy = {"postgres", "aws", *PROCESSES}
    for name, service in services.items():
        for other, how in service.get("depends_on", {}).items():
            assert other in services
            if how["condition"] == "service_healthy":
                assert other in healthy, f"{name} waits for {other}, which has no health check"
            else:
                assert how["condition"] == "service_completed_successfully"
                assert services[other].get("restart", "no") == "no"
    assert services["postgres"]["healthcheck"]["test"][0] == "CMD"
    # `up --wait` takes the end of a service for a failure, unless one that goes on has waited for it.
    ending = {name for name, service in services.items() if service.get("restart", "no") == "no"}
    waited = {other for name in services.keys() - ending for other in services[name].get("depends_on", {})}
    assert ending == {"secrets", "migrate"}
    assert ending <= waited


def test_volumes_are_declared_and_secrets_are_written_by_one_service_alone(
    services: Mapping[str, dict[str, Any]],
) -> None:
    declared = compose()["volumes"].keys()
    writers = set()
    for name, service in services.items():
        for volume in service.get("volumes", ()):
            source, _, rest = volume.partition(":")
            assert source in declared or (DOCKER / source).is_file()
            if source == "secrets" and not rest.endswith(":ro"):
                writers.add(name)
    assert writers == {"secrets"}


def test_no_secret_stands_in_compose(services: Mapping[str, dict[str, Any]]) -> None:
    for service in services.values():
        for variable, value in service.get("environment", {}).items():
            if re.search(r"PASSWORD|SECRET$|_KEY$", variable) and not variable.startswith("AWS_"):
                assert re.match(r"(file://)?/run/kiseki/[a-z.]+$", value), variable
            assert not re.search(r"://[^/@]*:[^/@]*@", value), f"{variable} has a password"


@pytest.mark.parametrize("kind", [*PROCESSES, "migrate"])
def test_settings_of_compose_are_settings_and_fit_into_the_time_that_is_given(
    kind: str, services: Mapping[str, dict[str, Any]], tmp_path: Path
) -> None:
    service = services[kind]
    assert service["command"] == [kind]
    settings = load_settings(options={}, environ=service["environment"], directory=tmp_path, config=None)
    if kind not in PARTS:
        return
    assert findings(settings, service["environment"], PARTS[kind]) == []
    grace = float(service["stop_grace_period"].removesuffix("s"))
    assert settings.termination_grace == grace
    assert sum(share.seconds for share in shutdown_shares(settings, PARTS[kind])) <= grace
    ports = {"command-api": settings.command_port, "query-api": settings.query_port}
    published = [f"127.0.0.1:{ports[kind]}:{ports[kind]}"] if kind in ports else []
    assert service.get("ports", []) == published


# What it does


class Stack:
    """The services of compose.yaml, each run as the engine would run it."""

    def __init__(self, folder: Path, server: PostgresServer) -> None:
        self.services: dict[str, dict[str, Any]] = compose()["services"]
        self.image = Image(DOCKER / "Dockerfile", self._place(folder / "image"))
        self.emulator = Image(DOCKER / "emulator.Dockerfile", self._place(folder / "emulator"))
        self.emulator_port = free_port()
        self.ports: dict[str, dict[str, str]] = {}
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.logs = folder
        self._server = server

    @staticmethod
    def _place(folder: Path) -> Path:
        folder.mkdir(mode=0o755)
        return folder

    def environment(self, name: str) -> dict[str, str]:
        """Its variables, with hosts and ports of this machine; ports are the same at every start."""
        ports = self.ports.setdefault(name, {variable: str(free_port()) for variable in PORTS})
        given = {
            variable: value.replace("postgres:5432", f"127.0.0.1:{self._server.port}").replace(
                "aws:4566", f"127.0.0.1:{self.emulator_port}"
            )
            for variable, value in self.services[name]["environment"].items()
        }
        return {**given, "KISEKI_HOST": "127.0.0.1", **ports}

    def make_secrets(self) -> Path:
        """What `secrets` does, on its volume, which the others have elsewhere."""
        script, volume = self.image.folder / "make_secrets.py", self.image.folder / "run" / "kiseki"
        shutil.copy(DOCKER / "make_secrets.py", script)
        if volume.exists():
            for file in volume.iterdir():
                file.rename(self.image.folder / "var" / "lib" / "kiseki" / file.name)
        done = self.image.run(self.services["secrets"]["entrypoint"], {})
        assert done.returncode == 0, done.stderr
        data = self.image.folder / "var" / "lib" / "kiseki"
        volume.parent.mkdir(exist_ok=True)
        volume.mkdir(exist_ok=True)
        for file in data.iterdir():
            file.rename(volume / file.name)
        return volume

    def prepare_database(self, password: Path) -> None:
        """What the image of PostgreSQL does at its first start."""
        if not self._server.sql("SELECT 1 FROM pg_database WHERE datname = 'kiseki'"):
            self._server.sql("CREATE DATABASE kiseki TEMPLATE template0")
        self._server.sql(f"ALTER ROLE kiseki PASSWORD '{password.read_text('utf-8')}'")

    def start_emulator(self) -> None:
        variables = {"GATEWAY_PORT": str(self.emulator_port), "BIND_HOST": "127.0.0.1"}
        log = self.logs / "aws.log"
        self.processes["aws"] = self.emulator.process(self.emulator.entrypoint, variables, log)
        healthcheck = [word.replace(":4566/", f":{self.emulator_port}/") for word in self.emulator.healthcheck]
        self._until_healthy(self.emulator, healthcheck, {}, "aws")

    def start(self, name: str) -> None:
        """Starts a service without waiting."""
        command = [*self.image.entrypoint, *self.services[name]["command"]]
        self.processes[name] = self.image.process(command, self.environment(name), self.logs / f"{name}.log")

    def kiseki(self, name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """As `docker compose exec` in a service."""
        return self.image.run([*self.image.entrypoint, *arguments], self.environment(name))

    def is_healthy(self, name: str) -> bool:
        """What the health check of the image says."""
        environment = self.environment(name)
        port = environment["KISEKI_MANAGEMENT_PORT"]
        command = [word.replace(f":{DEFAULTS.management_port}/", f":{port}/") for word in self.image.healthcheck]
        return self.image.run(command, environment).returncode == 0

    def until_healthy(self, name: str) -> None:
        deadline = time.monotonic() + 60
        while not self.is_healthy(name):
            assert self.processes[name].poll() is None, self.log(name)
            assert time.monotonic() < deadline, self.log(name)

    def _until_healthy(self, image: Image, command: list[str], environment: Mapping[str, str], name: str) -> None:
        deadline = time.monotonic() + 60
        while image.run(command, environment).returncode != 0:
            assert self.processes[name].poll() is None, self.log(name)
            assert time.monotonic() < deadline, self.log(name)

    def stop(self, name: str) -> tuple[int, float]:
        """As `docker stop`: the exit code, and the seconds that it took."""
        process, began = self.processes.pop(name), time.monotonic()
        process.send_signal(signal.SIGTERM)
        return process.wait(120), time.monotonic() - began

    def kill(self) -> None:
        for process in self.processes.values():
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()

    def log(self, name: str) -> str:
        return (self.logs / f"{name}.log").read_text("utf-8", "replace")[-3_000:]

    def port(self, name: str) -> int:
        return int(self.ports[name][f"KISEKI_{name.removesuffix('-api').upper()}_PORT"])


@pytest.fixture(scope="module")
def stack(services: object) -> Iterator[Stack]:
    folder = Path(tempfile.mkdtemp(prefix="kiseki-image-"))
    folder.chmod(0o755)
    built = None
    own_umask = os.umask(0o022)  # as in a container
    try:
        with PostgresServer() as server:
            built = Stack(folder, server)
            yield built
    except NoPostgres as problem:
        pytest.skip(f"PostgreSQL tests need a server: {problem}")
    finally:
        if built is not None:
            built.kill()
        os.umask(own_umask)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.timeout(600)
def test_the_whole_stack_from_its_first_start_to_its_end(stack: Stack) -> None:
    version = stack.image.run([*stack.image.entrypoint, "version"], {})
    assert version.stdout.startswith("kiseki ")
    volume = stack.make_secrets()
    first = {file.name: file.read_bytes() for file in volume.iterdir()}
    assert first.keys() == {"master.key", "token", "audit", "postgres"}
    assert {file.name: file.read_bytes() for file in stack.make_secrets().iterdir()} == first  # a second start
    assert len(set(first.values())) == len(first)
    stack.prepare_database(volume / "postgres")

    stack.start_emulator()
    migrated = stack.kiseki("migrate", *stack.services["migrate"]["command"])
    assert migrated.returncode == 0, migrated.stderr
    assert not stack.is_healthy("command-api")
    for name in PROCESSES:
        stack.start(name)
    for name in PROCESSES:
        stack.until_healthy(name)

    issued = stack.kiseki("command-api", "token", "issue", "--subject", "me", "--role", "admin", "--role", "user")
    assert issued.returncode == 0, issued.stderr
    token = {"authorization": f"Bearer {issued.stdout.strip()}"}
    created = asyncio.run(write_and_read(stack, token))
    assert created["fullName"] == "花子 山田"
    assert asyncio.run(status_without_token(stack)) == 401

    # The emulator writes down what it has, so that a restart does not leave a read model without a journal.
    code, _ = stack.stop("aws")
    assert code == 0, stack.log("aws")
    stack.start_emulator()
    for name in PROCESSES:
        stack.until_healthy(name)
    verified = stack.kiseki("command-api", "journal", "verify")
    assert verified.returncode == 0, verified.stderr
    assert "1 commits, 1 events, 1 streams" in verified.stdout
    audited = stack.kiseki("command-api", "audit", "verify")
    assert audited.returncode == 0, audited.stderr

    for name in PROCESSES:
        grace = float(stack.services[name]["stop_grace_period"].removesuffix("s"))
        code, seconds = stack.stop(name)
        assert code == 0, stack.log(name)
        assert seconds < grace
        assert "Traceback" not in stack.log(name)
    for secret in ("token", "audit", "postgres"):
        assert not any(first[secret].decode() in stack.log(name) for name in PROCESSES)


async def write_and_read(stack: Stack, token: Mapping[str, str]) -> dict[str, str]:
    async with asyncio.timeout(60), Client(stack.port("command-api")) as commands:
        reply = await commands.graphql(CREATE, {"i": HANAKO}, **token)
        assert reply.status == 200, reply.body
        identifier = reply.json()["data"]["createUserAccount"]["id"]
        seen = {"kiseki-consistency-token": reply.headers["kiseki-consistency-token"], **token}
        async with Client(stack.port("query-api")) as queries:
            while True:
                found = (await queries.graphql(ONE, {"id": identifier}, **seen)).json()
                if "errors" not in found:
                    account: dict[str, str] = found["data"]["getUserAccount"]
                    return account
                await asyncio.sleep(0.2)


async def status_without_token(stack: Stack) -> int:
    """A request through a proxy on this machine, as one through the engine's bridge, is not the development user's."""
    async with asyncio.timeout(30), Client(stack.port("command-api")) as commands:
        reply = await commands.graphql(CREATE, {"i": HANAKO}, **{"x-forwarded-for": "192.0.2.1"})
    return reply.status
