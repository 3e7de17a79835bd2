"""The file of settings of queues, which a server applies at its start.

TOML, a table for each queue, its settings as in `PATCH /queue`:

    ["mail"]
    max_in_flight = 10
    backoff = { seconds = 5, factor = 2, seconds_max = 600 }

What the file names is set, whatever was set before; all else stays. Each shard applies what is of its own queues. It does so once in the life of a server,
and leaves a mark in the server's folder: a shard that is started again must not take back what operators have changed meanwhile. A file
that is wrong anywhere stops the start.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from proteus_shards.core.commands_control import SetQueue
from proteus_shards.core.model import name_fault
from proteus_shards.core.placement import shard_of, slot_of
from proteus_shards.core.queue_settings import DEFAULT_SETTINGS, SettingFault, merge
from proteus_shards.errors import SettingError

if TYPE_CHECKING:
    from proteus_shards.config import ShardBoot


def first_settings(boot: ShardBoot) -> list[SetQueue]:
    """Return the commands that apply the file to this shard's queues, the first time in the life of a server. Raises `SettingError`."""
    settings = boot.settings
    mark = Path(boot.run_dir) / f"queues-{boot.shard}"
    if not settings.queues_file or mark.exists():
        return []
    commands = read_queues(settings.queues_file)
    mark.touch()
    return [command for command in commands if shard_of(slot_of(command.queue), settings.shards) == boot.shard]


def read_queues(path: str) -> list[SetQueue]:
    """Return the commands that apply a file. Raises `SettingError`."""
    try:
        content = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingError(f"queues_file: {path} cannot be read: {error.strerror}") from error
    except ValueError as error:  # not UTF-8, or not TOML
        raise SettingError(f"queues_file: {path} is not TOML: {error}") from error
    commands: list[SetQueue] = []
    for queue, values in content.items():
        if not isinstance(values, dict):
            raise SettingError(f"queues_file: {path}: {queue!r} must be a table, with the name of a queue")
        if (rule := name_fault(queue)) is not None:
            raise SettingError(f"queues_file: {path}: the name of a queue {rule}")
        patch = msgspec.json.encode(values)
        wrong = merge(DEFAULT_SETTINGS, patch)
        if isinstance(wrong, SettingFault):
            raise SettingError(f"queues_file: {path}: queue {queue!r}: {wrong.field} {wrong.rule}")
        commands.append(SetQueue(queue, patch))
    return commands
