"""The files in which counters outlive their processes."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from proteus_shards.core.commands import Sample
from proteus_shards.tally import METRICS, Tally, plus, read_tally, resident_bytes, tally_path

OWN = {"proteus_process_cpu_seconds_total", "proteus_process_resident_bytes", "proteus_event_loop_lag_seconds"}


def counted(samples: list[Sample]) -> dict[tuple[str, ...], float | list[float]]:
    """Return samples by name and labels, without what each process says of itself."""
    return {(name, *labels): value for name, labels, value in samples if name not in OWN}


def test_a_successor_goes_on_where_the_file_ends(tmp_path: Path) -> None:
    """Counters and histograms do; a gauge is what it is now, and what is counted no more stays."""
    first = Tally(str(tmp_path), "shard-0")
    rows = [1.0] * (len(METRICS["proteus_commit_rows"].bounds) + 2)
    first.keep([("proteus_heartbeats_total", ["0"], 5), ("proteus_polls", ["0"], 7), ("proteus_commit_rows", ["0"], rows)])
    first.keep([("proteus_heartbeats_total", ["0"], 6), ("proteus_polls", ["0"], 7), ("proteus_commit_rows", ["0"], rows)])
    second = Tally(str(tmp_path), "shard-0")
    told = second.keep([("proteus_heartbeats_total", ["0"], 1), ("proteus_polls", ["0"], 2)])
    again = second.keep([("proteus_heartbeats_total", ["0"], 2), ("proteus_commit_rows", ["0"], rows)])

    assert counted(told) == {
        ("proteus_heartbeats_total", "0"): 7,
        ("proteus_polls", "0"): 2,
        ("proteus_commit_rows", "0"): rows,
    }
    assert counted(again) == {("proteus_heartbeats_total", "0"): 8, ("proteus_commit_rows", "0"): [2.0] * len(rows)}
    assert counted(read_tally(tally_path(str(tmp_path), "shard-0"))) == counted(again)
    assert [path.name for path in tmp_path.iterdir()] == ["shard-0.tally"]


def test_what_is_told_is_in_the_file(tmp_path: Path) -> None:
    """So that nobody has ever seen more than a successor will show."""
    tally = Tally(str(tmp_path), "front-0")

    for number in range(3):
        told = tally.keep([("proteus_connections_accepted_total", ["0"], number)])
        assert told == read_tally(tally_path(str(tmp_path), "front-0"))


@pytest.mark.parametrize("content", [b"", b"\xff\x00garbage", b"\x93\x01\x02\x03"])
def test_a_file_that_is_none_counts_as_empty_and_is_told(content: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A process starts all the same."""
    tally_path(str(tmp_path), "front-0").write_bytes(content)

    told = Tally(str(tmp_path), "front-0").keep([("proteus_heartbeats_total", ["0"], 1)])

    assert counted(told) == {("proteus_heartbeats_total", "0"): 1}
    assert "cannot be read" in caplog.text


def test_a_file_that_cannot_be_written_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Counting goes on."""
    folder = tmp_path / "run"
    folder.mkdir()
    tally = Tally(str(folder), "front-0")
    folder.rmdir()
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            told = tally.keep([("proteus_heartbeats_total", ["0"], 1)])

    assert counted(told) == {("proteus_heartbeats_total", "0"): 1}
    assert [record.message for record in caplog.records] == ["the counters cannot be written"]


def test_without_a_folder_nothing_is_kept() -> None:
    """As where a pump or a page stands alone in a test."""
    assert counted(Tally(None, "shard-0").keep([("proteus_heartbeats_total", ["0"], 1)])) == {("proteus_heartbeats_total", "0"): 1}


def test_a_process_says_what_it_uses() -> None:
    """CPU time only grows, memory is more than a page, and the lag is the largest of late."""
    tally = Tally(None, "shard-0")
    tally.note_lag(0.25)
    tally.note_lag(0.125)
    said = {name: value for name, labels, value in tally.keep([]) if labels == ["shard-0"]}
    later = {name: value for name, labels, value in tally.keep([]) if labels == ["shard-0"]}

    assert said.keys() == OWN
    assert said["proteus_event_loop_lag_seconds"] == 0.25
    cpu = [values["proteus_process_cpu_seconds_total"] for values in (said, later)]
    assert isinstance(cpu[0], float)
    assert isinstance(cpu[1], float)
    assert 0 < cpu[0] <= cpu[1]
    assert resident_bytes() > 1024 * 1024


def test_a_lag_is_forgotten_after_a_while() -> None:
    """After one span it still counts, after two it does not."""
    tally = Tally(None, "shard-0")
    tally.note_lag(0.5)

    def lag() -> float | list[float]:
        return next(value for name, _, value in tally.keep([]) if name == "proteus_event_loop_lag_seconds")

    tally._lags_until = 0.0
    tally.note_lag(0.125)
    assert lag() == 0.5
    tally._lags_until = 0.0
    tally.note_lag(0.0625)
    assert lag() == 0.125


def test_numbers_that_do_not_fit_are_not_mixed() -> None:
    """A histogram with other bounds is of another version, and the newer one counts."""
    assert plus(1, 2) == 3
    assert plus([1, 2], [10, 20]) == [11, 22]
    assert plus([1, 2], [1, 2, 3]) == [1, 2]
    assert plus([1, 2], 5) == [1, 2]
    assert plus(5, [1, 2]) == 5


def test_every_metric_is_named_and_explained() -> None:
    """In base units, counters ending in _total; histograms have rising bounds, and only they have any."""
    for name, metric in METRICS.items():
        assert name.startswith("proteus_")
        assert name.endswith("_total") == (metric.kind == "counter"), name
        assert metric.help
        assert not metric.help.endswith(".")
        assert bool(metric.bounds) == (metric.kind == "histogram"), name
        assert list(metric.bounds) == sorted(set(metric.bounds))
