"""Is there anything in this history that must not be? Pure: lines in, a verdict out.

How to think about it: the checker knows what clients saw, and when, never what the server did. An operation has its effect at some
moment between its `s` and its `e`, one of unknown outcome perhaps later, perhaps never. A rule is broken only where no choice of those
moments explains what was seen, so that a slow machine breaks none. The price is that some faults pass where operations overlap; many
operations, many seeds and unique ids make up for that.

What is followed is a *generation*: one enqueue of one id. Its uid stands inside the payload, so that each delivery tells its generation. A
*run* is one delivery; its run_id tells the same for heartbeats and completions that name it. Those that name none mean whatever
job of that name is live, and are believed only where no other reading is left.

The verdict is *true*, *false* or *unknown*; unknown means that the run proved nothing (no full drain, too few operations, a planned
fault that did not happen), and counts as a failure.

Sorting apart, each rule looks at each operation once or by bisection, among those of one name or queue: 100,000 operations take 1 to 2 s.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from enum import StrEnum

import msgspec

from tests.faults import rules_jobs, rules_order, rules_server
from tests.faults.evidence import Broken, Evidence, Finding, Terms
from tests.faults.history import History

WITNESSES_MAX = 5  # broken places that are kept per rule; all are counted


class Verdict(StrEnum):
    """What a history says."""

    TRUE = "true"
    FALSE = "false"
    UNKNOWN = "unknown"


class Judgement(msgspec.Struct):
    """The verdict on a history, and why."""

    verdict: Verdict
    findings: dict[str, Finding]
    doubts: list[str]  # why it is unknown

    @property
    def broken(self) -> set[str]:
        """The rules that do not hold."""
        return {name for name, finding in self.findings.items() if finding.broken}

    def text(self) -> str:
        """Return the reasons in a few lines."""
        lines = [f"verdict: {self.verdict}", *(f"unknown: {doubt}" for doubt in self.doubts)]
        for finding in self.findings.values():
            lines += [f"{finding.rule} broken: {witness.what} {witness.where}" for witness in finding.witnesses]
        return "\n".join(lines)


Rule = Callable[[Evidence, Finding], Iterator[Broken]]

RULES: dict[str, tuple[str, Rule]] = {
    "C1": ("an acknowledged job is delivered, and then completed or dead", rules_jobs.lost),
    "C2": ("what is delivered was sent so, and was not refused", rules_jobs.invented),
    "C3": ("a job is delivered max_retries + 1 times at most, each attempt once", rules_jobs.attempts),
    "C4": ("a job comes back after its timeout, not before, and soon", rules_jobs.early_or_late),
    "C5": ("what was completed does not come back", rules_jobs.resurrected),
    "C6": ("a run that is over changes nothing", rules_jobs.zombies),
    "C7": ("one live job of an id; 409 and 404 have their reasons", rules_jobs.singletons),
    "C8": ("a job carries the newest state", rules_jobs.states),
    "C9": ("first deliveries of a queue are in order", rules_order.order),
    "C10": ("429 and 503 say when to try again; 429 had no effect", rules_server.refusals),
    "C11": ("the store is empty and sound in the end", rules_server.audit),
    "C12": ("each queue serves again soon after a fault, and others do meanwhile", rules_server.healing),
    "C13": ("epochs only grow, and no process ends by itself", rules_server.owners),
}


def check(history: History, terms: Terms | None = None) -> Judgement:
    """Judge a history."""
    evidence = Evidence(history, terms or Terms())
    findings = {}
    for name, (claim, rule) in RULES.items():
        finding = findings[name] = Finding(name, claim)
        for broken in rule(evidence, finding):
            finding.broken += 1
            if len(finding.witnesses) < WITNESSES_MAX:
                finding.witnesses.append(broken)
    doubts = list(_doubts(evidence))
    if any(finding.broken for finding in findings.values()):
        return Judgement(Verdict.FALSE, findings, doubts)
    return Judgement(Verdict.UNKNOWN if doubts else Verdict.TRUE, findings, doubts)


def _doubts(evidence: Evidence) -> Iterator[str]:
    history, terms = evidence.history, evidence.terms
    if history.drains < terms.drains_min:
        yield f"{history.drains} complete drains, of {terms.drains_min}"
    if len(history.audits) < terms.audits_min:
        yield f"{len(history.audits)} audits of the store, of {terms.audits_min}"
    oks = dict.fromkeys((op.queue for op in history.ops), 0)
    for op in history.ops:
        if op.type == "ok":
            oks[op.queue] += 1
    if not oks:
        yield "no operation"
    for queue, count in oks.items():
        if count < terms.oks_min:
            yield f"queue {queue} has {count} operations that are ok, of {terms.oks_min}"
    fired = sum(1 for window in history.windows if window.stop > window.start and not window.refused)
    if fired < history.planned:
        yield f"{fired} faults happened, of {history.planned}"
    if any(window.stop >= history.drained for window in history.windows):
        yield "a fault went on into the drain"
