"""The command line: options → settings → the running server.

The options of `serve` are generated from `Settings`, and everything a user gives is checked in one place, `load_settings`; argparse only
splits the words. Exit codes: 0 ended as asked, 1 failed, 2 a wrong option or setting.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from proteus_shards import __version__, logs
from proteus_shards.config import CONFIG_VARIABLE, Setting, load_settings, settings_table
from proteus_shards.errors import ProteusError, SettingError
from proteus_shards.store.registry import check_url

EXIT_FAILED = 1
EXIT_USAGE = 2  # argparse's own choice too

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
    return parser


def _add_option(group: argparse._ArgumentGroup, setting: Setting) -> None:
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
    logs.setup(settings, "supervisor")
    from proteus_shards import supervisor  # noqa: PLC0415 --help and wrong settings need not wait for trio

    return supervisor.run(settings)


def _fail(error: ProteusError, code: int) -> int:
    sys.stderr.write(f"proteus-shards: {error}\n")
    return code
