"""Hosts that share shards through a register, in virtual time."""

from __future__ import annotations

import pytest

from proteus_shards.cluster.model import NOBODY, Claim, Holding, Host
from proteus_shards.cluster.steps import Beat, Drain, Fault, Hand, Join, Leave, Look, Over, Rest, Run, Want
from proteus_shards.cluster.steward import Steward
from tests.cluster.clusters import LEASE_SECONDS, Book, Cluster


def test_a_lone_host_takes_all_shards() -> None:
    """It joins, claims and serves all of them."""
    cluster = Cluster(5)
    cluster.add("a:1")
    cluster.run(2)

    assert cluster.shares() == {"a:1": 5}


def test_shares_are_floor_or_ceiling_and_then_nothing_moves() -> None:
    """Three hosts that come one after the other end with 3, 3 and 2 of 8."""
    cluster = Cluster(8)
    for address in ("a:1", "b:1", "c:1"):
        cluster.add(address)
        cluster.run(20)
    hands = cluster.book.hands
    cluster.run(300)

    assert sorted(cluster.shares().values()) == [2, 3, 3]
    assert cluster.settled()
    assert cluster.book.hands == hands


def test_a_joining_host_takes_no_more_than_its_share() -> None:
    """Four of the eight shards of two hosts stay where they were when a third one comes, and none moves twice."""
    cluster = Cluster(8)
    cluster.add("a:1")
    cluster.add("b:1")
    cluster.run(20)
    hands = cluster.book.hands
    cluster.add("c:1")
    cluster.run(60)

    assert cluster.book.hands == hands + 2


def test_a_dead_host_loses_its_shards_within_a_lease_and_two_seconds() -> None:
    """Whenever it dies, the others serve its shards in time."""
    for moment in (20.0, 20.9, 21.8, 22.5):
        cluster = Cluster(6)
        for address in ("a:1", "b:1", "c:1"):
            cluster.add(address)
        cluster.run(moment)
        assert cluster.settled()
        cluster.kill(cluster.sites[0])
        cluster.run(LEASE_SECONDS + 2)

        assert cluster.shares() == {"b:1": 3, "c:1": 3}


def test_a_host_without_its_register_stops_before_others_may_claim() -> None:
    """Its shards end before anyone else opens them."""
    cluster = Cluster(4)
    a = cluster.add("a:1")
    cluster.add("b:1")
    cluster.run(30)
    a.cut = True
    overlaps: list[int] = []

    def see() -> None:
        mine = set(a.processes) - set(a.ends)
        overlaps.extend(mine & set(cluster.sites[1].epochs))

    cluster.run(30, see=see)

    assert not overlaps
    assert not a.processes
    assert cluster.shares()["b:1"] == 4


def test_all_hosts_without_their_register_go_on_where_they_were() -> None:
    """Nobody takes another's shards for having seen no beat while there was none to be seen."""
    cluster = Cluster(6)
    for address in ("a:1", "b:1", "c:1"):
        cluster.add(address)
    cluster.run(40)
    held = [holding.host for holding in cluster.book.holdings]
    hands = cluster.book.hands
    for site in cluster.sites:
        site.cut = True
    cluster.run(40)
    assert not any(site.processes for site in cluster.sites)
    for site in cluster.sites:
        site.cut = False
    cluster.run(20)

    assert cluster.settled()
    assert [holding.host for holding in cluster.book.holdings] == held
    assert cluster.book.hands == hands


def test_a_host_that_was_stopped_for_long_commits_nothing_and_comes_back() -> None:
    """Its epochs are old when it wakes, and it gets a share again."""
    cluster = Cluster(4)
    a = cluster.add("a:1")
    cluster.add("b:1")
    cluster.run(30)
    a.stopped = True
    cluster.run(40)
    served = a.serves()
    a.stopped = False
    cluster.run(40)

    assert not served
    assert cluster.settled()
    assert cluster.shares() == {"a:1": 2, "b:1": 2}


def test_a_leaving_host_gives_everything_away_first() -> None:
    """Its row goes last, and each shard changed hands once."""
    cluster = Cluster(6)
    a = cluster.add("a:1")
    cluster.add("b:1")
    cluster.run(30)
    hands = cluster.book.hands
    a.steward.leave()
    cluster.run(6)

    assert a.left
    assert set(cluster.book.hosts) == {"b:1"}
    assert cluster.book.hands == hands + 3
    cluster.kill(a)
    assert cluster.settled()


