"""Mistakes that the simulation of the cluster must find: in the steward, in what it watches, in how shares are made, and in the store."""

from __future__ import annotations

from typing import Any

import msgspec

from proteus_shards.cluster import spread as spread_module
from proteus_shards.cluster import steward as steward_module
from proteus_shards.cluster.model import Claim
from proteus_shards.cluster.spread import spread
from proteus_shards.cluster.steps import Hand
from proteus_shards.cluster.steward import Steward
from proteus_shards.cluster.watch import Watch
from tests.simulation.cluster_place import Place
from tests.simulation.planting import Mutant, Patch, rewrite

MUTANTS: list[Mutant] = []


def mutant(plant: Mutant) -> Mutant:
    """List a mutant."""
    MUTANTS.append(plant)
    return plant


# --- the steward -----------------------------------------------------------------------------------------------------


@mutant
def lease_from_the_answer(patch: Patch) -> None:
    """The own lease runs from when the answer to a beat came, and not from before it was sent."""
    rewrite(patch, Steward, "told", "self._lease_from = sent_at\n", "self._lease_from = now\n")


@mutant
def lease_never_over(patch: Patch) -> None:
    """A host that cannot beat goes on."""
    rewrite(patch, Steward, "_check_lease", "now >= self.lease_until", "False")


@mutant
def same_beat_again(patch: Patch) -> None:
    """A beat of unknown outcome is sent again with the same number."""
    rewrite(patch, Steward, "told", "self._beat = step.host.beat  # it may", "pass  # it may")


@mutant
def claim_without_waiting(patch: Patch) -> None:
    """A host is dead after a third of its lease."""
    rewrite(patch, Watch, "alive", "self._silence_seconds_max", "self._silence_seconds_max / 3")


@mutant
def absence_counts(patch: Patch) -> None:
    """Time in which nobody looked counts in full."""
    rewrite(patch, Watch, "see", "min(max(0.0, sent_at - seen.looked_at), self._gap_seconds_max)", "max(0.0, sent_at - seen.looked_at)")


@mutant
def silence_for_ever(patch: Patch) -> None:
    """Nobody is ever dead."""
    patch(Watch, "alive", lambda self, address: address in self._seen)


@mutant
def own_boot_ignored(patch: Patch) -> None:
    """A host that finds another in its row goes on, and writes its own again."""
    rewrite(patch, Steward, "_see", "        self._replaced = True\n        return\n", "        self._joined = False\n")


@mutant
def earlier_life_forgotten(patch: Patch) -> None:
    """What the address held before is taken for one's own, under the old turn."""
    rewrite(patch, Steward, "_is_own", " and self._earlier.get(holding.shard) != holding.turn", "")


@mutant
def handed_while_it_runs(patch: Patch) -> None:
    """A shard is handed over before its process has ended."""
    rewrite(patch, Steward, "_next_hand", "if shard not in self._running:", "if shard not in self._claims:")


@mutant
def unknown_taken_for_done(patch: Patch) -> None:
    """A claim whose outcome nobody knows is taken for granted."""
    told = Steward.told

    def hopeful(self: Steward, step: Any, answer: Any, sent_at: float, now: float) -> None:
        told(self, step, True if answer is None and isinstance(step, Hand) else answer, sent_at, now)

    patch(Steward, "told", hopeful)


@mutant
def lost_claim_taken_for_won(patch: Patch) -> None:
    """A compare-and-set that another host has won is taken for one's own."""
    rewrite(patch, Steward, "told", "self._handed(step, now) if answer else self._lose(step)", "self._handed(step, now)")


@mutant
def fenced_goes_on(patch: Patch) -> None:
    """A shard whose process was fenced is not claimed anew."""
    rewrite(patch, Steward, "_is_free", " or self._fenced.get(holding.shard) == holding.turn", "")


@mutant
def drained_is_given_more(patch: Patch) -> None:
    """Hosts that are to give their shards away get shards."""
    rewrite(patch, Steward, "_plan", "if not draining]", "]")


@mutant
def leaves_too_soon(patch: Patch) -> None:
    """A host that leaves does not wait until its luggage was fetched."""
    rewrite(patch, Steward, "_is_bare", "self._running or self._given or any", "self._running or any")


@mutant
def luggage_left_behind(patch: Patch) -> None:
    """The host before is not asked for what it had in memory."""
    patch(Steward, "_find_sources", lambda _self, _before, _view: None)


# --- the shares ------------------------------------------------------------------------------------------------------


@mutant
def never_even(patch: Patch) -> None:
    """A host that joins gets nothing."""
    patch(steward_module, "spread", lambda holdings, takers, even=True: spread(holdings, takers, even=even and False))


@mutant
def moves_without_end(patch: Patch) -> None:
    """A shard moves wherever another host has one less."""
    rewrite(lambda _owner, _name, made: patch(steward_module, "spread", made), spread_module, "spread", "< 2:", "< 1:")


# --- the store -------------------------------------------------------------------------------------------------------


@mutant
def handed_without_comparing(patch: Patch) -> None:
    """A shard is given away whatever its turn is by now."""
    rewrite(patch, Place, "hand", "if held.turn != turn:", "if False:")


@mutant
def opened_without_the_claim(patch: Patch) -> None:
    """A process takes an epoch whoever holds its shard."""

    def take(self: Place, claim: Claim) -> int:
        held = self.holdings[claim.shard]
        self.holdings[claim.shard] = msgspec.structs.replace(held, epoch=held.epoch + 1)
        return held.epoch + 1

    patch(Place, "open", take)


@mutant
def committed_without_the_epoch(patch: Patch) -> None:
    """A row is written whatever the epoch is by now."""
    rewrite(patch, Place, "commit", "if self.holdings[shard].epoch != epoch:", "if False:")


@mutant
def epoch_lost_by_a_hand(patch: Patch) -> None:
    """A change of host begins the epochs anew."""
    rewrite(patch, Place, "hand", "held.turn + 1, held.epoch,", "held.turn + 1, 0,")
