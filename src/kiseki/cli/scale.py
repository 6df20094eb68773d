"""`kiseki scale`: how far the service may grow, whether what is behind it takes that, and what is in force."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from kiseki.cli.applications import load_application
from kiseki.cli.journal import settings_of
from kiseki.clients.dynamodb_address import DynamoDbAddress
from kiseki.operations.errors import OperationFailed
from kiseki.operations.scaling.connections import KINDS, Kind, servers_of
from kiseki.operations.scaling.dynamodb import Commands
from kiseki.operations.scaling.limits import RDS_RESERVED, Limit, limit_of
from kiseki.operations.scaling.plan import Policy, Rate, Tasks, Wanted, plan, require_none
from kiseki.operations.scaling.words import finding_lines, in_force_lines, plan_lines
from kiseki.security.secrets.passwords import SecretPassword
from kiseki.service.secrets import opened_secrets
from kiseki.service.settings import Settings
from kiseki.service.store_urls import StoreKind, store_urls

if TYPE_CHECKING:  # the libraries of PostgreSQL and AWS are needed only where these are asked
    from kiseki.operations.scaling.in_force import InstanceInForce, ServiceInForce, TableInForce
    from kiseki.operations.scaling.sessions import ServerInForce

__all__ = ["Options", "show", "show_plan"]

_TABLES: Final = {"journal": ("journal", "claims"), "keys": ("keys",)}
_TASKS: Final = (
    Tasks(kind="command-api", minimum=3, maximum=20),
    Tasks(kind="query-api", minimum=3, maximum=20),
    Tasks(kind="updater", minimum=1, maximum=2),
    Tasks(kind="migrate", minimum=0, maximum=1),
)
_SERVICES: Final[tuple[Kind, ...]] = ("command-api", "query-api", "updater")


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """What the command line says about the plan; numbers that are None were not given."""

    tasks: Sequence[str]
    """KIND=MIN-MAX, or KIND=N."""
    cpu: float
    scale_out: int
    scale_in: int
    surge: float
    others: int
    limits: Sequence[str]
    """HOST:PORT=WHAT, or WHAT for all."""
    commands: float | None
    commit_bytes: int
    claims: float
    commands_per_task: float | None = None
    queries: float | None = None
    queries_per_task: float | None = None
    write_maximum: int | None = None


class _InForce(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    services: tuple[ServiceInForce, ...]
    instance: InstanceInForce | None
    servers: tuple[ServerInForce, ...]
    tables: tuple[TableInForce, ...]
    notes: tuple[str, ...]


def show_plan(
    options: Options, *, application: str | None, config: Path | None, data_dir: Path | None, json: bool
) -> None:
    """Prints the plan. Raises TooMuch when it does not fit, OperationFailed, SettingsError."""
    settings = settings_of(config, data_dir)
    made = plan(settings, _wanted(options, application, _limits(options.limits)))
    if json:
        print(msgspec.json.encode(made).decode())
    else:
        for line in (*plan_lines(made), *finding_lines(made.findings)):
            print(line)
    require_none(made.findings)


def show(
    options: Options,
    *,
    application: str | None,
    region: str | None,
    cluster: str | None,
    services: Sequence[str],
    instance: str | None,
    config: Path | None,
    data_dir: Path | None,
    json: bool,
) -> None:
    """Prints what is in force beside the plan. Raises TooMuch when they differ, OperationFailed, SettingsError."""
    from kiseki.operations.scaling.compare import differences  # noqa: PLC0415 - as above

    settings = settings_of(config, data_dir)
    limits = _limits(options.limits)
    plan(settings, _wanted(options, application, limits))  # what is asked in the wrong way is said before AWS is asked
    addresses = _on_dynamodb(settings)
    first = next(iter(addresses.values()), None)
    region = region or (first.region if first is not None else None)
    cluster = cluster or (first.prefix if first is not None else None)
    if region is None or cluster is None:
        raise OperationFailed("the journal is not on DynamoDB, so --region and --cluster have to be given")
    found = asyncio.run(
        _in_force(
            settings,
            region=region,
            cluster=cluster,
            names=_service_names(services),
            instance=instance,
            addresses=addresses,
        )
    )
    limits |= _limits_in_force(settings, found)
    made = plan(settings, _wanted(options, application, limits))
    findings = (*made.findings, *differences(made, found.services, found.tables))
    if json:
        shown = {**msgspec.to_builtins(found), "plan": made, "findings": findings}
        print(msgspec.json.encode(shown).decode())
    else:
        print(f"in force in {region}, cluster {cluster}")
        for line in (
            *in_force_lines(found.services, found.instance, found.tables),
            *found.notes,
            *plan_lines(made),
            *finding_lines(findings),
        ):
            print(line)
    require_none(findings)


async def _in_force(
    settings: Settings,
    *,
    region: str,
    cluster: str,
    names: Mapping[Kind, str],
    instance: str | None,
    addresses: Mapping[str, DynamoDbAddress],
) -> _InForce:
    from kiseki.operations.scaling.in_force import AwsScaling  # noqa: PLC0415 - as above

    aws = AwsScaling(region)
    services = await aws.services(cluster, names)
    database = None if instance is None else await aws.instance(instance)
    tables: list[TableInForce] = []
    for setting, address in addresses.items():
        there = AwsScaling(address.region, dynamodb_endpoint=address.endpoint)
        tables += await there.tables(address.prefix, _TABLES[setting])
    servers, notes = await _ask_servers(settings)
    return _InForce(services=services, instance=database, servers=servers, tables=tuple(tables), notes=notes)


async def _ask_servers(settings: Settings) -> tuple[tuple[ServerInForce, ...], tuple[str, ...]]:
    """What each server that the settings name says, and a note for each that can't be asked from here."""
    named = servers_of(settings)
    if not named:
        return (), ()
    from kiseki.clients.postgres import PostgresAddress  # noqa: PLC0415 - as above
    from kiseki.operations.scaling.sessions import server_in_force  # noqa: PLC0415

    found, notes = [], []
    async with opened_secrets(settings) as secrets:
        for server, url in named.items():
            address = PostgresAddress.parse(url, schema="public", passwords=partial(SecretPassword, secrets))
            try:
                found.append(await server_in_force(server, address))
            except OperationFailed as problem:
                notes.append(f"note: {problem}")
    return tuple(found), tuple(notes)


