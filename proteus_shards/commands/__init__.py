"""The commands that speak to a running server, as any client does: what they take, and how they end.

Each module holds a few commands: `add` gives argparse their options, the functions beside it carry them out through `client`, which is loaded only then, so that
`--help` is quick and a server needs none of it.

**Exit codes**, the same for all: 0 done; 1 failed, or some of it was refused; 2 a wrong option; 3 there is none (no job was there, no such job); 4 the server could not be reached or
had no time, so the same command may do better later.

**Output.** What a command finds out goes to standard output: for people, or with `--json` as JSON, one object a line where there are many. How it gets on and what went wrong goes to
standard error. Progress and headings are for terminals only.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TypeAlias

from proteus_shards.commands.console import Console
from proteus_shards.errors import ProteusError, SettingError

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_NONE = 3
EXIT_AWAY = 4

EXIT_CODES = """\
Exit codes: 0 done; 1 failed or refused; 2 a wrong option; 3 there is none; 4 the server could not be reached or had no time.
"""

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"  # noqa: SLF001  # it has no public name
Run: TypeAlias = Callable[[argparse.Namespace, Console], int]


class Done(ProteusError):
    """A command ends early, with an exit code of its own."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


def command(commands: Commands, name: str, run: Run, help_: str, description: str | None = None) -> argparse.ArgumentParser:
    """Add a command that speaks to a server."""
    text = description or f"{help_[:1].upper()}{help_[1:]}."
    parser = commands.add_parser(name, help=help_, description=text, epilog=EXIT_CODES, allow_abbrev=False)
    parser.add_argument("--url", metavar="URL", help="where the server is [default: http://127.0.0.1:8080] [env: PROTEUS_URL]")
    parser.add_argument(
        "--token",
        metavar="TOKEN",
        help="a token of the server; others see it here, so better put it into the environment [env: PROTEUS_TOKEN]",
    )
    parser.add_argument("--ca", metavar="FILE", help="PEM file with the authorities to trust, for https")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=lambda arguments: carry_out(run, arguments))
    return parser


def group(commands: Commands, name: str, help_: str) -> Commands:
    """Add a command that has actions."""
    parser = commands.add_parser(name, help=help_, description=f"{help_[:1].upper()}{help_[1:]}.", allow_abbrev=False)
    actions: Commands = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    return actions


def carry_out(run: Run, arguments: argparse.Namespace) -> int:
    """Carry out a command, say what went wrong, and return the exit code."""
    console = Console(as_json=getattr(arguments, "json", False))
    try:
        from proteus_shards.client import errors  # noqa: PLC0415 only these commands need it
    except ImportError as error:
        console.tell(
            f"proteus-shards: this command needs the extra client, which brings {error.name}: pip install '.[client]' in the clone"
        )
        return EXIT_FAILED
    try:
        return run(arguments, console)
    except BrokenPipeError:
        console.give_up_output()
        return EXIT_FAILED
    except SettingError as error:
        console.tell(f"proteus-shards: {error}")
        return EXIT_USAGE
    except Done as error:
        console.tell(f"proteus-shards: {error}")
        return error.code
    except errors.NotFound as error:
        console.tell(f"proteus-shards: {error}")
        return EXIT_NONE
    except errors.ClientError as error:
        console.tell(f"proteus-shards: {error}")
        away = isinstance(error, errors.NotReached | errors.Unanswered) or (isinstance(error, errors.Refusal) and error.retryable)
        return EXIT_AWAY if away else EXIT_FAILED
