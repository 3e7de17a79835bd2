"""The shard processes of a host in a cluster, as far as their ends go."""

from __future__ import annotations

import math
from pathlib import Path
from unittest.mock import Mock

import trio

from proteus_shards.cluster.model import Claim
from proteus_shards.config import Settings
from proteus_shards.ipc.orders import Ended, Shards, Start
from proteus_shards.supervisor import Programs, Supervisor
from proteus_shards.tenants import Tenants
from tests.test_supervisor import Notes, wait_until

CLAIM = Claim(0, "a:1", 1)


async def no_mending() -> None:
    """Mend nothing."""


async def test_what_ended_badly_before_the_drain_does_not_spoil_its_exit_code(tmp_path: Path) -> None:
    """A shard that was stopped since the lease was over, and was fenced while it wrote its last batch, is no fault of a drain hours later."""
    told = Mock()
    notes = Notes(tmp_path)
    tenants = Tenants(Settings(shards=1), notes.programs(shard="unclean").shard, str(tmp_path), told, no_mending, Mock())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(tenants.run)
        tenants.apply(Shards((Start(CLAIM),), 60.0, 0))
        await tenants.wait_served()
        tenants.apply(Shards((), 60.0, 0))
        await wait_until(lambda: any(isinstance(call.args[0], Ended) for call in told.call_args_list))
        assert tenants.unclean

        supervisor = Supervisor(Settings(shards=1), Programs(), str(tmp_path), [])
        await supervisor._depart(tenants, math.inf)

        assert not tenants.unclean
        nursery.cancel_scope.cancel()