def test_the_last_host_leaves_its_shards_to_nobody() -> None:
    """So the next one that comes need not wait for anyone's death."""
    cluster = Cluster(3)
    a = cluster.add("a:1")
    cluster.run(10)
    a.steward.leave()
    cluster.run(3)
    assert a.left
    assert {holding.host for holding in cluster.book.holdings} == {NOBODY}
    cluster.kill(a)
    cluster.add("b:1")
    cluster.run(2)

    assert cluster.settled()


def test_the_last_host_keeps_its_shards_as_long_as_they_are_needed() -> None:
    """A host that comes meanwhile gets them; else they are nobody's in the end."""
    cluster = Cluster(3)
    a = cluster.add("a:1")
    cluster.run(10)
    a.steward.leave(needed=True)
    cluster.run(10)
    assert (a.left, len(a.processes), a.steward.kept()) == (False, 3, 0)
    b = cluster.add("b:1")
    cluster.run(10)
    assert (a.left, len(b.processes)) == (True, 3)
    cluster.kill(a)

    b.steward.leave(needed=True)
    cluster.run(10)
    assert (b.left, len(b.processes)) == (False, 3)
    b.steward.leave()
    cluster.run(3)
    assert b.left
    assert {holding.host for holding in cluster.book.holdings} == {NOBODY}


def test_a_host_that_leaves_knows_what_it_has_kept() -> None:
    """Where another one lives that could have had it."""
    cluster = Cluster(4)
    a = cluster.add("a:1")
    cluster.add("b:1")
    cluster.run(30)
    a.steward.leave()

    assert a.steward.kept() == 2
    cluster.run(6)
    assert (a.left, a.steward.kept()) == (True, 0)


def test_hosts_that_leave_together_do_not_hand_to_each_other() -> None:
    """Whoever drains gets nothing."""
    cluster = Cluster(6)
    for address in ("a:1", "b:1", "c:1"):
        cluster.add(address)
    cluster.run(40)
    for site in cluster.sites:
        site.steward.leave()
    cluster.run(20)

    assert all(site.left for site in cluster.sites)
    assert not cluster.book.hosts
    assert cluster.book.hands <= 6 + 3 + 2 + 6 + 3  # claims, two joins, and few that were handed twice since a look was old


def test_a_host_that_leaves_without_its_register_does_not_wait_for_it() -> None:
    """Once its lease is over and its processes have ended it goes, and the others take what it had."""
    cluster = Cluster(4)
    a = cluster.add("a:1")
    cluster.add("b:1")
    cluster.run(30)
    a.cut = True
    a.steward.leave()
    cluster.run(LEASE_SECONDS + 1)
    assert a.left
    assert not a.processes
    cluster.kill(a)
    cluster.run(LEASE_SECONDS)

    assert cluster.shares() == {"b:1": 4}


def test_a_restarted_host_takes_its_own_shards_back_at_once() -> None:
    """A new boot at the same address claims what the address held, without waiting for its own death."""
    cluster = Cluster(4)
    a = cluster.add("a:1")
    cluster.add("b:1")
    cluster.run(30)
    before = [holding.host for holding in cluster.book.holdings]
    cluster.kill(a)
    cluster.add("a:1", boot="2")
    cluster.run(2)

    assert cluster.settled()
    assert [holding.host for holding in cluster.book.holdings] == before


def test_a_host_that_was_replaced_stops_everything() -> None:
    """The one whose boot stands in the row goes on."""
    cluster = Cluster(4)
    a = cluster.add("a:1")
    cluster.run(10)
    b = cluster.add("a:1", boot="2")
    cluster.run(10)

    assert a.replaced
    assert not a.processes
    assert b.serves() == {0, 1, 2, 3}
    assert a.steward.step(cluster.now) == Over(replaced=True)


def test_a_node_that_starts_again_keeps_what_runs() -> None:
    """The same boot goes on under the same claims, and no shard is stopped meanwhile."""
    cluster = Cluster(3)
    a = cluster.add("a:1")
    cluster.run(10)
    claims = dict(a.processes)
    a.steward = Steward("a:1", "1", "1", LEASE_SECONDS, running=claims.values())
    assert a.steward.runs(cluster.now) is None
    cluster.run(10)

    assert a.processes == claims
    assert cluster.settled()


