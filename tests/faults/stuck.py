"""A server that can be looked into at the moments that matter: the real one, but that its shards write down what they are asked, and can hold their commits.

    python -m tests.faults.stuck serve …        as `python -m proteus_shards serve …`

PROTEUS_TEST_ASKED names the file to which each command's name and queue go, a line each. While the file that PROTEUS_TEST_HOLD names is there, no
commit begins: whatever waits for one is then surely under way.
"""

from __future__ import annotations

import asyncio
import os
import runpy
import sys
from collections.abc import Iterable
from pathlib import Path

SHARD = "proteus_shards.shard"
LOOK_SECONDS = 0.005


def change_shard() -> None:
    """Change this process's classes."""
    from proteus_shards.core.model import Batch
    from proteus_shards.ipc.messages import Request
    from proteus_shards.shard.pump import Link, Pump
    from proteus_shards.store.sqlite import SqliteStore

    asked = os.open(os.environ["PROTEUS_TEST_ASKED"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    is_held = Path(os.environ["PROTEUS_TEST_HOLD"]).exists
    commit, receive = SqliteStore.commit, Pump.receive

    async def held(store: SqliteStore, batch: Batch) -> None:
        while is_held():
            await asyncio.sleep(LOOK_SECONDS)
        await commit(store, batch)

    def told(pump: Pump, link: Link, requests: Iterable[Request]) -> None:
        requests = list(requests)
        receive(pump, link, requests)
        for _, command in requests:
            os.write(asked, f"{type(command).__name__} {getattr(command, 'queue', '')}\n".encode())

    SqliteStore.commit = held  # type: ignore[method-assign, assignment]
    Pump.receive = told  # type: ignore[method-assign, assignment]


def main() -> int:
    """Run a server, or one of its shards."""
    if sys.argv[1] == "shard":
        del sys.argv[1]
        change_shard()
        runpy.run_module(SHARD, run_name="__main__", alter_sys=True)
        return 0
    from proteus_shards import cli, supervisor

    programs = supervisor.Programs(shard=(sys.executable, "-P", "-m", "tests.faults.stuck", "shard"))
    supervisor.Programs = lambda: programs  # type: ignore[misc, assignment]
    return cli.main(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
