"""`proteus-shards doctor`: whether a store is fit for a server, found out without one, or beside one that runs.

First the store's own kind looks at the place (`Kind.examine`). Where that finds no fault, a trial store in the same place is timed: it commits nothing
that a shard would ever meet and takes no shard's epoch, so that a running server notices no more than some load. It is bounded
in time and rows, deletes what it has written, and only counts commits that have been acknowledged.

A store that is away is a finding, not an error: what was tried, and what came of it. Only a store that cannot be asked for at all is an error,
of the setting.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections import Counter

import msgspec

from proteus_shards.core.model import Batch, Kind, Record, RecordKey, Row, RowKey, Status
from proteus_shards.core.placement import slot_of
from proteus_shards.errors import StoreError, StoreRefused
from proteus_shards.store.contract import Durability, Store
from proteus_shards.store.findings import Finding
from proteus_shards.store.registry import examine_store, make_trial, prepared_shards

EXAMINE_SECONDS_MAX = 60.0
TRIAL_SECONDS_MAX = 60.0
ROUND_TRIPS = 20
ROUND_TRIPS_SECONDS_MAX = 2.0
ROUND_TRIP_MS_FAR = 20.0
RATE_SECONDS = 1.0
RATE_ROWS_MAX = 20_000  # in all of one rate
BATCHES = (1, 100)
ROW_BYTES = 110  # of payload

_QUEUE = "trial"
_PLURALS = {"fault": "faults", "warning": "warnings", "note": "notes"}


class Rate(msgspec.Struct, frozen=True):
    """How fast rows were committed, in batches of one size, one batch after the other."""

    batch_rows: int
    rows_per_second: float
    commit_ms: float  # median


class Report(msgspec.Struct, kw_only=True):
    """What a doctor has to say."""

    store: str  # the scheme of its URL
    sound: bool = True  # no finding is a fault
    durability: str | None = None  # as a shard would find it; None where that could not be found out
    round_trip_ms: float | None = None
    rates: list[Rate] = []
    findings: list[Finding] = []

    @property
    def summary(self) -> str:
        """One line."""
        counts: Counter[str] = Counter(finding.level for finding in self.findings)
        parts = [f"{counts[level]} {level if counts[level] == 1 else _PLURALS[level]}" for level in _PLURALS if counts[level]]
        verdict = "fit for a server" if self.sound else "not fit for a server"
        return f"{self.store}: {verdict}" + (f" ({', '.join(parts)})" if parts else "")


def run(url: str, required: str = "memory") -> Report:
    """Examine a store and try it, in an event loop of its own. Raises `SettingError`."""
    return asyncio.run(diagnose(url, Durability(required)))


async def diagnose(url: str, required: Durability) -> Report:
    """Examine a store and try it. Raises `SettingError`."""
    trial = make_trial(url)
    found: list[Finding] = []
    try:
        async with asyncio.timeout(EXAMINE_SECONDS_MAX):
            async for finding in examine_store(url):
                found.append(finding)  # noqa: PERF401  # those that came before a fault count too
    except TimeoutError:
        found.append(
            Finding("fault", f"the store did not answer within {EXAMINE_SECONDS_MAX:.0f} s", "see whether it runs and can be reached")
        )
    except StoreError as error:
        found.append(Finding("fault", f"the store cannot be looked at: {error}"))
    report = Report(store=trial.kind, findings=found)
    if not any(finding.level == "fault" for finding in found):
        await _try(trial, report, required, url)
    report.sound = not any(finding.level == "fault" for finding in found)
    return report


async def _try(trial: Store, report: Report, required: Durability, url: str) -> None:
    """Open a trial, look at what it promises, time it, and close it. What is found out is put into the report."""
    found = report.findings
    try:
        async with asyncio.timeout(TRIAL_SECONDS_MAX):
            if not await _opens(trial, found, url):
                return
            found.append(_durability(trial, required))
            report.durability = str(trial.durability)
            if trial.keeps:
                await _time(trial, report)
    except TimeoutError:
        found.append(Finding("fault", f"a trial took more than {TRIAL_SECONDS_MAX:.0f} s", "see whether the store is overloaded"))
    except StoreError as error:
        found.append(Finding("fault", f"a trial failed: {error}"))
    finally:
        try:
            await trial.close()
        except StoreError as error:
            found.append(Finding("warning", f"the trial's traces could not be removed: {error}"))


async def _opens(trial: Store, found: list[Finding], url: str) -> bool:
    """Open a trial. A store that is there, and merely has no tables before the first start, is not at fault."""
    try:
        await trial.open()
    except StoreRefused:
        raise
    except StoreError as error:
        if await prepared_shards(url) is not None:
            raise
        found.append(Finding("note", f"no trial before the store is prepared: {error}", "start a server on it once, and run this again"))
        return False
    return True


def _durability(trial: Store, required: Durability) -> Finding:
    what = f"durability {trial.durability}: {trial.terms}"
    if not trial.durability.covers(required):
        remedy = "change the store's own settings, or ask for less"
        return Finding("fault", f"{what}; that is weaker than what --require-durability asks for ({required})", remedy)
    if trial.durability is Durability.WEAK:
        return Finding("warning", f"{what}; the last acknowledged jobs may be lost", "change the store's own settings")
    return Finding("good", what)


# --- timing ------------------------------------------------------------------------------------------------------


async def _time(trial: Store, report: Report) -> None:
    async for _ in trial.load():
        pass  # a shard does so too, before its first commit
    if not await _keeps_records(trial):
        report.findings.append(
            Finding("fault", "a record was written and could not be read back as it was: settings of queues would be lost")
        )
    round_trip_ms = await _round_trip_ms(trial)
    slow = round_trip_ms > ROUND_TRIP_MS_FAR
    report.findings.append(
        Finding(
            "warning" if slow else "good",
            f"an empty commit takes {round_trip_ms:.2f} ms",
            "bring server and store nearer together: each persisted request waits for at least one of these" if slow else "",
        )
    )
    report.round_trip_ms = round(round_trip_ms, 3)
    first = 0
    for size in BATCHES:
        written: list[RowKey] = []
        try:
            rate = await _rate(trial, min(size, trial.batch_rows_max or size), first, written)
        except StoreRefused as error:
            report.findings.append(Finding("warning", f"commits of {size} rows were refused: {error}", "jobs that come so fast get 429"))
        else:
            report.findings.append(Finding("good", _told(rate)))
            report.rates.append(rate)
        await _delete(trial, written)
        first += len(written)


async def _keeps_records(trial: Store) -> bool:
    """Write a record, read it, remove it."""
    key = RecordKey(slot_of(_QUEUE), int(Kind.QUEUE), _QUEUE)
    value = b"{}"
    await trial.commit(Batch([], [], [], [Record(key.slot, key.kind, key.name, value)]))
    found = await trial.read_records([key])
    await trial.commit(Batch([], [], [], [Record(key.slot, key.kind, key.name, None)]))
    return found == {key: value} and await trial.read_records([key]) == {}


async def _round_trip_ms(trial: Store) -> float:
    took: list[float] = []
    began = time.perf_counter()
    while len(took) < ROUND_TRIPS and time.perf_counter() - began < ROUND_TRIPS_SECONDS_MAX:
        before = time.perf_counter()
        await trial.commit(Batch([], [], []))
        took.append(time.perf_counter() - before)
    return statistics.median(took) * 1000


async def _rate(trial: Store, size: int, first: int, written: list[RowKey]) -> Rate:
    """Insert rows for about a second. What may have been written is noted in `written`."""
    took: list[float] = []
    began = time.perf_counter()
    while len(took) * size < RATE_ROWS_MAX and time.perf_counter() - began < RATE_SECONDS:
        rows = [_row(first + len(written) + number) for number in range(size)]
        before = time.perf_counter()
        await trial.commit(Batch([], rows, []))
        took.append(time.perf_counter() - before)
        written += [RowKey(row.slot, row.seq, row.queue, row.id) for row in rows]
    return Rate(size, round(len(written) / sum(took), 1), round(statistics.median(took) * 1000, 3))


async def _delete(trial: Store, written: list[RowKey]) -> None:
    size = min(1000, trial.batch_rows_max or 1000)
    for start in range(0, len(written), size):
        await trial.commit(Batch(written[start : start + size], [], []))


def _told(rate: Rate) -> str:
    each = "one by one" if rate.batch_rows == 1 else f"{rate.batch_rows} at a time"
    return f"jobs of {ROW_BYTES} bytes, {each}: {rate.rows_per_second:,.0f} a second, {rate.commit_ms:.2f} ms a commit"


def _row(seq: int) -> Row:
    now_us = time.time_ns() // 1000
    return Row(
        slot=slot_of(_QUEUE),
        seq=seq,
        queue=_QUEUE,
        id=f"trial-{seq}",
        status=int(Status.READY),
        ready_at=now_us,
        run_at=None,
        timeout=60,
        max_retries=0,
        attempt=0,
        run_id=None,
        reason=None,
        created_at=now_us,
        updated_at=now_us,
        payload=b'"%s"' % (b"x" * (ROW_BYTES - 2)),
        state=None,
    )
