"""How a supervisor has its node give all shards away, with a small program in the node's place."""

from __future__ import annotations

import signal
import sys

import msgspec
import pytest

from proteus_shards.supervisor import Programs
from tests.test_supervisor import Notes, notes, supervised

__all__ = ["notes"]

# Notes each order, and departs once no front serves any more.
NODE = """
import json, os, sys

folder, kept = sys.argv[1:]
notes = os.open(os.path.join(folder, "notes"), os.O_WRONLY | os.O_APPEND | os.O_CREAT)

def note(event):
    os.write(notes, f"node {event} {os.getpid()}\\n".encode())

boot = json.loads(sys.stdin.readline())
note("started")
os.write(1, b'{"type": "ready"}\\n')
for line in sys.stdin:
    order = json.loads(line)
    note("departs-beside-fronts" if order["fronts"] else "departs")
    if not order["fronts"]:
        os.write(1, b'{"type": "departed", "kept": %d}\\n' % int(kept))
        break
"""
CLUSTER = {"cluster": True, "node_address": "127.0.0.1:1", "shards": 1}


def programs(notes: Notes, *, kept: int = 0, front: str = "serve") -> Programs:
    """Return programs with a node that keeps so many shards to the end."""
    (notes.folder / "node.py").write_text(NODE)
    node = (sys.executable, "-I", "-S", str(notes.folder / "node.py"), str(notes.folder), str(kept))
    return msgspec.structs.replace(notes.programs(front=front), node=node)


@pytest.mark.parametrize(("kept", "code"), [(0, 0), (2, 1)])
async def test_shards_that_are_left_behind_make_the_exit_code_1(
    notes: Notes, caplog: pytest.LogCaptureFixture, kept: int, code: int
) -> None:
    """And the log says so."""
    async with supervised(notes, programs(notes, kept=kept), **CLUSTER) as run:
        await run.serve()

        assert await run.stop() == code
    assert [note for note in notes.all() if note.startswith("node")] == ["node started", "node departs-beside-fronts", "node departs"]
    assert ("shards were left behind" in [record.getMessage() for record in caplog.records]) == bool(kept)


async def test_shards_are_given_away_while_a_front_still_serves(notes: Notes) -> None:
    """One that does not come to its end holds nothing up."""
    async with supervised(notes, programs(notes, front="deaf"), **CLUSTER) as run:
        await run.serve()
        run.signal()
        await notes.wait_for("node departs-beside-fronts")
        run.signal(signal.SIGTERM)

        assert await run.wait() == 1
    assert "node departs" not in notes.all()
