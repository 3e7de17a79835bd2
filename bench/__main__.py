"""`python -m bench`: run the plan, print the tables, write `bench.json` and the plots."""

from __future__ import annotations

import argparse
import resource
import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import FrameType
from typing import TypeVar

import msgspec

from bench import bars, machine, page, plots, report, wrk
from bench.engine import LoadError
from bench.plan import SCENARIOS, Cell, absent, cells, estimate_seconds, measure
from bench.results import Results, summaries
from bench.run import Options, Run, opened_run
from bench.subjects import PEERS, STORES
from bench.targets import ROOT

FILES_WANTED = 8192  # descriptors: each waiter of `wake` is one here and one in the server
_Number = TypeVar("_Number", int, float)

QUICK = {"seconds": 1.0, "repeat": 1, "backlog": 20_000, "batch_jobs": 20_000, "waiters": 200, "cold_queues": 100}


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    plain = Options()
    parser = argparse.ArgumentParser(prog="python -m bench", description="Measure this server and peers beside it.", allow_abbrev=False)
    add = parser.add_argument
    add("--quick", action="store_true", help="a short run that shows that all works; its numbers mean little")
    add("--only", metavar="SCENARIO[,…]", type=_names(SCENARIOS), default=(), help=f"of {', '.join(SCENARIOS)}")
    add("--stores", metavar="STORE[,…]", type=_names(STORES), help=f"of {', '.join(STORES)} [default: all]")
    add("--peers", metavar="PEER[,…]", type=_peers, help=f"none, or of {', '.join(PEERS)} [default: all]")
    add("--shards", metavar="N[,…]", type=_counts, help="numbers of shards [default: 1,2,4]; scenarios other than rates use the first")
    add("--fronts", metavar="N[,…]", type=_counts, help="numbers of front processes [default: 1]; scenarios other than rates use the first")
    add("--seconds", metavar="S", type=_seconds, help=f"length of a sample [default: {plain.seconds:g}]")
    add("--repeat", metavar="N", type=_count, help=f"rounds, of which the medians are taken [default: {plain.repeat}]")
    add("--connections", metavar="N", type=_count, help=f"connections of a rate [default: {plain.connections}]")
    add("--processes", metavar="N", type=_count, help=f"processes of the own generator [default: {plain.processes}]")
    add("--backlog", metavar="N", type=_count, help=f"jobs of backlog, memory and recovery [default: {plain.backlog}]")
    add("--batch-jobs", metavar="N", type=_count, help=f"jobs that batch fetches [default: {plain.batch_jobs}]")
    add("--waiters", metavar="N", type=_count, help=f"waiting runners of wake [default: {plain.waiters}]")
    add("--no-wrk", dest="use_wrk", action="store_false", default=None, help="rates by the own generator even where wrk is installed")
    add("--folder", metavar="FOLDER", type=Path, help="where the stores of the run are put [default: the system's temporary folder]")
    add("--out", metavar="FOLDER", type=Path, default=ROOT / "bench" / "results", help="where results go [default: bench/results]")
    add(
        "--page",
        metavar="FILE",
        type=Path,
        help="measure nothing: write a page of the results in --out (its bench.json), such as bench/RESULTS.md",
    )
    add("--list", action="store_true", help="say what would be measured and about how long that takes, and measure nothing")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run, and return 0 where all that was planned could be measured without errors."""
    arguments = build_parser().parse_args(argv)
    if arguments.page is not None:
        arguments.page.write_text(page.page(page.read(arguments.out / "bench.json")), encoding="utf-8")
        print(f"written: {arguments.page}")
        return 0
    options = options_of(arguments)
    planned = cells(options, arguments.only)
    for name, reason in absent(options).items():
        print(f"not measured: {name} ({reason})")
    minutes = estimate_seconds(options, planned) / 60
    print(f"{len(planned)} cells × {options.repeat} rounds, about {minutes:.0f} minutes")
    if arguments.list:
        print("\n".join(f"{cell.scenario} {cell.subject.name}" for cell in planned))
        return 0
    _raise_files()
    if arguments.folder is not None:
        arguments.folder.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, _end)  # so that what runs is stopped
    results = Results(planned)
    with opened_run(options, arguments.folder) as run:
        found = machine.look(run.folder)
        print(report.preface(found, options, "wrk" if options.use_wrk else "the own generator"), flush=True)
        try:
            _rounds(run, planned, results)
        except KeyboardInterrupt:
            print("interrupted: what follows is what was measured until then")
            results.fail(planned[0], "the run was interrupted")
    arguments.out.mkdir(parents=True, exist_ok=True)
    command = shlex.join(["python", "-m", "bench", *(sys.argv[1:] if argv is None else argv)])
    return _tell(results, found, options, arguments.out, command)


def options_of(arguments: argparse.Namespace) -> Options:
    """Return the options of a run: defaults, then those of --quick, then what was given."""
    values: dict[str, object] = dict(QUICK) if arguments.quick else {}
    if arguments.quick:
        values["shards"] = (1,)
    values["use_wrk"] = wrk.available()
    values |= {name: value for name, value in vars(arguments).items() if name in Options.__struct_fields__ and value is not None}
    if values["use_wrk"] and not wrk.available():
        raise SystemExit("wrk is not installed")
    return msgspec.convert(values, Options, strict=True)


def _rounds(run: Run, planned: Sequence[Cell], results: Results) -> None:
    """Measure every cell once, then again: a drift of the machine meets all of them alike."""
    for turn in range(run.options.repeat):
        for cell in planned:
            scenario = SCENARIOS[cell.scenario]
            if turn and scenario.repeats_itself:
                continue
            started = time.monotonic()
            told = f"round {turn + 1}/{run.options.repeat} {cell.scenario} {cell.subject.name}"
            try:
                with run.opened(cell.subject) as target:
                    samples = measure(cell, run, target)
            except (LoadError, OSError, RuntimeError) as error:
                results.fail(cell, str(error))
                print(f"{told}: FAILED: {error}", file=sys.stderr, flush=True)
                continue
            results.add(cell, samples)
            values = ", ".join(report.number(sample.value) for sample in samples)
            print(f"{told}: {values} {scenario.unit} ({time.monotonic() - started:.0f} s)", file=sys.stderr, flush=True)


def _tell(results: Results, found: machine.Machine, options: Options, out: Path, command: str) -> int:
    verdicts = bars.verdicts(results)
    tables = [
        report.results_table(results),
        report.NOTES,
        report.latency_table(results),
        report.cost_table(results),
        report.model_table(results, found.cores),
        report.bars_table(verdicts),
    ]
    print("\n" + "\n\n".join(text for text in tables if text))
    failures = results.failures()
    for text in failures:
        print(f"FAILED: {text}")
    content = {
        "command": command,
        "machine": found,
        "options": options,
        "cells": summaries(results),
        "bars": verdicts,
        "failures": failures,
    }
    path = out / "bench.json"
    path.write_bytes(msgspec.json.format(msgspec.json.encode(content), indent=1) + b"\n")
    print(f"\nwritten: {path}")
    if plots.available():
        for drawn in plots.draw(results, out):
            print(f"written: {drawn}")
    else:
        print("no plots: matplotlib is not installed")
    return 1 if failures else 0


def _names(known: Iterable[str]) -> Callable[[str], tuple[str, ...]]:
    def read(text: str) -> tuple[str, ...]:
        names = tuple(text.split(","))
        for name in names:
            if name not in known:
                raise argparse.ArgumentTypeError(f"there is no {name!r}; there are {', '.join(known)}")
        return names

    return read


def _peers(text: str) -> tuple[str, ...]:
    return () if text == "none" else _names(PEERS)(text)


def _count(text: str) -> int:
    return _positive(int(text))


def _counts(text: str) -> tuple[int, ...]:
    return tuple(_count(part) for part in text.split(","))


def _seconds(text: str) -> float:
    return _positive(float(text))


def _positive(value: _Number) -> _Number:
    if not value > 0:
        raise argparse.ArgumentTypeError("must be more than 0")
    return value


def _raise_files() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = FILES_WANTED if hard == resource.RLIM_INFINITY else min(FILES_WANTED, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _end(_number: int, _frame: FrameType | None) -> None:
    raise SystemExit(143)


if __name__ == "__main__":
    sys.exit(main())
