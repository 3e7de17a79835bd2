"""What a person reads of a run: the verdict, a line for each rule, and a line for each kind of fault."""

from __future__ import annotations

from collections import Counter

from tests.faults.history import SECOND
from tests.faults.run import Account, Result

P99_MIN = 300  # requests, for a percentile that means something
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
    """How long requests took that had nothing to do with a shard that was killed, while its successor came, against times without any fault."""
    history = result.history
    kills = [window for window in history.windows if window.fault == "shard killed" and not window.refused]
    calm: list[int] = []
    beside: list[int] = []
    struck = [(kill, {queue for death in history.deaths if kill.start <= death.t <= kill.stop for queue in death.queues}) for kill in kills]
    for op in history.ops:
        if op.wait or op.type != "ok" or op.s >= history.drained:
            continue
        if not any(window.start <= op.s <= window.stop + SECOND for window in history.windows):
            calm.append(op.told - op.s)
        elif any(kill.start <= op.s <= kill.stop and queues and op.queue not in queues for kill, queues in struck):
            beside.append(op.told - op.s)
    if len(calm) < P99_MIN or len(beside) < P99_MIN:
        return []
    usual, then = (sorted(times)[len(times) * 99 // 100] / 1e6 for times in (calm, beside))
    return [f"p99 of other shards' requests while one is killed and replaced: {then:.1f} ms, {then / usual:.2f} × that without a fault"]


def _counts(counters: list[Counter[str]]) -> str:
    total: Counter[str] = Counter()
    for counter in counters:
        total += counter
    return " ".join(f"{total[name]:>13}" for name in COLUMNS)


def _tail(result: Result) -> list[str]:
    return [f"trouble: {trouble}" for trouble in result.trouble] + [f"not tried here: {note}" for note in result.notes]
