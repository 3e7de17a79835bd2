"""The page of a run, made of its `bench.json`: what was measured, with which command, on what, in Markdown.

Nothing is measured and nothing judged here: the page says what the run has said, so that numbers in the repository can be traced to a file of samples.
Names and versions stand in it, but of the kernel only what others could have as well.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec

from bench import bars, report
from bench.machine import Machine
from bench.plan import SCENARIOS
from bench.results import CellResult, Results, Summary
from bench.run import Options
from bench.subjects import PEERS, STORES

BAR_WIDTH = 24

_LEGEND = (
    "Medians, and the lowest and highest value of the rounds. ×: to `memory/1` in the same scenario; above 1 is better. µs: CPU of a request, user and system. "
    "`!`: values more than 15 % apart, or the generator was the limit. `E`: some answers were errors."
)
_EIGHTHS = " ▏▎▍▌▋▊▉"


class Content(msgspec.Struct, frozen=True):
    """A `bench.json`."""

    machine: Machine
    options: Options
    cells: list[Summary]
    failures: list[str] = []
    command: str = ""  # those of older runs do not say it


def read(path: Path) -> Content:
    """Read a `bench.json`."""
    return msgspec.json.decode(path.read_bytes(), type=Content)


def page(content: Content) -> str:
    """Return the page."""
    results = results_of(content)
    parts = [
        "# Results",
        "Made by `python -m bench --page` from the `bench.json` of a run. [bench/README.md](README.md) says what each scenario is, how each subject is set up, and what cannot be compared.",
        _preface(content),
        "## What was measured",
        _LEGEND,
        *(_scenario(results, name) for name in dict.fromkeys(found.scenario for found in results.measured())),
        *_fenced("## Latency", report.latency_table(results)),
        *_fenced("## Cost", report.cost_table(results)),
        *_fenced("## Model", report.model_table(results, content.machine.cores)),
        "## Bars",
        "What the server should reach on two cores with the load beside it; none is an assertion of a test.",
        _bars(results),
        *(["## What went wrong", "\n".join(f"- {text}" for text in content.failures)] if content.failures else []),
    ]
    return "\n\n".join(parts) + "\n"


def results_of(content: Content) -> Results:
    """Return the results that a run has written down."""
    results = Results(())
    results.cells = {(cell.scenario, cell.subject): CellResult(cell.scenario, cell.subject, cell.samples) for cell in content.cells}
    return results


def command_of(content: Content) -> str:
    """Return the command of a run: as it was, or one that does the same."""
    if content.command:
        return content.command
    plain, options = Options(), content.options
    words = ["python -m bench"]
    scenarios = dict.fromkeys(cell.scenario for cell in content.cells)
    if set(scenarios) != set(SCENARIOS):
        words.append(f"--only {','.join(scenarios)}")
    if options.stores and set(options.stores) != set(STORES):
        words.append(f"--stores {','.join(options.stores)}")
    if options.peers is not None and set(options.peers) != set(PEERS):
        words.append(f"--peers {','.join(options.peers) or 'none'}")
    for name in ("shards", "fronts", "seconds", "repeat", "connections", "processes", "backlog", "batch_jobs", "waiters"):
        value = getattr(options, name)
        if value != getattr(plain, name):
            words += [f"--{name.replace('_', '-')} {','.join(map(str, value)) if isinstance(value, tuple) else f'{value:g}'}"]
    return " ".join(words)


def _preface(content: Content) -> str:
    machine, options = content.machine, content.options
    system, release, *_ = [*machine.kernel.split(), ""]
    kernel = f"{system} {'.'.join(release.partition('-')[0].split('.')[:2])}".strip()
    rows = [
        ("command", f"`{command_of(content)}`"),
        ("commit", f"`{machine.commit}`"),
        ("machine", f"{machine.cores} cores, {machine.cpu}, {machine.memory_gib:g} GiB, {kernel}, {machine.python}"),
        ("disk", f"{machine.filesystem}, {machine.fdatasync_us:g} µs for an append with fdatasync"),
        ("load before", f"{machine.load_before:g}"),
        ("versions", ", ".join(f"{name} {version}" for name, version in machine.versions.items())),
        (
            "load",
            f"{options.connections} connections, {options.seconds:g} s a sample, {options.repeat} rounds, rates by {'wrk' if options.use_wrk else 'the own generator'}",
        ),
    ]
    return _table(("", ""), rows)


def _scenario(results: Results, name: str) -> str:
    scenario = SCENARIOS.get(name)
    found = [each for each in results.measured() if each.scenario == name]
    best = max(each.median for each in found)
    head = ("subject", scenario.unit if scenario is not None else "value", "range", "× memory/1", "front µs", "shard µs", "busiest", "")
    rows = []
    for each in found:
        cpu_us = each.middles("cpu_us")
        spread = f"{report.number(min(each.values))}–{report.number(max(each.values))}{' !' if each.spread > report.UNEVEN else ''}"
        ratio = results.ratio(each, report.REFERENCE) if scenario is not None and each.subject != report.REFERENCE else None
        rows.append(
            (
                f"`{each.subject}`",
                report.number(each.median) + (" E" if each.errors else ""),
                spread if len(each.values) > 1 else "",
                report.number(ratio),
                report.number(cpu_us.get("front")),
                report.number(cpu_us.get("shard")),
                report.busiest(each),
                bar(each.median / best if best else 0.0),
            )
        )
    return f"### {name}\n\n{_table(head, rows, right=(1, 3, 4, 5))}"


def bar(share: float) -> str:
    """Draw a share of 1 as a bar."""
    eighths = round(max(0.0, min(1.0, share)) * BAR_WIDTH * 8)
    return ("█" * (eighths // 8) + _EIGHTHS[eighths % 8]).rstrip()


def _bars(results: Results) -> str:
    rows = [
        (
            verdict.name,
            f"{report.number(verdict.measured)} {verdict.unit}".rstrip() if verdict.measured is not None else verdict.note,
            f"{verdict.sign} {report.number(verdict.wanted)} {verdict.unit}".rstrip(),
            {True: "yes", False: "**no**", None: "–"}[verdict.met],
        )
        for verdict in bars.verdicts(results)
    ]
    return _table(("bar", "measured", "wanted", "met"), rows, right=(1, 2))


def _fenced(title: str, text: str) -> list[str]:
    return [title, f"```text\n{text}\n```"] if text else []


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], right: Sequence[int] = ()) -> str:
    rule = ["--:" if place in right else "---" for place in range(len(head))]
    lines = [head, rule, *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)
