"""The targets of the fuzzer that coverage guides: they hold for the inputs that it begins with, and it runs where it is installed."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from tests.hostile.fuzz_targets import SEEDS, TARGETS, check

ROOT = Path(__file__).resolve().parents[2]


def test_the_targets_hold_for_what_the_fuzzer_begins_with() -> None:
    """And for that cut short, and for nothing."""
    for seed in SEEDS:
        for data in (seed, seed[: len(seed) // 2], seed[:1]):
            check(data)

    assert {seed[0] for seed in SEEDS} == set(range(len(TARGETS)))


@pytest.mark.skipif(importlib.util.find_spec("atheris") is None, reason="atheris is not installed")
def test_the_fuzzer_runs(tmp_path: Path) -> None:
    """For a moment, and finds new ways through the code."""
    command = [sys.executable, "-m", "tests.hostile.fuzz", "--seconds", "2", "--corpus", str(tmp_path)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)

    assert (ended.returncode, "Done " in ended.stderr) == (0, True), ended.stderr[-3000:]
    assert len(list(tmp_path.iterdir())) > len(SEEDS)
