"""The power is cut at chosen moments of recorded runs on SQLite; and the parts that do this are tried on what is known.

`python -m tests.faults.power_cut --cuts 1000` is the long form.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import pytest

from proteus_shards.core.commands import Complete, Done, Enqueue, Heartbeat
from proteus_shards.core.commands_control import SetQueue
from proteus_shards.core.model import Batch, Record, Row
from tests.faults.power_cut import SERVER, Campaign, judge_moved
from tests.faults.power_cut_disk import Disk, Image
from tests.faults.power_cut_trace import Call, Moment, Reader, need_strace
from tests.faults.power_cut_truth import Kept, Truth
from tests.faults.power_cut_work import Answered, Committing, Sent
from tests.store.rows import as_dict, make_record, make_row, recording

SEED = 20261123


@pytest.fixture
def campaign(tmp_path: Path) -> Campaign:
    """Return what makes recordings below the test's folder. Skips where nothing can be recorded."""
    need_strace()
    return Campaign(tmp_path, SEED, operations=400)


# --- the product -------------------------------------------------------------------------------------------------


def test_no_cut_loses_what_was_acknowledged(campaign: Campaign) -> None:
    """With synchronous=full: it opens by itself, is whole, and has every acknowledged change, from the making of the store to its end."""
    report = campaign.work(140)

    assert report.faults == []
    assert (report.cuts, report.disks) == (140, 280)
    assert max(report.commits_lost) <= 1  # the one that was under way


def test_no_cut_of_a_whole_server_loses_what_a_client_was_answered(campaign: Campaign) -> None:
    """From its start to its end: supervisor, front, two shards, and clients in the same record."""
    campaign.program = SERVER
    report = campaign.work(50)

    assert report.faults == []
    assert (report.cuts, report.disks) == (50, 100)


def test_normal_loses_the_last_commits_and_nothing_else(campaign: Campaign) -> None:
    """With synchronous=normal what is there is what was there at some moment before: nothing is torn, out of order or invented."""
    campaign.synchronous, campaign.log_pages = "normal", 1000
    report = campaign.work(20)

    assert report.faults == []
    assert report.cuts_with_loss > 0


def test_a_new_store_is_there_whole_or_not_at_all(campaign: Campaign) -> None:
    """The next start makes it without help, and it stays once a start has succeeded."""
    report = campaign.create(40)

    assert report.faults == []
    assert report.cuts == 40


def test_a_move_that_is_cut_loses_and_reorders_nothing(campaign: Campaign) -> None:
    """The next start may be for the old or the new number of shards."""
    report = campaign.move(40)

    assert report.faults == []
    assert report.cuts == 40


@pytest.mark.parametrize("part", ["answers first", "no folder sync", "no sync above", "no file sync"])
def test_a_part_that_is_missing_is_found(campaign: Campaign, part: str) -> None:
    """Answers before the commit, and each sync that making a store needs: without it there are faults."""
    campaign.sabotage, campaign.operations = part, 60
    report = campaign.work(8) if part == "answers first" else campaign.create(30)

    assert report.faults


# --- the disk ----------------------------------------------------------------------------------------------------


def after(start: Image, *calls: Call) -> Disk:
    """Return a disk on which some calls were made, one after the other."""
    disk = Disk(start)
    for call in calls:
        disk.follow(Moment(True, call))
        disk.follow(Moment(False, call))
    return disk


def possible(disk: Disk) -> set[tuple[tuple[str, bytes | None], ...]]:
    """Return all that many draws find on a disk."""
    chance = random.Random(1)
    return {tuple(sorted(disk.mixed(chance).items())) for _ in range(300)}


def test_only_what_was_synced_is_sure() -> None:
    """A write after the last sync may be there or not; what was before it is."""
    disk = after({"f": b"old"}, Call("write", "f", b"n", 0), Call("sync", "f"), Call("write", "f", b"new", 0))

    assert disk.synced() == {"f": b"nld"}
    assert disk.written() == {"f": b"new"}
    assert {b"nld", b"new", b"ned"} >= {dict(image)["f"] for image in possible(disk)} >= {b"nld", b"new"}


