"""Right histories at random break no rule; the same with one thing changed do."""

from __future__ import annotations

import random

import msgspec
import pytest

from tests.faults.checker import check
from tests.faults.evidence import Terms
from tests.faults.history import FOREVER, SECOND, History
from tests.faults.sequential import Author

SEEDS = 60
OPERATIONS = 400
TERMS = Terms(drains_min=1, audits_min=0, oks_min=1)


@pytest.mark.parametrize("seed", range(SEEDS))
def test_a_right_history_breaks_no_rule(seed: int) -> None:
    """Whatever overlaps, gets lost, is refused, goes silent or is forgotten."""
    judgement = check(Author(seed, OPERATIONS).write(), TERMS)

    assert set() == judgement.broken, f"seed {seed}: {judgement.text()}"


def spoil(history: History, rule: str, seed: int) -> bool:
    """Change one thing. Returns whether there was something to change."""
    ops = sorted(history.ops, key=lambda op: op.s)
    sent = {op.uid: op for op in ops if op.f == "enqueue"}
    delivered = [op for op in ops if op.f == "next" and op.jobs]
    given = random.Random(seed).choice(delivered).jobs[0]
    match rule:
        case "C1":  # a persisted job leaves no trace but its acknowledgement
            lost = next(op for op in sent.values() if op.type == "ok" and op.id == op.uid and op.persist)
            history.ops = [op for op in ops if op is lost or (op.id != lost.id and all(job.uid != lost.uid for job in op.jobs))]
        case "C2":
            given.payload_sha = "another"
        case "C3":
            given.attempt += 1000
        case "C4":  # an empty answer, soon after a delivery, brings the same job again
            for op in delivered:
                timeout = sent[op.jobs[0].uid].timeout * SECOND
                for empty in ops:
                    if empty.http_status == 204 and empty.queue == op.queue and op.e < empty.s and empty.e < op.s + timeout:
                        empty.jobs = [msgspec.structs.replace(op.jobs[0], attempt=op.jobs[0].attempt + 1, run_id="again")]
                        return True
            return False
        case "C5":  # a completed job comes once more
            for op in ops:
                found = [
                    job for other in delivered for job in other.jobs if job.run_id == op.run_id and op.f == "complete" and op.type == "ok"
                ]
                later = [other for other in delivered if other.s > op.e and other.queue == op.queue]
                if found and later:
                    later[-1].jobs.append(msgspec.structs.replace(found[0], attempt=found[0].attempt + 1, run_id="again"))
                    return True
            return False
        case "C10":
            refused = [op for op in ops if op.http_status == 429]
            for op in refused:
                op.retry_after = 0
            return bool(refused)
    return True


@pytest.mark.parametrize("rule", ["C1", "C2", "C3", "C4", "C5", "C10"])
def test_one_change_is_enough(rule: str) -> None:
    """In some twenty histories, those that can be spoilt in this way are found, all of them."""
    spoilt = 0
    for seed in range(20):
        history = Author(seed, OPERATIONS).write()
        if spoil(history, rule, seed):
            spoilt += 1
            assert rule in check(history, TERMS).broken, f"seed {seed}"

    assert spoilt > 0


def test_unknown_is_never_over() -> None:
    """An operation of unknown outcome may have its effect at any later time."""
    assert all(op.e == FOREVER for op in Author(3, OPERATIONS).write().ops if op.type == "unknown")
