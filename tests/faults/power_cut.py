"""Cut the power at any moment of a run on SQLite, recover from what is then on the disk, and compare with what clients had been told.

    python -m tests.faults.power_cut --cuts 1000 --synchronous full --seed 7

A run is recorded by strace (`power_cut_trace.py`): the making of the store, a shard at work on it with its real core, pump and store, its end
(`power_cut_work.py`). At each cut point two disks are built (`power_cut_disk.py`), one with only what was synced, one with a seeded choice of
all else that may be there, and the product recovers from each by itself. The next round starts from one of these disks, so that cuts during
a recovery occur too. Then the same is done with
the making of a new store, and with a move from 2 to 3 shards.

With --server a whole server is recorded, from its start to its end, together with clients that speak HTTP (`power_cut_server.py`).

The seed decides the operations and the choice of cuts, not which operations share a commit: that is a matter of time. So a failure
leaves the disk that it was found on.

With synchronous=normal the loss of the last commits is no fault. It is counted, and the rest is judged as before: nothing torn, out of order
or invented.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import shutil
import sqlite3
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec

from proteus_shards.core.model import Batch, Record, Row, Status
from proteus_shards.core.placement import slots_of
from proteus_shards.core.shard import Shard
from proteus_shards.errors import StoreError
from proteus_shards.shard.__main__ import read_clocks, run_ids
from proteus_shards.shard.pump import Pump
from proteus_shards.store.sqlite import SqliteStore
from proteus_shards.store.sqlite_folder import manifest_for
from proteus_shards.store.sqlite_prepare import prepare
from proteus_shards.store.urls import SqliteUrl
from tests.faults.power_cut_disk import Disk, Image, read_image, write_image
from tests.faults.power_cut_trace import Moment, record, why_not
from tests.faults.power_cut_truth import LOSSES, Fault, Kept, Truth, losses
from tests.faults.power_cut_work import Orders, TellingStore, Told
from tests.shard.scripted import limits
from tests.store.exercise import jobs_by_queue
from tests.store.rows import as_dict, make_record, make_row, opened

FOLDER = "new/data"  # of the store, below that of the disk: so the names above it may get lost too
OPERATIONS = 1500  # of one round
ROUND_CUTS = 250
FAULTS_SHOWN = 20
SHARD, SERVER = "tests.faults.power_cut_work", "tests.faults.power_cut_server"  # the programs that are recorded
MEMORY_DISK = Path("/dev/shm")  # images need not be durable


class Found(msgspec.Struct, frozen=True):
    """A fault on one disk."""

    cut: int
    disk: str
    fault: Fault
    kept: str = ""  # where that disk is, if it was kept


class Report(msgspec.Struct):
    """What came of some cuts."""

    cuts: int = 0
    disks: int = 0
    moments: int = 0
    faults: list[Found] = msgspec.field(default_factory=list)
    cuts_with_loss: int = 0
    most_lost: Counter[str] = msgspec.field(default_factory=Counter)  # in one cut: jobs, completions, …
    commits_lost: list[int] = msgspec.field(default_factory=list)  # per cut, on the disk with only what was synced

    def add(self, other: Report) -> None:
        """Take what another run found."""
        self.cuts += other.cuts
        self.disks += other.disks
        self.moments += other.moments
        self.faults += other.faults
        self.cuts_with_loss += other.cuts_with_loss
        self.most_lost |= other.most_lost
        self.commits_lost += other.commits_lost


Judge = Callable[[Path], list[Fault]]


# --- recovery ----------------------------------------------------------------------------------------------------


def recover(folder: Path, shards: int, synchronous: str = "full") -> Kept:
    """Do what a start of the server does, and return all that is there. Raises `StoreError` where someone would have to see to it."""
    prepare(SqliteUrl(folder), shards)
    kept = Kept()
    for shard in range(shards):
        found = asyncio.run(_recover_shard(SqliteUrl(folder, synchronous), shard, shards))
        kept.rows += found.rows
        kept.records |= found.records
    for path in folder.glob("generation-*/*.sqlite3"):
        with sqlite3.connect(path) as db:
            said = db.execute("PRAGMA integrity_check").fetchall()
        db.close()
        if said != [("ok",)]:
            raise StoreError(f"{path.name}: integrity_check says {said}")
    return kept


async def _recover_shard(url: SqliteUrl, shard: int, shards: int) -> Kept:
    store = TellingStore(url, shard, shards)
    try:
        pump = Pump(Shard(limits(dead_letters_max=10**6), run_ids()), store, read_clocks)
        await pump.recover()
        rows = [row for row in store.loaded if isinstance(row, Row)]
        if pump.damaged or pump.recovered != len(rows):
            raise StoreError(f"{pump.damaged} rows are damaged")
        return Kept(rows, as_dict(*[record for record in store.loaded_records if isinstance(record, Record)]))
    finally:
        await store.close()


# --- cuts --------------------------------------------------------------------------------------------------------


class Recording(msgspec.Struct):
    """A run: the disk at its start, and all that happened."""

    start: Image
    moments: list[Moment]


def record_run(orders: Orders, base: Path, start: Image, program: str = SHARD) -> Recording:
    """Run what is ordered on a disk, in a folder of its own below `base`."""
    with tempfile.TemporaryDirectory(dir=base) as name:
        disk = Path(name, "disk").resolve()
        disk.mkdir()
        write_image(start, disk)
        told, lines = disk.with_name("told"), disk.with_name("strace")
        orders = msgspec.structs.replace(orders, folder=str(disk / FOLDER), told=str(told))
        moments = record(disk, lines, ["-m", program, msgspec.json.encode(orders).decode()], told)
        follower = Disk(start)
        for moment in moments:
            follower.follow(moment)
        assert follower.written() == read_image(disk), "what was recorded is not what is on the disk"
        return Recording(start, moments)


def cut_points(moments: Sequence[Moment], count: int, chance: random.Random) -> list[int]:
    """Choose moments after which the power goes: half of them just when an answer is out, the others anywhere. All, if there are no more."""
    changes = [index for index, moment in enumerate(moments) if moment.call.name != "tell"]
    answers = [index for index, moment in enumerate(moments) if moment.call.name == "tell" and moment.begins]
    chosen = chance.sample(answers, min(len(answers), max(count // 2, count - len(changes))))
    return sorted(chosen + chance.sample(changes, min(len(changes), count - len(chosen))))


def told_by(moment: Moment) -> Told | None:
    """Return what is told at a moment: it counts from its beginning, when it may already be heard."""
    if moment.call.name != "tell" or not moment.begins:
        return None
    told: Told = msgspec.msgpack.decode(moment.call.data, type=Told)
    return told


def walk(recording: Recording, points: Sequence[int], tell: Callable[[Told], None]) -> Iterator[tuple[int, Disk]]:
    """Go through a run, and stop at each point with the disk as it then is."""
    disk = Disk(recording.start)
    wanted = set(points)
    for index, moment in enumerate(recording.moments):
        disk.follow(moment)
        if (told := told_by(moment)) is not None:
            tell(told)
        if index in wanted:
            yield index, disk


@contextmanager
def image_folder(image: Image) -> Iterator[Path]:
    """Write a disk for a moment, in memory where that can be done."""
    with tempfile.TemporaryDirectory(dir=MEMORY_DISK if MEMORY_DISK.is_dir() else None, prefix="power-cut-") as name:
        folder = Path(name)
        write_image(image, folder)
        yield folder


def try_disk(image: Image, judge: Judge) -> list[Fault]:
    """Recover from a disk and judge. A start that fails is a fault of the kind "start"."""
    with image_folder(image) as folder:
        try:
            return judge(folder / FOLDER)
        except (StoreError, AssertionError) as error:
            return [Fault("start", f"{type(error).__name__}: {error}")]


# --- a shard at work ---------------------------------------------------------------------------------------------


class Campaign(msgspec.Struct):
    """What to try. `keep`: where disks with faults are left."""

    base: Path
    seed: int
    synchronous: str = "full"
    operations: int = OPERATIONS
    log_pages: int = 60
    free_pages: int = 8
    sabotage: str = ""
    keep: Path | None = None
    program: str = SHARD
    say: Callable[[str], None] = lambda _: None

    def work(self, cuts: int) -> Report:
        """Cut a shard at work, in rounds that each start from a disk of the one before."""
        report = Report()
        image: Image = {}
        kept = Kept()
        while report.cuts < cuts:
            chance = random.Random(f"{self.seed} {report.cuts}")
            found, image, kept = self._round(min(ROUND_CUTS, cuts - report.cuts), chance, image, kept)
            report.add(found)
            self.say(f"{report.cuts} cuts, {report.disks} disks, {len(report.faults)} faults, {report.cuts_with_loss} cuts with a loss")
        return report

    def _round(self, count: int, chance: random.Random, start: Image, kept: Kept) -> tuple[Report, Image, Kept]:
        is_shard = self.program == SHARD
        shards = 1 if is_shard else 2
        truth = Truth(kept, knows_commits=is_shard)
        orders = Orders(
            folder="", told="", shards=shards, seed=chance.getrandbits(32), operations=self.operations, synchronous=self.synchronous,
            log_pages=self.log_pages, free_pages=self.free_pages, first=truth.first, sabotage=self.sabotage,
        )  # fmt: skip
        recording = record_run(orders, self.base, start, self.program)
        report = Report(moments=len(recording.moments))
        points = cut_points(recording.moments, count, chance)
        next_start, next_kept = start, kept
        for index, disk in walk(recording, points, truth.take):
            report.cuts += 1
            lost: Counter[str] = Counter()
            for name, image in (("synced", disk.synced()), ("mixed", disk.mixed(chance))):
                found: list[Kept] = []

                def judge(folder: Path, found: list[Kept] = found) -> list[Fault]:
                    found.append(recover(folder, shards, self.synchronous))
                    return truth.judge(found[0])

                faults = try_disk(image, judge)
                report.disks += 1
                loss = losses(faults) if self.synchronous == "normal" else Counter()
                lost |= loss
                worse = [fault for fault in faults if fault.kind not in loss]
                report.faults += [Found(index, name, fault, self._kept(image, index, name)) for fault in worse]
                if is_shard and name == "synced" and not worse:
                    report.commits_lost.append(truth.lost_commits(found[0]))
                if not faults and name == "mixed" and chance.random() < 0.1:
                    next_start, next_kept = image, found[0]
            report.cuts_with_loss += bool(lost)
            report.most_lost |= lost
        return report, next_start, next_kept

    def _kept(self, image: Image, index: int, name: str) -> str:
        if self.keep is None:
            return ""
        folder = self.keep / f"cut-{index}-{name}"
        if not folder.exists():
            folder.mkdir(parents=True)
            write_image(image, folder)
        return str(folder)

    # --- making and moving a store -------------------------------------------------------------------------------

    def create(self, cuts: int) -> Report:
        """Cut the making of a new store. The next start finds nothing or all, and once the first has told that it is done, all."""
        return self._prepare(cuts, {}, Kept(), 2, (2,), random.Random(f"{self.seed} create"))

    def move(self, cuts: int) -> Report:
        """Cut a move from 2 to 3 shards. The next start is for either number, and finds every job and record."""
        chance = random.Random(f"{self.seed} move")
        rows = [self._row(seq, chance) for seq in range(120)]
        records = [
            make_record(f"queue {number}", b'{"of another version":"%s"}' % (b"r" * chance.choice((0, 20, 9000)))) for number in range(30)
        ]
        kept = Kept(rows, as_dict(*records))
        return self._prepare(cuts, filled(self.base, kept), kept, 3, (2, 3), chance)

    def _prepare(self, cuts: int, start: Image, kept: Kept, shards: int, later: Sequence[int], chance: random.Random) -> Report:
        truth = Truth(Kept())
        recording = record_run(Orders("", "", shards=shards, sabotage=self.sabotage), self.base, start)
        report = Report(moments=len(recording.moments))
        for index, disk in walk(recording, cut_points(recording.moments, cuts, chance), truth.take):
            report.cuts += 1
            for name, image in (("synced", disk.synced()), ("mixed", disk.mixed(chance))):
                count = chance.choice(later)

                def judge(folder: Path, count: int = count) -> list[Fault]:
                    if truth.prepared:
                        manifest_for(folder, shards)
                    return judge_moved(recover(folder, count), kept)

                faults = try_disk(image, judge)
                report.disks += 1
                report.faults += [Found(index, name, fault, self._kept(image, index, name)) for fault in faults]
        return report

    def _row(self, seq: int, chance: random.Random) -> Row:
        status = chance.choice((Status.READY, Status.READY, Status.IN_FLIGHT, Status.DEAD))
        run_id = chance.randbytes(16) if status is Status.IN_FLIGHT else None
        payload = b'"%s"' % (b"p" * chance.choice((10, 500, 6000)))
        return make_row(
            seq, f"q{chance.randrange(9)}", status=int(status), run_id=run_id, payload=payload, state=chance.choice((None, b"1"))
        )


def filled(base: Path, kept: Kept) -> Image:
    """Return a disk with these rows and records in 2 shards, whose process was killed: part of them lies in the logs."""
    with tempfile.TemporaryDirectory(dir=base) as name:
        url = SqliteUrl(Path(name, FOLDER))
        prepare(url, 2)

        async def fill() -> Image:
            async with opened(SqliteStore(url, 0, 2)) as first, opened(SqliteStore(url, 1, 2)) as second:
                for shard, store in enumerate((first, second)):
                    own = slots_of(shard, 2)
                    records = [Record(key.slot, key.kind, key.name, value) for key, value in kept.records.items() if key.slot in own]
                    await store.commit(Batch([], [row for row in kept.rows if row.slot in own], [], records))
                return read_image(Path(name))  # this lets go of their locks, which nobody else wants

        return asyncio.run(fill())


def judge_moved(found: Kept, kept: Kept) -> list[Fault]:
    """Compare the jobs of each queue, their order included, and the records."""
    if jobs_by_queue(found.rows) == jobs_by_queue(kept.rows):
        return [] if found.records == kept.records else [Fault("settings", f"{len(found.records)} records")]
    names = {(row.queue, row.id) for row in found.rows}
    lost = [f"{row.queue}/{row.id}" for row in kept.rows if (row.queue, row.id) not in names]
    return [Fault("lost", " ".join(lost)) if lost else Fault("changed", f"{len(found.rows)} rows")]


# --- the command -------------------------------------------------------------------------------------------------


def tell_report(title: str, report: Report) -> list[str]:
    """Return a report as lines."""
    lines = [f"{title}: {report.cuts} cut points of {report.moments} moments, {report.disks} disks recovered, {len(report.faults)} faults"]
    if report.commits_lost:
        total = len(report.commits_lost)
        lines.append(
            f"  with only what was synced: on average {sum(report.commits_lost) / total:.1f} commits are not there, at most {max(report.commits_lost)}"
        )
    if report.cuts_with_loss:
        most = ", ".join(f"{kind} {report.most_lost[kind]}" for kind in LOSSES)
        lines.append(f"  {report.cuts_with_loss} cuts lose something that was answered; at most in one cut: {most}")
    shown = report.faults[:FAULTS_SHOWN]
    return lines + [f"  cut {found.cut}, disk {found.disk}: {found.fault.kind} {found.fault.detail[:300]} {found.kept}" for found in shown]


def main() -> int:
    """Run a campaign, print its report, and return 1 where there is a fault."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.power_cut", description=__doc__.partition("\n")[0])
    parser.add_argument("--cuts", type=int, default=1000, help="cut points of a shard at work")
    parser.add_argument("--move-cuts", type=int, default=100000, help="cut points of a move, and of the making of a store; by default all")
    parser.add_argument("--synchronous", choices=("full", "normal"), default="full")
    parser.add_argument("--seed", type=int, default=time.time_ns() % 2**32)
    parser.add_argument("--operations", type=int, default=OPERATIONS, help="in each round of 250 cuts")
    parser.add_argument("--log-pages", type=int, default=60, help="after which a checkpoint is due; the server's own number is 1000")
    parser.add_argument(
        "--sabotage", default="", help='leave out a part: "answers first", "no folder sync", "no file sync", "no sync above"'
    )
    parser.add_argument("--server", action="store_true", help="record a whole server and its clients, not one shard")
    parser.add_argument("--keep", type=Path, default=None, help="where disks with faults are left")
    given = parser.parse_args()
    if (reason := why_not()) is not None:
        sys.stderr.write(f"{reason}\n")
        return 2

    def say(line: str) -> None:
        sys.stdout.write(f"{line}\n")
        sys.stdout.flush()

    say(f"seed {given.seed}, SQLite {sqlite3.sqlite_version}, synchronous={given.synchronous}")
    began = time.monotonic()
    base = Path(tempfile.mkdtemp(prefix="power-cut-"))
    try:
        campaign = Campaign(base, given.seed, given.synchronous, given.operations, given.log_pages)
        campaign.sabotage, campaign.keep, campaign.say = given.sabotage, given.keep, say
        campaign.program = SERVER if given.server else SHARD
        work = campaign.work(given.cuts)
        created, moved = campaign.create(given.move_cuts), campaign.move(given.move_cuts)
    finally:
        shutil.rmtree(base)
    for line in tell_report("work", work) + tell_report("new store", created) + tell_report("move", moved):
        say(line)
    say(f"{time.monotonic() - began:.0f} s")
    return int(bool(work.faults or created.faults or moved.faults))


if __name__ == "__main__":
    sys.exit(main())