def test_a_write_that_has_not_returned_when_a_sync_begins_is_not_covered_by_it() -> None:
    """Nor is anything sure before the sync has returned."""
    disk = Disk({"f": b"old"})
    write, sync = Call("write", "f", b"new", 0), Call("sync", "f")
    disk.follow(Moment(True, write))
    disk.follow(Moment(True, sync))
    disk.follow(Moment(False, write))
    disk.follow(Moment(False, sync))
    later = after({"f": b"old"}, write)
    later.follow(Moment(True, sync))

    assert [{"f": b"old"}] * 2 == [disk.synced(), later.synced()]
    later.follow(Moment(False, sync))
    assert later.synced() == {"f": b"new"}


def test_sectors_reach_the_disk_in_any_order_and_one_may_be_torn() -> None:
    """The second without the first, and half of one."""
    disk = after({"f": bytes(1024)}, Call("write", "f", b"1" * 1024, 0))
    found = [dict(image)["f"] or b"" for image in possible(disk)]

    assert bytes(512) + b"1" * 512 in found
    assert any(0 < content[:512].count(b"1") < 512 for content in found)


def test_a_name_is_sure_once_its_folder_is_synced() -> None:
    """A file that was synced may be nowhere until then, and one that was renamed is under one name or the other."""
    made = after({"d": None}, Call("create", "d/f"), Call("write", "d/f", b"x", 0), Call("sync", "d/f"))
    renamed = after({"f": b"x"}, Call("rename", "f", b"g"))

    assert possible(made) == {(("d", None),), (("d", None), ("d/f", b"x"))}
    assert possible(renamed) == {(("f", b"x"),), (("g", b"x"),)}
    assert after({"f": b"x", "g": b"y"}, Call("rename", "f", b"g"), Call("sync", "")).synced() == {"g": b"x"}
    assert after({"f": b"x"}, Call("unlink", "f"), Call("sync", "")).synced() == {}
    assert after({}, Call("mkdir", "d"), Call("create", "d/f"), Call("sync", "d")).synced() == {}


# --- the record --------------------------------------------------------------------------------------------------


def hexed(text: str) -> str:
    """Return a string as strace writes it."""
    return "".join(f"\\x{byte:02x}" for byte in text.encode())


def read(tmp_path: Path, *lines: str) -> list[Moment]:
    """Return what lines about the folder "/disk" mean."""
    return list(Reader(Path("/disk"), tmp_path / "told").moments(lines))


def test_a_call_that_another_thread_interrupts_has_its_two_moments(tmp_path: Path) -> None:
    """What stands between them happened meanwhile."""
    file, other = hexed("/disk/f"), hexed("/disk/g")
    moments = read(
        tmp_path,
        f'7 pwrite64(3<{file}>, "{hexed("ab")}", 2, 9 <unfinished ...>',
        f"8 fdatasync(4<{other}>) = 0",
        "7 <... pwrite64 resumed>) = 2",
        f'7 unlink("{other}") = -1 ENOENT (No such file or directory)',
        "7 +++ exited with 0 +++",
    )
    write, sync = Call("write", "f", b"ab", 9), Call("sync", "g")

    assert moments == [Moment(True, write), Moment(True, sync), Moment(False, sync), Moment(False, write)]


def test_names_change_by_short_and_by_long_calls_alike(tmp_path: Path) -> None:
    """A machine has the one kind or the other."""
    here, first, second = f"AT_FDCWD<{hexed('/')}>", f'"{hexed("/disk/f")}"', f'"{hexed("/disk/g")}"'
    short = [f"7 mkdir({first}, 0700) = 0", f"7 rename({first}, {second}) = 0", f"7 unlink({first}) = 0", f"7 rmdir({first}) = 0"]
    long = [
        f"7 mkdirat({here}, {first}, 0700) = 0",
        f"7 renameat({here}, {first}, {here}, {second}) = 0",
        f"7 unlinkat({here}, {first}, 0) = 0",
        f"7 unlinkat({here}, {first}, AT_REMOVEDIR) = 0",
    ]
    expected = [Call("mkdir", "f"), Call("rename", "f", b"g"), Call("unlink", "f"), Call("rmdir", "f")]

    assert expected == [moment.call for moment in read(tmp_path, *short) if moment.begins]
    assert expected == [moment.call for moment in read(tmp_path, *long) if moment.begins]
    assert read(tmp_path, f"7 renameat2({here}, {first}, {here}, {second}, 0) = 0")[0].call == expected[1]


