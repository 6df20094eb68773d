"""`main`: the entry point of `kiseki` and `python -m kiseki`, and the list of its commands.

A command's own module is imported when the command runs, so that `kiseki --help` and `kiseki version` are quick.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from kiseki._version import __version__

__all__ = ["main", "run"]

# Some versions of typer carry a copy of click and others use the installed one; these are the classes it raises.
_USAGE_ERROR: type[Exception] = typer.BadParameter.__mro__[1]
_CLICK_EXCEPTION: type[Exception] = typer.BadParameter.__mro__[2]

# Of what a command may import of an extra when it runs.
_EXTRAS = {"asyncpg": "postgres", "sqlalchemy": "postgres", "aiobotocore": "aws", "botocore": "aws", "aiohttp": "aws"}

_APPLICATION_HELP = "Application to run, as package.module:attribute; without it the shipped user accounts."
_CONFIG_HELP = "TOML file with settings; kiseki.toml in this folder if there is one."

Application = Annotated[str | None, typer.Option("--app", metavar="MODULE:ATTRIBUTE", help=_APPLICATION_HELP)]
Config = Annotated[Path | None, typer.Option("--config", metavar="FILE", help=_CONFIG_HELP)]
DataDir = Annotated[Path | None, typer.Option("--data-dir", metavar="FOLDER", help="Folder of the embedded stores.")]
Json = Annotated[bool, typer.Option("--json", help="JSON for programs instead of tables for people.")]

_plain = {"rich_markup_mode": None, "add_completion": False, "pretty_exceptions_enable": False}
app = typer.Typer(help="Event-sourced services, ready for production from the first command.", **_plain)  # type: ignore[arg-type]
journal = typer.Typer(help="Look into the journal.", **_plain)  # type: ignore[arg-type]
projection = typer.Typer(help="Look at read models, and mend them.", **_plain)  # type: ignore[arg-type]
access = typer.Typer(help="Who may do what.", **_plain)  # type: ignore[arg-type]
app.add_typer(access, name="access")
audit = typer.Typer(help="The log of security events.", **_plain)  # type: ignore[arg-type]
app.add_typer(audit, name="audit")
keys = typer.Typer(help="Master keys of personal data.", **_plain)  # type: ignore[arg-type]
app.add_typer(keys, name="keys")
token = typer.Typer(help="Tokens, for people at a terminal.", **_plain)  # type: ignore[arg-type]
app.add_typer(token, name="token")
erasure = typer.Typer(help="Erasures of people, and the ledger that remembers them.", **_plain)  # type: ignore[arg-type]
app.add_typer(erasure, name="erasure")
backup = typer.Typer(help="Copies of the stores, and the way back.", **_plain)  # type: ignore[arg-type]
app.add_typer(backup, name="backup")
dr = typer.Typer(help="Disaster recovery: regions, failover, drills.", **_plain)  # type: ignore[arg-type]
app.add_typer(dr, name="dr")
database = typer.Typer(help="A new PostgreSQL server.", **_plain)  # type: ignore[arg-type]
app.add_typer(database, name="database")
scale = typer.Typer(help="How far the service may grow.", **_plain)  # type: ignore[arg-type]
app.add_typer(scale, name="scale")
app.add_typer(journal, name="journal")
app.add_typer(projection, name="projection")


def main() -> None:
    """Runs the command line of this process and ends the process."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Runs one command; gives the exit code: 0, 1 for what failed, 2 for what was asked in the wrong way.

    What a person can mend is one line on standard error, `kiseki: what, where, what to do`, and never a traceback.
    """
    try:
        outcome = app(args=list(arguments) or ["--help"], prog_name="kiseki", standalone_mode=False)
    except _CLICK_EXCEPTION as problem:
        return _misused(problem)
    except typer.Abort:
        return 130
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # Whoever read the output has gone; Python would complain once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except ModuleNotFoundError as problem:
        library = (problem.name or "").partition(".")[0]
        extra = _EXTRAS.get(library)
        if extra is None:
            raise
        _complain(f"this needs {library}, which is not installed; pip install 'kiseki[{extra}]'")
        return 1
    except Exception as problem:
        from kiseki.kernel.errors import KisekiError

        if not isinstance(problem, KisekiError):
            raise
        if not getattr(problem, "already_told", False):
            _complain(str(problem))
        return 1
    return outcome if isinstance(outcome, int) else 0


def _misused(problem: Any) -> int:
    context = problem.ctx if isinstance(problem, _USAGE_ERROR) else None  # type: ignore[attr-defined]
    where = f" (see `{context.command_path} --help`)" if context is not None else ""
    _complain(f"{problem.format_message().rstrip('.')}{where}")
    return int(problem.exit_code)


def _complain(message: str) -> None:
    print(f"kiseki: {message}", file=sys.stderr)


@app.command()
def version() -> None:
    """Show the version."""
    print(f"kiseki {__version__}")


def _add_process(name: str, description: str) -> None:
    def command(
        *,
        application: Application = None,
        config: Config = None,
        profile: Annotated[str | None, typer.Option(help="development (default) or production.")] = None,
        data_dir: DataDir = None,
        host: Annotated[str | None, typer.Option(help="Address to listen on (default 127.0.0.1).")] = None,
        command_port: Annotated[int | None, typer.Option(help="Command API (default 18080; 0: any free).")] = None,
        query_port: Annotated[int | None, typer.Option(help="Query API (default 18082; 0: any free).")] = None,
        management_port: Annotated[int | None, typer.Option(help="Health and metrics (default 8558).")] = None,
        workers: Annotated[int | None, typer.Option(help="API processes (default 1).")] = None,
        drain_delay: Annotated[float | None, typer.Option(help="Seconds to serve on after SIGTERM.")] = None,
        log_level: Annotated[str | None, typer.Option(help="debug, info (default), warning or error.")] = None,
        log_format: Annotated[str | None, typer.Option(help="console or json.")] = None,
    ) -> None:
        from kiseki.cli.signals import end_at_once

        end_at_once()
        from kiseki.cli.serve import serve

        serve(
            name,
            application=application,
            config=config,
            options={
                "profile": profile,
                "data_dir": data_dir,
                "host": host,
                "command_port": command_port,
                "query_port": query_port,
                "management_port": management_port,
                "workers": workers,
                "drain_delay": drain_delay,
                "log_level": log_level,
                "log_format": log_format,
            },
        )

    app.command(name, help=description)(command)


_add_process("serve", "Run everything: command API, query API, updater and management.")
_add_process("command-api", "Run the command API alone.")
_add_process("query-api", "Run the query API alone.")
_add_process("updater", "Run the updater of read models alone.")


@app.command(hidden=True)
def worker() -> None:
    """Run what a supervisor says on standard input."""
    from kiseki.cli.signals import ignore

    ignore()
    from kiseki.cli.serve import work

    work()


@app.command()
def migrate(config: Config = None, data_dir: DataDir = None) -> None:
    """Make and upgrade the tables of all stores; run it once before a new release starts."""
    from kiseki.cli.migrate import migrate as run_migrate

    run_migrate(config=config, data_dir=data_dir)


@app.command()
def check(
    deploy: Annotated[bool, typer.Option("--deploy", help="As the production profile looks at it.")] = False,
    process: Annotated[
        str, typer.Option(metavar="KIND", help="What would run: serve (default), command-api, query-api or updater.")
    ] = "serve",
    config: Config = None,
    data_dir: DataDir = None,
    json: Json = False,
) -> int:
    """Say what is unsafe about the settings, and what to do about it, without starting anything."""
    from kiseki.cli.check import check as run_check
    from kiseki.service.kinds import PARTS

    if process not in PARTS:
        raise typer.BadParameter(f"{process!r} is none of {', '.join(PARTS)}", param_hint="--process")
    return run_check(config=config, data_dir=data_dir, deploy=deploy, json=json, parts=PARTS[process])


@access.command("show")
def access_show(application: Application = None, json: Json = False) -> None:
    """Show the roles and object rules of every command and query."""
    from kiseki.cli.access import show

    show(application=application, json=json)


@journal.command("show")
def journal_show(
    stream: Annotated[str, typer.Argument(help="Full name, such as UserAccount-01J…")],
    config: Config = None,
    data_dir: DataDir = None,
    json: Json = False,
) -> None:
    """Show the events of a stream. Personal data stays sealed."""
    from kiseki.cli.journal import show

    show(stream, config=config, data_dir=data_dir, json=json)


@journal.command("verify")
def journal_verify(config: Config = None, data_dir: DataDir = None) -> int:
    """Read the whole journal and say whether everything in it is as it was written."""
    from kiseki.cli.journal import verify

    return verify(config=config, data_dir=data_dir)


@journal.command("export")
def journal_export(
    file: Annotated[
        Path | None, typer.Argument(help="File to write; .gz compresses; standard output unless given.")
    ] = None,
    force: Annotated[bool, typer.Option(help="Replace a file that is there.")] = False,
    config: Config = None,
    data_dir: DataDir = None,
    json: Json = False,
) -> None:
    """Write the whole journal as lines of JSON. Personal data stays sealed. Stop the writers first."""
    from kiseki.cli.journal import opened_journal, settings_of
    from kiseki.cli.transfer import export

    export(file, opened=opened_journal(settings_of(config, data_dir)), force=force, json=json)


@journal.command("import")
def journal_import(
    file: Annotated[Path | None, typer.Argument(help="File to read; standard input unless given.")] = None,
    config: Config = None,
    data_dir: DataDir = None,
    json: Json = False,
) -> None:
    """Fill an empty journal from an export, and compare; again after an interruption it goes on."""
    from kiseki.cli.journal import opened_journal, settings_of
    from kiseki.cli.transfer import import_

    import_(file, opened=opened_journal(settings_of(config, data_dir), make=True), json=json)


@audit.command("tail")
def audit_tail(
    lines: Annotated[int, typer.Option("--lines", "-n", min=1, max=10_000, help="How many records.")] = 20,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with those that come.")] = False,
    config: Config = None,
    data_dir: DataDir = None,
    json: Json = False,
) -> None:
    """Show the newest security events of all processes."""
    from functools import partial

    from kiseki.cli.audit import tail
    from kiseki.cli.journal import settings_of
    from kiseki.cli.opened import opened_audit_log

    tail(opened=partial(opened_audit_log, settings_of(config, data_dir)), lines=lines, follow=follow, json=json)


@audit.command("verify")
def audit_verify(
    since: Annotated[str | None, typer.Option(help="Older records were deleted on purpose; a time, UTC.")] = None,
    config: Config = None,
    data_dir: DataDir = None,
    json: Json = False,
) -> int:
    """Find every change, deletion or insertion in the audit log, up to the last anchor."""
    from functools import partial

    from kiseki.cli.audit import verify
    from kiseki.cli.journal import settings_of
    from kiseki.cli.opened import opened_audit_log

    return verify(opened=partial(opened_audit_log, settings_of(config, data_dir)), since=since, json=json)


@audit.command("export")
def audit_export(
    *,
    file: Annotated[Path, typer.Argument(help="File to write; a manifest is written beside it.")],
    since: Annotated[str | None, typer.Option(help="From this time on, UTC.")] = None,
    until: Annotated[str | None, typer.Option(help="Before this time, UTC.")] = None,
    kept_since: Annotated[str | None, typer.Option(help="Older records were deleted on purpose.")] = None,
    force: Annotated[bool, typer.Option(help="Replace a file that is there.")] = False,
    config: Config = None,
    data_dir: DataDir = None,
) -> int:
    """Write a verified copy of the audit log."""
    from functools import partial

    from kiseki.cli.audit import export
    from kiseki.cli.journal import settings_of
    from kiseki.cli.opened import opened_audit_log

    opened = partial(opened_audit_log, settings_of(config, data_dir))
    return export(file, opened=opened, since=since, until=until, kept_since=kept_since, force=force)


@database.command("prepare")
def database_prepare(
    admin: Annotated[
        str,
        typer.Option(metavar="URL", help="postgresql://… of the server's administrator; refer to the password."),
    ],
    config: Config = None,
    data_dir: DataDir = None,
) -> None:
    """Make the databases and roles that the settings name, once, on a server that has none; then `kiseki migrate`."""
    from kiseki.cli.database import prepare

    prepare(admin=admin, config=config, data_dir=data_dir)


@keys.command("status")
def keys_status(config: Config = None, data_dir: DataDir = None, json: Json = False) -> int:
    """Show how many keys of people each master key wraps."""
    from functools import partial

    from kiseki.cli.journal import settings_of
    from kiseki.cli.keys import status
    from kiseki.cli.opened import opened_keys

    return status(opened=partial(opened_keys, settings_of(config, data_dir)), json=json)


@keys.command("rotate")
def keys_rotate(config: Config = None, data_dir: DataDir = None, json: Json = False) -> int:
    """Wrap all keys with the current master key, once every process has it. Events stay as they are."""
    from functools import partial

    from kiseki.cli.journal import settings_of
    from kiseki.cli.keys import rotate
    from kiseki.cli.opened import opened_keys

    return rotate(opened=partial(opened_keys, settings_of(config, data_dir)), json=json)


@token.command("issue")
def token_issue(
    *,
    subject: Annotated[str, typer.Option(help="Whose token it is (`sub`).")],
    role: Annotated[list[str] | None, typer.Option(help="A role; may be given again.")] = None,
    user_id: Annotated[str | None, typer.Option(help="The id of their own account (`userId`).")] = None,
    lifetime: Annotated[int, typer.Option(help="Seconds for which it is valid.")] = 3_600,
    key: Annotated[Path | None, typer.Option(help="Private key (PEM); without it token_secret.")] = None,
    production: Annotated[bool, typer.Option("--production", help="In the production profile: yes, really.")] = False,
    config: Config = None,
    data_dir: DataDir = None,
) -> None:
    """Issue a token, alone on standard output. It is recorded in the audit log."""
    import asyncio

    from kiseki.cli.journal import settings_of
    from kiseki.cli.opened import opened_issuer, operator
    from kiseki.cli.token import issue

    async def run() -> None:
        async with opened_issuer(settings_of(config, data_dir), key) as issuer:
            await issue(
                issuer,
                subject,
                roles=role or [],
                lifetime=lifetime,
                user_id=user_id,
                actor=operator(),
                production=production,
            )

    asyncio.run(run())


@token.command("inspect")
def token_inspect(
    text: Annotated[
        str | None, typer.Argument(metavar="[TOKEN]", help="Better on standard input: others see arguments.")
    ] = None,
    config: Config = None,
    data_dir: DataDir = None,
    json: Json = False,
) -> int:
    """Say what a token says, whether it is accepted now, and if not why."""
    import asyncio

    from kiseki.cli.journal import settings_of
    from kiseki.cli.opened import opened_identity
    from kiseki.cli.token import inspect

    async def run() -> int:
        async with opened_identity(settings_of(config, data_dir)) as opened:
            return await inspect(text, verifier=opened.verifier, json=json)

    return asyncio.run(run())


@token.command("revoke")
def token_revoke(
    subject: Annotated[str, typer.Option(help="Whose tokens are not to be believed any more.")],
    config: Config = None,
    data_dir: DataDir = None,
) -> None:
    """Revoke all tokens of a subject that were issued until now. It is recorded in the audit log."""
    import asyncio

    from kiseki.cli.journal import settings_of
    from kiseki.cli.opened import opened_identity, operator
    from kiseki.cli.token import revoke

    async def run() -> None:
        settings = settings_of(config, data_dir)
        async with opened_identity(settings) as opened:
            await revoke(opened.revocations, settings.token_issuer, subject, actor=operator())

    asyncio.run(run())


@erasure.command("status")
def erasure_status(config: Config = None, data_dir: DataDir = None, json: Json = False) -> None:
    """Show what the ledger of erasures holds, and how far it was proved to be in force."""
    from kiseki.cli.erasure import status

    status(config=config, data_dir=data_dir, json=json)


@erasure.command("begin")
def erasure_begin(config: Config = None, data_dir: DataDir = None) -> None:
    """Begin the ledger of a journal that never had one, as after an import. Never after a restore: put it back then."""
    from kiseki.cli.erasure import begin

    begin(config=config, data_dir=data_dir)


@erasure.command("replay")
def erasure_replay(
    everything: Annotated[bool, typer.Option("--all", help="Look at every erasure, not only the newest.")] = False,
    application: Application = None,
    config: Config = None,
    data_dir: DataDir = None,
    json: Json = False,
) -> int:
    """Bring every erasure of the ledger into force, as every process does before it serves."""
    from kiseki.cli.erasure import replay

    return replay(application=application, config=config, data_dir=data_dir, everything=everything, json=json)


@erasure.command("verify")
def erasure_verify(config: Config = None, data_dir: DataDir = None) -> int:
    """Read the whole ledger, check that nothing in it was changed, and that every key is destroyed."""
    from kiseki.cli.erasure import verify

    return verify(config=config, data_dir=data_dir)


@projection.command("status")
def projection_status(config: Config = None, data_dir: DataDir = None, json: Json = False) -> None:
    """Show how far read models are, measured against the journal, and what is parked."""
    from kiseki.cli.projection import status

    status(config=config, data_dir=data_dir, json=json)


@projection.command("retry")
def projection_retry(
    name: Annotated[str | None, typer.Argument(help="A projection; without it all of them.")] = None,
    stream: Annotated[str | None, typer.Option(help="Only this parked stream.")] = None,
    application: Application = None,
    config: Config = None,
    data_dir: DataDir = None,
) -> int:
    """Apply the events of parked streams again, in order."""
    from kiseki.cli.projection import retry

    return retry(name, stream=stream, application=application, config=config, data_dir=data_dir)


@projection.command("rebuild")
def projection_rebuild(
    name: Annotated[str, typer.Argument(help="The projection.")],
    application: Application = None,
    config: Config = None,
    data_dir: DataDir = None,
) -> int:
    """Build a read model anew beside the live one, and switch over when it has caught up."""
    from kiseki.cli.projection import rebuild

    return rebuild(name, application=application, config=config, data_dir=data_dir)


Parts = Annotated[
    list[str] | None,
    typer.Option("--part", metavar="PART", help="journal, audit, keys or read-models; may be given again."),
]


def _part_names(parts: list[str] | None) -> list[str]:
    known = ("journal", "audit", "keys", "read-models")
    for part in parts or ():
        if part not in known:
            raise typer.BadParameter(f"{part!r} is no part; they are {', '.join(known)}")
    return parts or []


@backup.command("create")
def backup_create(parts: Parts = None, config: Config = None, data_dir: DataDir = None, json: Json = False) -> int:
    """Copy the live stores, which go on being used, and prove each copy by restoring it."""
    from kiseki.cli.backup import create

    return create(_part_names(parts), config=config, data_dir=data_dir, json=json)


@backup.command("list")
def backup_list(config: Config = None, data_dir: DataDir = None, json: Json = False) -> int:
    """Show what backups there are, and which were proved."""
    from kiseki.cli.backup import list_

    return list_(config=config, data_dir=data_dir, json=json)


@backup.command("verify")
def backup_verify(
    *,
    identity: Annotated[str | None, typer.Argument(metavar="[ID]", help="A backup; without it the newest.")] = None,
    parts: Parts = None,
    everything: Annotated[bool, typer.Option("--all", help="Every backup, not only the newest.")] = False,
    config: Config = None,
    data_dir: DataDir = None,
    json: Json = False,
) -> int:
    """Restore backups into a throw-away place and compare them, event by event, with the live stores."""
    from kiseki.cli.backup import verify

    return verify(identity, _part_names(parts), everything=everything, config=config, data_dir=data_dir, json=json)


@backup.command("prune")
def backup_prune(parts: Parts = None, config: Config = None, data_dir: DataDir = None, json: Json = False) -> int:
    """Remove old backups; of journal and audit log never the last one that was proved."""
    from kiseki.cli.backup import prune

    return prune(_part_names(parts), config=config, data_dir=data_dir, json=json)


@backup.command("restore")
def backup_restore(
    *,
    identity: Annotated[
        str | None, typer.Argument(metavar="[ID]", help="A backup of the journal; without it the newest there is.")
    ] = None,
    parts: Parts = None,
    until: Annotated[str | None, typer.Option(help="The journal as it was at a time, UTC.")] = None,
    discard_newer: Annotated[
        bool, typer.Option("--discard-newer", help="What is live and newer may be lost; it is kept aside.")
    ] = False,
    writers_stopped: Annotated[
        bool, typer.Option("--writers-stopped", help="DynamoDB: no process of the service runs, so none can be fenced.")
    ] = False,
    catch_up: Annotated[bool, typer.Option(help="Build read models before it is done.")] = True,
    cluster: Annotated[
        Path | None, typer.Option(help="PostgreSQL: put a whole cluster together in this empty folder.")
    ] = None,
    application: Application = None,
    config: Config = None,
    data_dir: DataDir = None,
    json: Json = False,
) -> int:
    """Bring back what is lost, or the parts that are named. The live stores stay as they are until all is verified."""
    from kiseki.cli.backup import restore

    return restore(
        identity,
        _part_names(parts),
        application=application,
        until=until,
        discard_newer=discard_newer,
        writers_stopped=writers_stopped,
        catch_up=catch_up,
        cluster=None if cluster is None else cluster.absolute(),
        config=config,
        data_dir=data_dir,
        json=json,
    )


@backup.command("protect")
def backup_protect(
    once: Annotated[bool, typer.Option("--once", help="One copy of what is new, then end.")] = False,
    config: Config = None,
    data_dir: DataDir = None,
) -> int:
    """Copy what is new every minute, until told to end: what keeps a lost machine from costing more."""
    from kiseki.cli.backup import protect

    return protect(once=once, config=config, data_dir=data_dir)


OtherSite = Annotated[Path | None, typer.Option("--other", metavar="FILE", help="Settings of the other site (TOML).")]


@dr.command("begin")
def dr_begin(config: Config = None, data_dir: DataDir = None) -> None:
    """Begin the lease of a journal that never had one, or whose lease was lost: this site writes."""
    from kiseki.cli.dr import begin

    begin(config=config, data_dir=data_dir)


@dr.command("status")
def dr_status(
    *,
    other: OtherSite = None,
    config: Config = None,
    data_dir: DataDir = None,
    json: Json = False,
    embedded_metrics: Annotated[
        bool,
        typer.Option("--embedded-metrics", help="Only the ages, as one line from which CloudWatch makes metrics."),
    ] = False,
) -> int:
    """Show which site writes, how far the other one is behind, and how old backups and the last drill are."""
    from functools import partial

    from kiseki.application.system import SystemClock
    from kiseki.cli.dr import print_ages, status
    from kiseki.cli.journal import settings_of
    from kiseki.operations.dr.ages import ages

    if embedded_metrics:
        if other or json:
            raise typer.BadParameter(
                "has the ages of this site alone, in a format of its own", param_hint="--embedded-metrics"
            )
        return print_ages(config=config, data_dir=data_dir)
    more = [partial(ages, settings_of(config, data_dir), SystemClock().now())]
    return status(config=config, data_dir=data_dir, other=other, json=json, more=more)


@dr.command("failover")
def dr_failover(
    *,
    other: OtherSite = None,
    forced: Annotated[
        bool, typer.Option("--forced", help="The other site can't be asked: wait until its lease has lapsed.")
    ] = False,
    unfenced: Annotated[
        bool, typer.Option("--unfenced", help="Without a lease: nothing proves that the other site has stopped.")
    ] = False,
    config: Config = None,
    data_dir: DataDir = None,
    json: Json = False,
) -> None:
    """Make this site the one that writes. Planned unless told otherwise: stop, drain, verify, switch."""
    from kiseki.cli.dr import failover

    failover(config=config, data_dir=data_dir, other=other, forced=forced, unfenced=unfenced, json=json)


@dr.command("failback")
def dr_failback(
    *,
    other: Annotated[Path, typer.Option("--other", metavar="FILE", help="Settings of the other site (TOML).")],
    output: Annotated[
        Path, typer.Option(metavar="FILE", help="Where diverged commits are written; a new file.")
    ] = Path("diverged.jsonl"),
    accept: Annotated[
        Path | None,
        typer.Option("--accept-diverged", metavar="FILE", help="They are all in this file, and need not be here."),
    ] = None,
    config: Config = None,
    data_dir: DataDir = None,
    json: Json = False,
) -> int:
    """Say what the site that wrote before a forced failover has and this one lacks, and keep it."""
    from kiseki.cli.dr import failback

    return failback(config=config, data_dir=data_dir, other=other, output=output, accept=accept, json=json)


@dr.command("drill")
def dr_drill(
    *,
    store: Annotated[str, typer.Option(help="sqlite or postgresql.")] = "sqlite",
    events: Annotated[int, typer.Option(min=10, help="In the journal that is destroyed.")] = 10_000,
    clients: Annotated[int, typer.Option(min=1, max=256, help="That write while it is destroyed.")] = 16,
    interval: Annotated[float, typer.Option(min=1, max=300, help="Seconds between two copies of what is new.")] = 60,
    shortest: Annotated[float, typer.Option(min=0, help="Seconds under load before it is destroyed, at least.")] = 5,
    longest: Annotated[float, typer.Option(min=0, help="And at most.")] = 90,
    folder: Annotated[Path | None, typer.Option(help="An empty folder to work in; a temporary one unless set.")] = None,
    config: Config = None,
    data_dir: DataDir = None,
    json: Json = False,
) -> int:
    """Destroy a copy of the system under load, recover it, and measure detection, RPO and RTO."""
    from kiseki.cli.drill import drill

    return drill(
        store,
        events=events,
        clients=clients,
        interval=interval,
        moments=(shortest, longest),
        folder=folder,
        config=config,
        data_dir=data_dir,
        json=json,
    )


@dr.command("probe")
def dr_probe(
    urls: Annotated[list[str], typer.Argument(help="What has to answer 200, such as http://shop:8558/ready.")],
    *,
    every: Annotated[float, typer.Option(min=0.1, help="Seconds between two looks.")] = 10,
    failures: Annotated[int, typer.Option(min=1, help="Bad looks in a row after which it is down.")] = 3,
    once: Annotated[bool, typer.Option("--once", help="End with the first finding: 0 up, 1 down.")] = False,
    json: Json = False,
) -> int:
    """Watch a system from outside, and say when it is down and when it is back."""
    from kiseki.cli.drill import probe

    return probe(urls, every=every, failures=failures, once=once, json=json)


Tasks = Annotated[
    list[str] | None,
    typer.Option(
        "--tasks",
        metavar="KIND=MIN-MAX",
        help="Tasks of a kind: command-api and query-api 3-20, updater 1-2, migrate 0-1, lambda (environments of the "
        "function at a time) 0, serve 0, unless given. Several times for several kinds.",
    ),
]
Limits = Annotated[
    list[str] | None,
    typer.Option(
        "--limit",
        metavar="[HOST:PORT=]N|CLASS",
        help="Connections that PostgreSQL takes: max_connections, or the class of an RDS instance.",
    ),
]
Cpu = Annotated[float, typer.Option(min=20, max=90, help="Percent of CPU that is aimed at.")]
ScaleOut = Annotated[int, typer.Option(min=0, max=3_600, help="Seconds between two steps up.")]
ScaleIn = Annotated[int, typer.Option(min=0, max=3_600, help="Seconds between two steps down.")]
Surge = Annotated[float, typer.Option(min=1, max=3, help="Times the tasks while a release is deployed.")]
Others = Annotated[int, typer.Option(min=0, help="Connections of people, backups and monitoring.")]
Expected = Annotated[float | None, typer.Option(min=0, help="Expected a second, at the busiest time.")]
PerTask = Annotated[float | None, typer.Option(min=0.1, help="What one task does a second, as measured.")]
CommitBytes = Annotated[int, typer.Option(min=1, max=409_600, help="Of an item of the DynamoDB journal.")]
Claims = Annotated[float, typer.Option(min=0, help="Unique values that a command takes or lets go.")]
WriteMaximum = Annotated[int | None, typer.Option(min=1, help="On-demand maximum of a table, units of writing/s.")]


@scale.command("plan")
def scale_plan(
    *,
    tasks: Tasks = None,
    cpu: Cpu = 70.0,
    scale_out: ScaleOut = 60,
    scale_in: ScaleIn = 300,
    surge: Surge = 2.0,
    others: Others = 10,
    limits: Limits = None,
    commands: Expected = None,
    commands_per_task: PerTask = None,
    queries: Expected = None,
    queries_per_task: PerTask = None,
    commit_bytes: CommitBytes = 1_024,
    claims: Claims = 1.0,
    write_maximum: WriteMaximum = None,
    application: Application = None,
    config: Config = None,
    data_dir: DataDir = None,
    json: Json = False,
) -> None:
    """Count what so many tasks need of databases, and fail where it does not fit. Asks nobody."""
    from kiseki.cli.scale import Options, show_plan

    options = Options(
        tasks=tasks or (),
        cpu=cpu,
        scale_out=scale_out,
        scale_in=scale_in,
        surge=surge,
        others=others,
        limits=limits or (),
        commands=commands,
        commands_per_task=commands_per_task,
        queries=queries,
        queries_per_task=queries_per_task,
        commit_bytes=commit_bytes,
        claims=claims,
        write_maximum=write_maximum,
    )
    show_plan(options, application=application, config=config, data_dir=data_dir, json=json)


@scale.command("show")
def scale_show(
    *,
    region: Annotated[str | None, typer.Option(help="Of AWS; the journal's unless given.")] = None,
    cluster: Annotated[
        str | None, typer.Option(help="Of ECS; the prefix of the journal's tables unless given.")
    ] = None,
    services: Annotated[
        list[str] | None,
        typer.Option("--service", metavar="KIND=NAME", help="Name of a service of ECS: the kind's; KIND= for none."),
    ] = None,
    instance: Annotated[str | None, typer.Option("--db-instance", metavar="NAME", help="An RDS instance.")] = None,
    tasks: Tasks = None,
    cpu: Cpu = 70.0,
    scale_out: ScaleOut = 60,
    scale_in: ScaleIn = 300,
    surge: Surge = 2.0,
    others: Others = 10,
    limits: Limits = None,
    commands: Expected = None,
    commit_bytes: CommitBytes = 1_024,
    claims: Claims = 1.0,
    application: Application = None,
    config: Config = None,
    data_dir: DataDir = None,
    json: Json = False,
) -> None:
    """Show what AWS and the databases say is in force, and fail where it is not as planned. Changes nothing."""
    from kiseki.cli.scale import Options, show

    options = Options(
        tasks=tasks or (),
        cpu=cpu,
        scale_out=scale_out,
        scale_in=scale_in,
        surge=surge,
        others=others,
        limits=limits or (),
        commands=commands,
        commit_bytes=commit_bytes,
        claims=claims,
    )
    show(
        options,
        application=application,
        region=region,
        cluster=cluster,
        services=services or (),
        instance=instance,
        config=config,
        data_dir=data_dir,
        json=json,
    )
