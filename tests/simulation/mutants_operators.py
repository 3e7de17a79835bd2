"""Mutants: settings, purge, redrive, change."""

from __future__ import annotations

from proteus_shards.core.control import Control
from proteus_shards.core.deliveries import Deliveries
from proteus_shards.core.ledger import Ledger
from proteus_shards.core.model import Kind, RecordKey
from proteus_shards.core.upkeep import Upkeep
from tests.simulation.planting import Patch, mutant, rewrite

# --- settings --------------------------------------------------------------------------------------------------------------


@mutant
def settings_not_written(patch: Patch) -> None:
    """A change of settings is made in memory only."""
    write = Ledger.write_record

    def forgetful(self: Ledger, key: RecordKey, value: bytes | None) -> None:
        if key.kind != Kind.QUEUE:
            write(self, key, value)

    patch(Ledger, "write_record", forgetful)


@mutant
def settings_not_undone(patch: Patch) -> None:
    """A change whose commit fails is refused, but counts."""
    rewrite(patch, Control, "_set_queue", "self._settle_settings(queue, before, match=False)", "pass")


@mutant
def settings_lost_at_restart(patch: Patch) -> None:
    """Settings are not read back."""
    patch(Control, "_take_settings", lambda _self, _key, _value: None)


@mutant
def settings_not_read_back(patch: Patch) -> None:
    """After a commit whose fate was unknown, what was stored of settings is not looked at."""
    patch(Control, "adopt_records", lambda _self, _keys, _values: None)


@mutant
def settings_replaced_whole(patch: Patch) -> None:
    """What a change leaves out goes back to its default."""
    rewrite(patch, Control, "_set_queue", "after = merge(before, command.patch)", "after = merge(DEFAULT_SETTINGS, command.patch)")


@mutant
def resumed_but_polls_sleep(patch: Patch) -> None:
    """Other settings are followed by the next request only."""
    rewrite(patch, Deliveries, "_settings_changed", "        self._match(queue)\n", "        pass\n")


# --- purge, redrive, change ------------------------------------------------------------------------------------------------


@mutant
def purge_leaves_the_row(patch: Patch) -> None:
    """What is purged comes back at the next start."""
    rewrite(patch, Upkeep, "_purge", "write=job.persist)", "write=False)")


@mutant
def purge_takes_what_runs(patch: Patch) -> None:
    """Jobs in flight are taken for waiting."""
    rewrite(
        patch, Upkeep, "_is_purged", "return self.state_of(job) in states", "return job.status is not DEAD or self.state_of(job) in states"
    )


@mutant
def redrive_at_the_end(patch: Patch) -> None:
    """A redriven job loses its place."""
    rewrite(patch, Upkeep, "_revive", "job.attempt = 0\n", "job.attempt = 0; job.ready_at = self._clock\n")


@mutant
def redrive_loses_history(patch: Patch) -> None:
    """The attempts of the life before are forgotten."""
    rewrite(patch, Upkeep, "_revive", "expires_at=None, not_before=None", "expires_at=None, not_before=None, history=()")


@mutant
def redrive_spends_retries(patch: Patch) -> None:
    """A redriven job has the retries that were left to it."""
    rewrite(patch, Upkeep, "_revive", "job.attempt = 0\n", "pass\n")


@mutant
def redrive_over_a_live_job(patch: Patch) -> None:
    """A dead letter whose id is live again is redriven all the same."""
    rewrite(patch, Upkeep, "_bring_back", "job.id in target.jobs or ", "")


@mutant
def redrive_not_written(patch: Patch) -> None:
    """A redriven job is dead again after a restart."""
    rewrite(patch, Upkeep, "_revive", "write=job.persist,", "write=False,")


@mutant
def change_loses_the_job(patch: Patch) -> None:
    """A failed commit takes back the job in its new place, and does not bring back the old one."""
    rewrite(
        patch,
        Upkeep,
        "_change",
        "self._settle(queue, None, DONE, job, image, write=job.persist)",
        "self._touch(job) if job.persist else None; image",
    )


@mutant
def change_forgets_priority(patch: Patch) -> None:
    """Another priority is not written."""
    rewrite(patch, Upkeep, "_reprioritize", "self._touch(new, extras_set=True)", "self._touch(new)")


@mutant
def change_keeps_the_time(patch: Patch) -> None:
    """A promoted job still waits for its time."""
    rewrite(patch, Upkeep, "_change", "run_at = command.run_at_us or None", "run_at = command.run_at_us or run_at")


@mutant
def change_resets_attempts(patch: Patch) -> None:
    """A job that is moved has all its retries again."""
    rewrite(patch, Upkeep, "_change", "run_at, job.attempt, extras)", "run_at, 0, extras)")