def test_a_call_that_is_not_modelled_is_refused(tmp_path: Path) -> None:
    """It would be misread; elsewhere it does no harm."""
    file, elsewhere = hexed("/disk/f"), hexed("/other/f")

    assert read(tmp_path, f"7 fallocate(3<{elsewhere}>, 0, 0, 10) = 0") == []
    with pytest.raises(AssertionError, match="fallocate of /disk/f is not modelled"):
        read(tmp_path, f"7 fallocate(3<{file}>, 0, 0, 10) = 0")
    with pytest.raises(AssertionError, match="mmap of /disk/f is not modelled"):
        read(tmp_path, f"7 mmap(NULL, 4096, PROT_READ|PROT_WRITE, MAP_SHARED, 3<{file}>, 0) = 0x7f00")


# --- the judgement -----------------------------------------------------------------------------------------------


def truth_of(*rows: Row) -> Truth:
    """Return what is known when these rows were enqueued and acknowledged."""
    truth = Truth(Kept())
    for number, row in enumerate(rows):
        truth.take(Sent([(number, Enqueue(row.queue, row.id, row.timeout, True, row.max_retries, row.payload))]))
    truth.take(Committing(Batch([], list(rows), [])))
    truth.take(Answered([(number, Done()) for number in range(len(rows))]))
    return truth


def test_each_thing_that_is_wrong_has_its_word() -> None:
    """Lost, back, changed, invented, out of order, torn; a job that is as it should be has none."""
    first, second, stray = (make_row(number, id=f"{number}") for number in (1, 2, 3))
    swapped = [make_row(1, id="2", payload=second.payload), make_row(2, id="1", payload=first.payload)]
    other = make_row(2, id="2", payload=b"0")

    def kinds(truth: Truth, *rows: Row, records: Sequence[Record] = ()) -> set[str]:
        return {fault.kind for fault in truth.judge(Kept(list(rows), as_dict(*records)))}

    truth = truth_of(first, second)
    assert kinds(truth, first, second) == set()
    assert kinds(truth, first) == {"lost", "torn"}
    assert kinds(truth) == {"lost"}  # as before the commit
    assert kinds(truth, first, second, stray) == {"invented", "torn"}
    assert kinds(truth, *swapped) == {"order", "torn"}
    assert kinds(truth, first, other) == {"changed", "torn"}
    truth.take(Sent([(9, Heartbeat("q", "1", None, b"7"))]))
    assert kinds(truth, first, second) == set()
    truth.take(Answered([(9, Done())]))
    assert kinds(truth, first, second) == {"state"}
    truth.take(Sent([(10, Complete("q", "2"))]))
    assert kinds(truth, first, second) == {"state"}
    truth.take(Answered([(10, Done())]))
    assert kinds(truth, first, second) == {"state", "back"}
    assert [fault.kind for fault in judge_moved(Kept([first]), Kept([first, second]))] == ["lost"]
    assert [fault.kind for fault in judge_moved(Kept([first]), Kept([first], as_dict(make_record("q"))))] == ["settings"]


def test_settings_that_are_wrong_have_their_word() -> None:
    """Those that were answered last, or were sent since, and no others; with their commit or not at all."""
    truth = Truth(Kept())
    patches = [b'{"jobs_max":%d}' % number for number in range(3)]
    before, after, other = (make_record("q", patch) for patch in patches)

    def kinds(*records: Record) -> set[str]:
        return {fault.kind for fault in truth.judge(Kept([], as_dict(*records)))}

    assert kinds(before) == {"invented", "torn"}
    truth.take(Sent([(1, SetQueue("q", patches[0]))]))
    truth.take(Committing(recording(before)))
    assert (kinds(), kinds(before), kinds(other)) == (set(), set(), {"settings", "torn"})
    truth.take(Answered([(1, Done())]))
    truth.take(Sent([(2, SetQueue("q", patches[1]))]))
    assert (kinds(), kinds(before), kinds(after)) == ({"settings"}, set(), {"torn"})
    truth.take(Committing(recording(after)))
    truth.take(Answered([(2, Done())]))
    assert (kinds(before), kinds(after), kinds(after, make_record("r"))) == ({"settings"}, set(), {"invented", "torn"})
