"""Small histories written by hand: who asked what, from when to when (in seconds), and what came of it."""

from __future__ import annotations

from tests.faults.checker import Judgement, check
from tests.faults.evidence import Terms
from tests.faults.history import FOREVER, SECOND, Death, Given, History, Line, Op, Window

QUEUE = "q"
TERMS = Terms(drains_min=1, audits_min=0, oks_min=1)
STATUS = {"enqueue": 202, "next": 200, "heartbeat": 202, "complete": 200, "dead": 200}


class Story:
    """A history in the making. Each step is `(from, to)`; its outcome is ok unless `status` says otherwise: None is "unknown"."""

    def __init__(self) -> None:
        self.history = History(ops=[], windows=[], deaths=[], epochs=[], audits=[], drains=1, drained=int(1000 * SECOND))

    def enqueue(self, uid: str, s: float, e: float, status: int | None = 202, *, job_id: str = "", **fields: object) -> Story:
        """Send a job. `fields`: persist, timeout, max_retries, state."""
        op = self._op("enqueue", s, e, status, id=job_id or uid, uid=uid)
        op.persist, op.timeout, op.max_retries, op.payload_sha = True, 10, 5, f"sha of {uid}"
        return self._set(op, fields)

    def next(self, s: float, e: float, *uids: str, status: int | None = 200, attempt: int = 1, run: str = "", **fields: object) -> Story:
        """Ask for jobs and get some. Run ids are made of uid and attempt; `fields` change what was given."""
        op = self._op("next", s, e, status if uids or status != 200 else 204)
        for uid in uids:
            sent = next((other for other in self.history.ops if other.uid == uid and other.f == "enqueue"), None)
            given = Given(QUEUE, sent.id if sent else uid, uid, attempt, run or f"{uid}/{attempt}", payload_sha=f"sha of {uid}")
            if sent is not None:
                given.timeout, given.max_retries, given.persist = sent.timeout, sent.max_retries, sent.persist
                given.state = sent.state or "null"
            for name, value in fields.items():
                setattr(given, name, value)
            op.jobs.append(given)
        return self

    def beat(self, run: str, s: float, e: float, status: int | None = 202, *, state: str | None = None, job_id: str = "") -> Story:
        """Send a heartbeat of a run, or, with a `job_id` and no run, of whatever is in flight under that id."""
        self._op("heartbeat", s, e, status, id=job_id or run.partition("/")[0], run_id=run, state=state)
        return self

    def complete(self, run: str, s: float, e: float, status: int | None = 200, *, job_id: str = "") -> Story:
        """Complete a run, or whatever has the id."""
        self._op("complete", s, e, status, id=job_id or run.partition("/")[0], run_id=run)
        return self

    def dead(self, uid: str, attempt: int, s: float = 900) -> Story:
        """Find a job among the dead letters."""
        op = self._op("dead", s, s + 1, 200)
        op.jobs.append(Given(QUEUE, uid, uid, attempt))
        return self

    def done(self, uid: str, s: float) -> Story:
        """Let a job be delivered and completed, as it should be."""
        return self.next(s, s + 0.1, uid).complete(f"{uid}/1", s + 0.2, s + 0.3)

    def fault(self, s: float, e: float) -> Story:
        """Let a fault happen."""
        self.history.windows.append(Window("shard killed", "shard", int(s * SECOND), int(e * SECOND)))
        return self

    def death(self, t: float, *, by_itself: bool = False) -> Story:
        """Let the shard of the queue end."""
        self.history.deaths.append(Death(int(t * SECOND), frozenset({QUEUE}), by_itself))
        return self

    def epochs(self, *epochs: int) -> Story:
        """Let a shard take epochs."""
        self.history.epochs += [("shard 0", epoch) for epoch in epochs]
        return self

    def audit(self, **counts: int) -> Story:
        """Look at the store in the end."""
        named = {name.replace("_", " "): count for name, count in counts.items()}
        self.history.audits.append(Line(0, 0, "audit", "info", 0, target="shard 0", counts=named))
        return self

    def retry_after(self, seconds: int | None) -> Story:
        """Let the last answer have this Retry-After."""
        self.history.ops[-1].retry_after = seconds
        return self

    def judgement(self, terms: Terms = TERMS) -> Judgement:
        """Judge it."""
        return check(self.history, terms)

    def _op(self, f: str, s: float, e: float, status: int | None, **fields: object) -> Op:
        kind = "unknown" if status is None or status >= 500 else "ok" if status < 300 else "fail"
        told = int(e * SECOND)
        op = Op(
            len(self.history.ops) + 1,
            f,
            kind,
            int(s * SECOND),
            FOREVER if kind == "unknown" else told,
            QUEUE,
            "",
            "",
            False,
            0,
            0,
            "",
            None,
            "",
            0.0,
            0,
            status or 0,
            1 if status in {429, 503} else None,
            [],
            told,
        )
        self._set(op, fields)
        self.history.ops.append(op)
        return op

    def _set(self, op: Op, fields: dict[str, object]) -> Story:
        for name, value in fields.items():
            setattr(op, name, value)
        return self