def _limits_in_force(settings: Settings, found: _InForce) -> dict[str, Limit]:
    limits = {}
    database = found.instance
    if database is not None:
        known = servers_of(settings)
        if database.server not in known:
            raise OperationFailed(
                f"the RDS instance {database.name} is {database.server}, and the servers of the settings are: "
                f"{', '.join(known) or 'none'}"
            )
        if database.max_connections is not None:
            limits[database.server] = Limit(database.max_connections, RDS_RESERVED, database.instance_class)
    for server in found.servers:
        limits[server.server] = Limit(server.max_connections, server.reserved, f"in force, {server.open} open")
    return limits


def _wanted(options: Options, application: str | None, limits: Mapping[str, Limit]) -> Wanted:
    tasks = {one.kind: one for one in (*_TASKS, *map(_tasks, options.tasks))}
    rates = []
    for what, rate, each in (
        ("commands", options.commands, options.commands_per_task),
        ("queries", options.queries, options.queries_per_task),
    ):
        if each is not None and rate is None:
            raise OperationFailed(f"--{what}-per-task says nothing without --{what}, the number expected a second")
        if rate is not None and each is not None:
            rates.append(Rate(what=what, per_second=rate, per_task=each))
    commands = None
    if options.commands is not None:
        commands = Commands(per_second=options.commands, commit_bytes=options.commit_bytes, claims=options.claims)
    return Wanted(
        tasks=tuple(one for one in tasks.values() if one.maximum),
        policy=Policy(cpu=options.cpu, scale_out=options.scale_out, scale_in=options.scale_in),
        surge=options.surge,
        others=options.others,
        projections=len(load_application(application).projections),
        limits=limits,
        commands=commands,
        rates=tuple(rates),
        write_maximum=options.write_maximum,
    )


def _tasks(text: str) -> Tasks:
    kind, _, numbers = text.partition("=")
    low, is_range, high = numbers.partition("-")
    if not low.isdecimal() or (is_range and not high.isdecimal()):
        raise OperationFailed(f"--tasks {text!r} has to be KIND=MIN-MAX or KIND=N, such as command-api=3-20")
    return Tasks(kind=_kind(kind, "--tasks"), minimum=int(low), maximum=int(high or low))


def _kind(text: str, option: str) -> Kind:
    for kind in KINDS:
        if kind == text:
            return kind
    raise OperationFailed(f"{option} names {text!r}; the kinds are {', '.join(KINDS)}")


def _limits(texts: Sequence[str]) -> dict[str, Limit]:
    limits = {}
    for text in texts:
        server, _, what = text.rpartition("=")
        limits[server] = limit_of(what)
    return limits


def _service_names(texts: Sequence[str]) -> Mapping[Kind, str]:
    names: dict[Kind, str] = {kind: kind for kind in _SERVICES}
    for text in texts:
        kind, _, name = text.partition("=")
        names[_kind(kind, "--service")] = name
    return {kind: name for kind, name in names.items() if name}


def _on_dynamodb(settings: Settings) -> Mapping[str, DynamoDbAddress]:
    """The tables of the journal and of keys, where those are on DynamoDB."""
    return {
        one.setting: DynamoDbAddress.parse(one.text)
        for one in store_urls(settings)[:2]
        if one.kind is StoreKind.DYNAMODB
    }
