"""What a person reads of a run: the verdict, a line for each rule, and a line for each kind of fault."""

from __future__ import annotations

from collections import Counter

from tests.faults.bystanders import bystanders
from tests.faults.run import Account, Result

COLUMNS = ("ok", "429", "503", "no answer", "not connected")


def report(result: Result) -> str:
    """Return the whole report."""
    return "\n".join([*_head(result), "", *_rules(result), "", *_faults(result), *_bystanders(result), *_tail(result)])


def _head(result: Result) -> list[str]:
    outcomes = Counter(op.type for op in result.history.ops)
    return [
        f"store {result.kind} · seed {result.plan.seed} · {result.seconds:.0f} s · {len(result.history.ops)} operations, of which "
        + ", ".join(f"{outcomes[name]} {name}" for name in ("ok", "fail", "unknown")),
        result.judgement.text(),
    ]


def _rules(result: Result) -> list[str]:
    lines = [f"{'rule':<5} {'checked':>9} {'broken':>7}  what it says"]
    for finding in result.judgement.findings.values():
        notes = "; ".join(f"{what}: {count}" for what, count in finding.notes.items())
        lines.append(f"{finding.rule:<5} {finding.checked:>9} {finding.broken:>7}  {finding.claim}{f' ({notes})' if notes else ''}")
    return lines


def _faults(result: Result) -> list[str]:
    """Persisted jobs, then queues that hold none. The other answers (404, 409) are neither here nor there."""
    kinds: dict[str, list[Account]] = {}
    for account in result.accounts:
        kinds.setdefault(account.window.fault, []).append(account)
    if not kinds:
        return ["no fault"]
    head = " ".join(f"{name:>13}" for name in COLUMNS)
    lines = [f"{'fault':<18} {'times':>5} {'healed, ms':>10} | persisted: {head} | in memory: {head}"]
    for name, accounts in sorted(kinds.items()):
        healed = [account.healed_ms for account in accounts if account.healed_ms is not None]
        lines.append(
            f"{name:<18} {len(accounts):>5} {max(healed, default=0):>10} |            {_counts([account.persisted for account in accounts])}"
            f" |            {_counts([account.memory for account in accounts])}"
        )
    return lines


def _bystanders(result: Result) -> list[str]:
    found = bystanders(result.history)
    if found is None:
        return []
    usual, then = found
    return [
        f"p99 of other shards' requests while one is killed and replaced: {then * 1e3:.1f} ms, {then / usual:.2f} × that without a fault"
    ]


def _counts(counters: list[Counter[str]]) -> str:
    total: Counter[str] = Counter()
    for counter in counters:
        total += counter
    return " ".join(f"{total[name]:>13}" for name in COLUMNS)


def _tail(result: Result) -> list[str]:
    return [f"trouble: {trouble}" for trouble in result.trouble] + [f"not tried here: {note}" for note in result.notes]
