"""The page of a run says what its bench.json says."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest

from bench import page
from bench.__main__ import main
from bench.bars import BARS
from bench.machine import Machine
from bench.results import Summary
from bench.run import Options, Sample

ROOT = Path(__file__).resolve().parents[1]
MACHINE = Machine(2, "A CPU", 8.0, "Linux 6.1.2-custom-name x86_64", "CPython 3.12.1", {"trio": "0.30"}, "abc1234", 0.1, "ext4", 130.0)


def cell(scenario: str, subject: str, *values: float, errors: int = 0) -> Summary:
    """Return what a run says of a cell."""
    samples = [Sample(value=value, errors=errors, cpu_us={"front": 15.0, "shard": 5.0}, busy={"front": 0.9}) for value in values]
    return Summary(scenario, subject, "jobs/s", sorted(values)[len(values) // 2], min(values), max(values), {}, {}, {}, samples)


def content(command: str = "", failures: tuple[str, ...] = ()) -> page.Content:
    """Return what a run has written down."""
    cells = [cell("enqueue", "memory/1", 40_000, 50_000, 51_000), cell("enqueue", "sqlite-full/1", 25_000), cell("life", "memory/1", 9_500)]
    options = Options(seconds=2.0, stores=("memory", "sqlite-full"), peers=())
    return page.Content(MACHINE, options, cells, list(failures), command)


def test_the_page_has_every_median_and_every_bar() -> None:
    """Each cell is a row with its range and ratio, each bar is held against it, and what could not be measured says so."""
    text = page.page(content())

    assert "| `memory/1` | 50,000 | 40,000–51,000 ! |" in text
    row = next(line for line in text.splitlines() if line.startswith("| `sqlite-full/1` "))
    assert ["`sqlite-full/1`", "25,000", "", "0.50", "15.0", "5.00", "front 90 %"] == [part.strip() for part in row.split("|")[1:8]]
    assert row.count("█") * 2 == page.BAR_WIDTH
    assert all(f"| {each.name} |" in text for each in BARS)
    assert "| enqueue, SQLite FULL: to memory | 0.50 × | ≥ 0.45 × | yes |" in text
    assert "| not measured |" in text
    assert "abc1234" in text
    assert "Linux 6.1," in text
    assert "custom-name" not in text


def test_the_command_is_the_one_that_was_typed_or_does_the_same() -> None:
    """An older file does not say it; its options do."""
    assert "python -m bench --quick" == page.command_of(content("python -m bench --quick"))
    assert "python -m bench --only enqueue,life --stores memory,sqlite-full --peers none --seconds 2" == page.command_of(content())


def test_what_went_wrong_is_on_the_page() -> None:
    """A run that has failed in part does not look whole."""
    assert "## What went wrong" not in page.page(content())
    assert "- wake memory/1: timed out" in page.page(content(failures=("wake memory/1: timed out",)))


@pytest.mark.parametrize(("share", "drawn"), [(1.0, "█" * 24), (0.5, "█" * 12), (1 / 192, "▏"), (0.0, ""), (7.0, "█" * 24)])
def test_a_bar_is_as_long_as_its_share(share: float, drawn: str) -> None:
    """To an eighth of a character."""
    assert drawn == page.bar(share)


def test_the_command_line_writes_the_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From the bench.json in --out, without measuring anything."""
    (tmp_path / "bench.json").write_bytes(msgspec.json.encode(content()))

    assert 0 == main(["--page", str(tmp_path / "page.md"), "--out", str(tmp_path)])

    assert page.page(content()) == (tmp_path / "page.md").read_text(encoding="utf-8")
    assert f"written: {tmp_path / 'page.md'}\n" == capsys.readouterr().out


def test_the_page_in_the_repository_is_of_this_form() -> None:
    """It was made by this command: it has its parts, and all rows of a table have as many cells."""
    text = (ROOT / "bench" / "RESULTS.md").read_text(encoding="utf-8")

    assert text.startswith("# Results\n")
    assert [part for part in ("## What was measured", "## Bars", "| command | `python -m bench") if part not in text] == []
    for block in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        assert 1 == len({line.count("|") for line in block.splitlines()})
