"""`completion`: what a shell needs to complete this command line. shtab writes it from argparse's own tables."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

from proteus_shards.commands import EXIT_FAILED, Commands

SHELLS = ("bash", "zsh", "fish", "tcsh")


def add(commands: Commands, parser_of: Callable[[], argparse.ArgumentParser]) -> None:
    """Add the command. `parser_of` returns the whole parser."""
    completion = commands.add_parser(
        "completion",
        help="print what a shell needs to complete commands",
        description="Print a script for a shell: `proteus-shards completion bash > ~/.local/share/bash-completion/completions/proteus-shards`.",
        allow_abbrev=False,
    )
    completion.add_argument("shell", choices=SHELLS, help="which shell")

    def run(arguments: argparse.Namespace) -> int:
        try:
            import shtab  # noqa: PLC0415 an extra brings it
        except ImportError:
            sys.stderr.write("proteus-shards: this command needs the extra client: pip install '.[client]' in the clone\n")
            return EXIT_FAILED
        sys.stdout.write(shtab.complete(parser_of(), shell=arguments.shell))
        return 0

    completion.set_defaults(run=run)