def test_an_operators_wish_moves_a_shard_and_pins_it() -> None:
    """It goes where it is wanted and stays, though another has to go the other way for it."""
    cluster = Cluster(4)
    cluster.add("a:1")
    cluster.add("b:1")
    cluster.run(30)
    shard = next(holding.shard for holding in cluster.book.holdings if holding.host == "a:1")
    cluster.book.take(Want(shard, "b:1"))
    cluster.run(60)

    assert cluster.book.holdings[shard] == Holding(
        shard, "b:1", cluster.book.holdings[shard].turn, cluster.book.holdings[shard].epoch, "b:1"
    )
    assert cluster.shares() == {"a:1": 2, "b:1": 2}


def test_a_draining_host_serves_nothing_and_may_take_shards_again() -> None:
    """It stays in the cluster."""
    cluster = Cluster(6)
    for address in ("a:1", "b:1", "c:1"):
        cluster.add(address)
    cluster.run(40)
    cluster.book.take(Drain("b:1", draining=True))
    cluster.run(40)
    assert cluster.shares() == {"a:1": 3, "b:1": 0, "c:1": 3}
    assert cluster.settled()
    cluster.book.take(Drain("b:1", draining=False))
    cluster.run(40)

    assert cluster.shares() == {"a:1": 2, "b:1": 2, "c:1": 2}


def test_a_cluster_in_which_all_drain_goes_on_serving() -> None:
    """Somebody has to."""
    cluster = Cluster(4)
    cluster.add("a:1")
    b = cluster.add("b:1")
    cluster.run(30)
    for address in ("a:1", "b:1"):
        cluster.book.take(Drain(address, draining=True))
    cluster.run(20)
    assert cluster.shares() == {"a:1": 2, "b:1": 2}
    cluster.kill(b)
    cluster.run(20)

    assert cluster.shares() == {"a:1": 4}


def test_a_forgotten_host_that_is_alive_after_all_joins_again() -> None:
    """Nothing is left without an owner."""
    cluster = Cluster(4)
    cluster.add("a:1")
    cluster.add("b:1")
    cluster.run(30)
    cluster.book.take(Leave("b:1"))
    cluster.run(30)

    assert cluster.settled()
    assert set(cluster.book.hosts) == {"a:1", "b:1"}


def test_a_claim_that_is_refused_is_made_anew() -> None:
    """A process that was fenced is not started again under its claim, but under a new one where the holding is still this host's."""
    cluster = Cluster(2)
    a = cluster.add("a:1")
    cluster.run(10)
    claim = a.processes[1]
    a._end(1, fenced=True)
    cluster.run(5)

    assert a.processes[1] == Claim(1, "a:1", claim.turn + 1)
    assert a.steward.counters["fenced"] == 1


def test_a_new_host_is_told_who_may_have_luggage() -> None:
    """The one that has handed a shard over."""
    cluster = Cluster(2)
    cluster.add("a:1")
    cluster.run(10)
    b = cluster.add("b:1")
    cluster.run(20)
    (claim,) = b.processes.values()

    assert b.steward.runs(cluster.now) == (Run(claim, ("a:1",)),)


@pytest.mark.parametrize(
    ("wish", "fault"),
    [
        (Want(7, "a:1"), Fault("there is no shard 7", missing=True)),
        (Want(0, "x:1"), Fault("there is no host x:1", missing=True)),
        (Want(0, "b:1"), Fault("b:1 is dead")),
        (Want(0, "c:1"), Fault("c:1 is draining")),
        (Want(0, "a:1"), None),
        (Want(0, NOBODY), None),
        (Drain("x:1", draining=True), Fault("there is no host x:1", missing=True)),
        (Drain("c:1", draining=False), None),
        (Leave("a:1"), Fault("a:1 is alive; drain it and stop it instead")),
        (Leave("c:1"), Fault("c:1 is alive; drain it and stop it instead")),
        (Leave("b:1"), None),
    ],
)
def test_a_wish_that_makes_no_sense_is_refused(wish: Want | Drain | Leave, fault: Fault | None) -> None:
    """By a host that sees why."""
    cluster = Cluster(3)
    a, b, _ = cluster.add("a:1"), cluster.add("b:1"), cluster.add("c:1")
    cluster.run(20)
    cluster.kill(b)
    cluster.run(20)
    cluster.book.take(Drain("c:1", draining=True))
    cluster.run(5)

    assert a.steward.fault_of(wish) == fault


