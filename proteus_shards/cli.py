"""The command line: options → settings → the running server, or a look at its store, or a copy of it.

The options of `serve` are generated from `Settings`, and everything a user gives is checked in one place, `load_settings`; argparse only
splits the words. Exit codes: 0 ended as asked, 1 failed, 2 a wrong option or setting. What a command finds out goes to standard output, how it
gets on and what went wrong to standard error. The commands that speak to a running server stand in `commands`. No URL of a store is ever shown: it may hold a password.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import TypeAlias

import msgspec

from proteus_shards import __version__, logs
from proteus_shards.commands import cluster, completion, jobs, lines, queues, watch
from proteus_shards.config import CONFIG_VARIABLE, Setting, load_settings, settings_table
from proteus_shards.errors import ProteusError, ReplacedError, SettingError
from proteus_shards.store.registry import check_url
from proteus_shards.tokens import EVERY_QUEUE, Scope, new_token

EXIT_FAILED = 1
EXIT_USAGE = 2  # argparse's own choice too
EXIT_REPLACED = 3  # not to be started again: another server has its place

_DOCTORS_SETTINGS = ("store", "require_durability")
_IMPORTS_SETTINGS = ("store", "shards")
_MARKS = {"good": "ok", "note": "note", "warning": "warning", "fault": "FAULT"}
_Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"  # noqa: SLF001  # it has no public name

_EPILOG = """\
Each option may also stand in the environment or in the settings file (TOML, the option's name without the leading dashes). An option
wins over the environment, which wins over the file. Sizes may end in KiB, MiB or GiB; durations are seconds.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    parser = build_parser()
    arguments = parser.parse_args(argv)
    try:
        code: int = arguments.run(arguments)
    except SettingError as error:
        return _fail(error, EXIT_USAGE)
    except ReplacedError as error:
        return _fail(error, EXIT_REPLACED)
    except ProteusError as error:
        return _fail(error, EXIT_FAILED)
    except KeyboardInterrupt:
        return EXIT_FAILED
    return code


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line."""
    parser = argparse.ArgumentParser(prog="proteus-shards", description="An ordered job runner over HTTP.", allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"proteus-shards {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    serve = commands.add_parser(
        "serve",
        usage="proteus-shards serve [options]",
        help="run a server until SIGTERM or Ctrl-C",
        description="Run a server until SIGTERM or Ctrl-C; a second one ends it at once.",
        epilog=_EPILOG,
        allow_abbrev=False,
    )
    serve.set_defaults(run=_serve)
    serve.add_argument("--config", metavar="FILE", help=f"settings file [env: {CONFIG_VARIABLE}]")
    groups = {title: serve.add_argument_group(title) for title in ("server", "storage", "limits", "logs")}
    for setting in settings_table():
        _add_option(groups[setting.group], setting)
    _add_doctor(commands)
    _add_store(commands)
    _add_import(commands)
    _add_token(commands)
    for module in (jobs, queues, lines, watch, cluster):
        module.add(commands)
    completion.add(commands, build_parser)
    return parser


def _add_doctor(commands: _Commands) -> None:
    doctor = commands.add_parser(
        "doctor",
        usage="proteus-shards doctor [options]",
        help="examine a store: is it fit for a server, and how fast is it?",
        description="Examine a store and time a trial in it, for a few seconds. A server may run on it meanwhile. Ends with 0 where nothing is "
        "at fault, with 1 otherwise.",
        epilog=_EPILOG,
        allow_abbrev=False,
    )
    doctor.set_defaults(run=_doctor)
    doctor.add_argument("--config", metavar="FILE", help=f"settings file [env: {CONFIG_VARIABLE}]")
    doctor.add_argument("--json", action="store_true", help="print one JSON object")
    for setting in settings_table():
        if setting.name in _DOCTORS_SETTINGS:
            _add_option(doctor, setting)


def _add_store(commands: _Commands) -> None:
    store = commands.add_parser("store", help="work on stores", description="Work on stores.", allow_abbrev=False)
    actions = store.add_subparsers(title="actions", metavar="ACTION", required=True)
    copy = actions.add_parser(
        "copy",
        help="copy all jobs of a stopped server to another store",
        description="Copy all jobs, in order, from one store to another, read them back and compare. Servers of both must be stopped. "
        "TO must hold no jobs; FROM stays as it is.",
        allow_abbrev=False,
    )
    copy.set_defaults(run=_copy)
    copy.add_argument("source", metavar="FROM", help="URL of the store that holds the jobs, as for --store")
    copy.add_argument("target", metavar="TO", help="URL of the store that shall hold them")
    copy.add_argument(
        "--skip-damaged", action="store_true", help="leave damaged rows behind, instead of copying nothing where there are any"
    )
    backup = actions.add_parser(
        "backup",
        help="copy a SQLite store while a server works on it",
        description="Copy a SQLite store into a new folder, which is a store itself. A server may work on it meanwhile; what was committed before is in the copy.",
        allow_abbrev=False,
    )
    backup.set_defaults(run=_back_up)
    backup.add_argument("source", metavar="FROM", help="URL of the store, as for --store")
    backup.add_argument("folder", metavar="FOLDER", help="folder to make, as a path or as sqlite:///FOLDER; it must not be there yet")


def _add_token(commands: _Commands) -> None:
    token = commands.add_parser("token", help="make tokens", description="Make tokens.", allow_abbrev=False)
    actions = token.add_subparsers(title="actions", metavar="ACTION", required=True)
    new = actions.add_parser(
        "new",
        help="make a token, and the line that grants it its rights",
        description="Make a token. Prints it, and below it the line for the file of --tokens-file. The token is not kept anywhere: a lost one is "
        "replaced by a new one. A server notices the new line by itself.",
        allow_abbrev=False,
    )
    new.set_defaults(run=_new_token)
    new.add_argument(
        "--name", required=True, metavar="TEXT", help="whose it is; a name may have several tokens, and logs show the name only"
    )
    new.add_argument(
        "--scopes", required=True, metavar="LIST", help=f"what it is for, separated by commas: {', '.join(Scope)} (all of them)"
    )
    new.add_argument(
        "--queues",
        nargs="+",
        default=[EVERY_QUEUE],
        metavar="PATTERN",
        help="for which queues; * stands for any text [default: every queue]",
    )
    new.add_argument("--expires", metavar="WHEN", help="until when: RFC 3339, or a number of days such as 90d [default: never]")


def _add_import(commands: _Commands) -> None:
    relay = commands.add_parser(
        "import-relay",
        usage="proteus-shards import-relay [options] FROM",
        help="take over the jobs of a relay v1 or v2 database",
        description="Take over all jobs of a relay v1 or v2 database, in order. Relay must be stopped, and so must a server of the store, which must "
        "hold no jobs. Runs go on, retries and states are kept; FROM stays as it is.",
        epilog=_EPILOG,
        allow_abbrev=False,
    )
    relay.set_defaults(run=_import_relay)
    relay.add_argument("source", metavar="FROM", help="relay's DATABASE_URL: postgres://USER@HOST/DATABASE")
    relay.add_argument("--config", metavar="FILE", help=f"settings file [env: {CONFIG_VARIABLE}]")
    relay.add_argument("--dry-run", action="store_true", help="look at the jobs and count them, and write nothing")
    relay.add_argument("--again", action="store_true", help="import even where the store was filled by an import before")
    relay.add_argument("--skip-unfit", action="store_true", help="leave jobs behind that cannot be held, instead of importing nothing")
    for setting in settings_table():
        if setting.name in _IMPORTS_SETTINGS:
            _add_option(relay, setting)


def _add_option(group: argparse._ActionsContainer, setting: Setting) -> None:
    text = f"{setting.help} [default: {setting.default}] [env: {setting.variable}]".replace("%", "%%")
    if setting.kind == "switch":
        group.add_argument(setting.option, dest=setting.name, action=argparse.BooleanOptionalAction, default=None, help=text)
    else:
        metavar = {
            "text": "TEXT",
            "choice": setting.allowed.removeprefix("one of ").replace(", ", "|"),
            "count": "N",
            "bytes": "SIZE",
            "seconds": "SECONDS",
        }[setting.kind]
        group.add_argument(setting.option, dest=setting.name, metavar=metavar, help=text)


def _serve(arguments: argparse.Namespace) -> int:
    given = {setting.name: getattr(arguments, setting.name) for setting in settings_table()}
    settings = load_settings(given, os.environ, arguments.config, check_url)
    if settings.cluster:
        check_url(settings.store, cluster=True)
    logs.setup(settings, "supervisor")
    from proteus_shards import supervisor  # noqa: PLC0415 --help and wrong settings need not wait for trio

    return supervisor.run(settings)


def _doctor(arguments: argparse.Namespace) -> int:
    given = {name: getattr(arguments, name) for name in _DOCTORS_SETTINGS}
    settings = load_settings(given, os.environ, arguments.config, check_url)
    from proteus_shards.store import doctor  # noqa: PLC0415 only this command needs an event loop of its own

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # either way the trial is cleared away
    report = doctor.run(settings.store, settings.require_durability)
    if arguments.json:
        _print([msgspec.json.encode(report).decode()])
    else:
        for finding in report.findings:
            _print([f"{_MARKS[finding.level]:8} {finding.what}", *([f"{'':8} → {finding.remedy}"] if finding.remedy else [])])
        _print([report.summary])
    return 0 if report.sound else EXIT_FAILED


def _copy(arguments: argparse.Namespace) -> int:
    from proteus_shards.store import copy  # noqa: PLC0415 as above

    copied = copy.run(arguments.source, arguments.target, skip_damaged=arguments.skip_damaged, tell=_tell)
    _print([copied.summary])
    return 0


def _back_up(arguments: argparse.Namespace) -> int:
    from proteus_shards.store import sqlite_backup  # noqa: PLC0415 as above

    _print([sqlite_backup.run(arguments.source, arguments.folder, tell=_tell).summary])
    return 0


def _new_token(arguments: argparse.Namespace) -> int:
    scopes = [scope.strip() for scope in arguments.scopes.split(",")]
    token, line = new_token(arguments.name, scopes, arguments.queues, _when(arguments.expires))
    _print([token, line])
    return 0


def _when(text: str | None) -> datetime | None:
    if text is None:
        return None
    try:
        if text.endswith("d"):
            return (datetime.now(UTC) + timedelta(days=int(text[:-1]))).replace(microsecond=0)
        when = datetime.fromisoformat(text)
    except (ValueError, OverflowError):
        when = None
    if when is None or when.tzinfo is None:
        raise SettingError(f"--expires must be RFC 3339, such as 2030-01-31T00:00:00Z, or a number of days, such as 90d, not {text[:60]!r}")
    return when


def _import_relay(arguments: argparse.Namespace) -> int:
    given = {name: getattr(arguments, name) for name in _IMPORTS_SETTINGS}
    settings = load_settings(given, os.environ, arguments.config, check_url)
    try:
        from proteus_shards.store import postgres_relay  # noqa: PLC0415 as above
    except ModuleNotFoundError as error:
        raise SettingError(
            "this needs the extra postgres, which brings a driver that is not installed: pip install '.[postgres]' in the clone"
        ) from error
    found = postgres_relay.run(
        arguments.source,
        settings.store,
        settings.shards,
        dry=arguments.dry_run,
        again=arguments.again,
        skip_unfit=arguments.skip_unfit,
        tell=_tell,
    )
    _print([f"{'found' if arguments.dry_run else 'imported'} {found.summary}"])
    return 0


def _print(lines: Iterable[str]) -> None:
    """Write to standard output, in UTF-8 whatever the locale."""
    sys.stdout.buffer.write("".join(f"{line}\n" for line in lines).encode(errors="backslashreplace"))
    sys.stdout.flush()


def _tell(line: str) -> None:
    sys.stderr.write(f"{line}\n")


def _fail(error: ProteusError, code: int) -> int:
    sys.stderr.write(f"proteus-shards: {error}\n")
    return code
