"""When a job that waits has waited for too long: at the end of all time, and after its time was changed."""

from __future__ import annotations

import msgspec
import pytest

from proteus_shards.core.commands_control import Change
from proteus_shards.core.extras import Attempt, Extras, pack_extras
from proteus_shards.core.model import TIME_US_MAX, TIME_US_MIN
from tests.core.rig import DONE, SECOND, YEAR, Bench


def expiry(bench: Bench, job_id: str = "1") -> int:
    """Return in how many microseconds a job expires."""
    extras = bench.job(job_id).extras
    assert extras is not None
    assert extras.expires_at is not None
    return extras.expires_at - bench.wall


def test_no_job_expires_after_the_last_year_there_is() -> None:
    """A ttl that leads beyond it ends there, at once and after a restart, and when the job is put off."""
    bench = Bench()
    bench.enqueue("1", persist=True, run_at_us=TIME_US_MAX - SECOND, ttl_us=86_400 * SECOND)
    bench.enqueue("2", persist=True, ttl_us=YEAR)
    bench.send(Change("q", "2", run_at_us=TIME_US_MAX))
    bench.commit()
    bench = bench.restart()

    assert bench.damaged == []
    assert [TIME_US_MAX] * 2 == [expiry(bench, job_id) + bench.wall for job_id in ("1", "2")]


@pytest.mark.parametrize(
    "extras",
    [
        Extras(expires_at=TIME_US_MAX + 1),
        Extras(not_before=TIME_US_MIN - 1),
        Extras(history=(Attempt(1, 2**62, 0, "failed"),)),
        Extras(history=(Attempt(1, 0, -(2**62), "failed"),)),
    ],
)
def test_a_row_with_a_time_that_nobody_can_write_is_kept_aside(extras: Extras) -> None:
    """It would break every answer that shows the job."""
    bench = Bench()
    bench.enqueue("1", persist=True)
    bench.commit()
    bench.store.rows = {key: msgspec.structs.replace(row, extras=pack_extras(extras)) for key, row in bench.store.rows.items()}

    assert ["the times in extras must lie in the years 1…9999"] == [fault for _, fault in bench.restart().damaged]


def test_a_ttl_counts_from_the_time_that_a_job_was_put_off_to() -> None:
    """However often, and from now on once it is promoted."""
    bench = Bench()
    bench.enqueue("1", ttl_us=10 * SECOND)
    bench.pass_time(1)

    assert bench.ask(Change("q", "1", run_at_us=bench.wall + 60 * SECOND)) == DONE
    assert expiry(bench) == 70 * SECOND
    bench.pass_time(5)
    for _ in range(2):
        assert bench.ask(Change("q", "1", run_at_us=bench.wall + 3600 * SECOND)) == DONE
        assert expiry(bench) == 3610 * SECOND
    for _ in range(2):
        bench.pass_time(2)
        assert bench.ask(Change("q", "1", run_at_us=0)) == DONE
        assert expiry(bench) == 10 * SECOND
    assert bench.ask(Change("q", "1", priority=3)) == DONE
    bench.pass_time(11)
    assert bench.dead_ids() == ["1"]


def test_a_job_that_is_promoted_early_does_not_live_until_its_old_time() -> None:
    """It expires its ttl after it was promoted."""
    bench = Bench()
    bench.enqueue("1", ttl_us=SECOND, run_at_us=bench.wall + 86_400 * SECOND)
    bench.pass_time(3)

    assert bench.ask(Change("q", "1", run_at_us=0)) == DONE
    assert expiry(bench) == SECOND
    bench.pass_time(2)
    assert bench.dead_ids() == ["1"]