def test_what_changed_is_seen_at_once_when_somebody_says_so() -> None:
    """A nudge brings the next look forward."""
    cluster = Cluster(2)
    a = cluster.add("a:1")
    cluster.run(10)
    resting = a.steward.step(cluster.now)
    a.steward.nudge(1, 5, "b:1")

    assert isinstance(resting, Rest)
    assert a.steward.step(cluster.now) == Look()


def test_a_hand_over_whose_answer_was_lost_is_found_written() -> None:
    """The host that leaves stays until the new one has opened the rows, as it may want the luggage, and a pin is written all the same."""
    steward = Steward("a:1", "1", "1", LEASE_SECONDS)
    book = Book(1)
    book.hosts["b:1"] = Host("b:1", "1", 1, "1")
    now, lost = 100.0, 0
    calls: list[object] = []
    while now < 105:
        now += 0.01
        step = steward.step(now)
        runs = steward.runs(now) or ()
        for run in runs:
            steward.listed(run.claim)
            steward.served(run.claim)
        if isinstance(step, Rest):
            if now > 102 and steward.counters["claims"]:
                book.take(Want(0, "b:1")) if not lost else None
                for claim in [Claim(0, "a:1", 1)] if not runs else []:
                    steward.ended(claim)
            book.hosts["b:1"] = Host("b:1", "1", int(now * 100), "1")
            continue
        assert not isinstance(step, Over)
        answer = book.take(step)
        calls.append(step)
        if isinstance(step, Hand) and step.host == "b:1" and not lost:
            lost, answer = 1, None  # type: ignore[assignment]
            steward.leave()
        steward.told(step, answer, now, now)

    assert lost
    assert book.holdings[0].host == "b:1"
    assert book.holdings[0].wanted == "b:1"
    assert not any(isinstance(call, Leave) for call in calls)
    assert steward.counters["moves_out"] == 1


def test_a_book_is_a_register() -> None:
    """A hand with another turn changes nothing."""
    book = Book(1)
    book.holdings[0] = Holding(0, "a:1", 3)

    assert not book.open(Claim(0, "a:1", 2))
    assert book.open(Claim(0, "a:1", 3))


def test_a_beat_whose_answer_was_lost_is_not_sent_again_with_the_same_number() -> None:
    """It may have been written, and others would take the same number once more for silence."""
    steward = Steward("a:1", "1", "1", LEASE_SECONDS)
    book = Book(1)
    now = 0.0
    beats: list[int] = []
    while len(beats) < 4:
        now += 0.01
        step = steward.step(now)
        if isinstance(step, Rest):
            now = step.until
            continue
        assert not isinstance(step, Over)
        answer = book.take(step)
        lost = isinstance(step, Beat) and len(beats) % 2 == 1
        if isinstance(step, Beat | Join):
            beats.append(step.host.beat)
        steward.told(step, None if lost else answer, now, now)

    assert beats == sorted(set(beats))


def test_a_shard_is_given_on_only_once_it_was_served_here() -> None:
    """What was in memory only, where it comes from, would be lost on the way else. A process that does not come to it is not waited for without end."""
    steward = Steward("a:1", "1", "1", LEASE_SECONDS)
    book = Book(1)
    now = 100.0
    given: list[float] = []
    while now < 130 and not given:
        now += 0.01
        book.hosts["b:1"] = Host("b:1", "1", int(now * 100), "1")
        if now > 103 and book.holdings[0].wanted != "b:1":
            book.take(Want(0, "b:1"))
        for run in (runs := steward.runs(now) or ()):
            steward.listed(run.claim)
        if not runs and steward.counters["claims"]:
            steward.ended(Claim(0, "a:1", 1))
        step = steward.step(now)
        assert not isinstance(step, Over)
        if isinstance(step, Rest):
            continue
        if isinstance(step, Hand) and step.host == "b:1":
            given.append(now)
        steward.told(step, book.take(step), now, now)

    assert [round(when) for when in given] == [110]
    assert book.holdings[0].wanted == "b:1"
