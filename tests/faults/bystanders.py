"""How long requests took that had nothing to do with a shard that was killed, while its successor came, against times without any fault."""

from __future__ import annotations

from tests.faults.history import SECOND, History

P99_MIN = 300  # requests, for a percentile that means something
KILLED = "shard killed"


def bystanders(history: History) -> tuple[float, float] | None:
    """Return the 99th percentiles in seconds, without a fault and beside a kill; None where there are too few requests of either."""
    kills = [window for window in history.windows if window.fault == KILLED and not window.refused]
    struck = [(kill, {queue for death in history.deaths if kill.start <= death.t <= kill.stop for queue in death.queues}) for kill in kills]
    calm: list[int] = []
    beside: list[int] = []
    for op in history.ops:
        if op.wait or op.type != "ok" or op.s >= history.drained:
            continue
        if not any(window.start <= op.s <= window.stop + SECOND for window in history.windows):
            calm.append(op.told - op.s)
        elif any(kill.start <= op.s <= kill.stop and queues and op.queue not in queues for kill, queues in struck):
            beside.append(op.told - op.s)
    if len(calm) < P99_MIN or len(beside) < P99_MIN:
        return None
    usual, then = (sorted(times)[len(times) * 99 // 100] / SECOND for times in (calm, beside))
    return usual, then
