"""The tables that a run prints."""

from __future__ import annotations

from collections.abc import Sequence

from bench.bars import Verdict
from bench.costs import DOLLARS_PER_MILLION_UNITS, STEPS
from bench.cpu import GENERATOR, scaled
from bench.machine import Machine
from bench.plan import SCENARIOS
from bench.results import CellResult, Results
from bench.run import Options

REFERENCE = "memory/1"
MODEL_CORES = (2, 4, 8, 16)
BUSY = 0.9  # of a core: such a process is the limit
LAG_SHARE = 0.5  # of a latency: beyond it, that is more the generator's than the server's
UNEVEN = 0.15  # a spread above this is marked


def number(value: float | None) -> str:
    """Write a number with as many digits as mean something."""
    if value is None:
        return ""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.2f}" if abs(value) < 10 else f"{value:.1f}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """Lay out a table; the first `left` columns are texts, the others are numbers."""
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]

    def line(row: Sequence[str]) -> str:
        return "  ".join(
            cell.ljust(width) if i < left else cell.rjust(width) for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )

    return "\n".join([line(head).rstrip(), "  ".join("-" * width for width in widths), *(line(row).rstrip() for row in rows)])


def results_table(results: Results) -> str:
    """Return the table of all cells."""
    head = (
        "scenario",
        "subject",
        "median",
        "unit",
        "min–max",
        "predicted",
        "× memory/1",
        "× quart",
        "front µs",
        "shard µs",
        "other µs",
        "load µs",
        "busiest",
    )
    rows = [_row(results, found) for found in results.measured()]
    return table(head, rows, left=2)


def _row(results: Results, found: CellResult) -> tuple[str, ...]:
    scenario = SCENARIOS[found.scenario]
    predicted = scenario.predicted.get(found.subject)
    cpu_us = found.middles("cpu_us")
    other = sum(value for role, value in cpu_us.items() if role not in {"front", "shard", GENERATOR})
    spread = f"{number(min(found.values))}–{number(max(found.values))}{' !' if found.spread > UNEVEN else ''}"
    return (
        found.scenario,
        found.subject,
        number(found.median) + (" E" if found.errors else ""),
        scenario.unit,
        spread if len(found.values) > 1 else "",
        f"{number(predicted[0])}–{number(predicted[1])}" if predicted else "",
        number(results.ratio(found, REFERENCE)) if found.subject != REFERENCE else "",
        number(results.ratio(found, f"{found.subject}/quart")),
        number(cpu_us.get("front")),
        number(cpu_us.get("shard")),
        number(other) if cpu_us else "",
        number(cpu_us.get(GENERATOR)),
        busiest(found),
    )


def busiest(found: CellResult) -> str:
    """Name the process that was closest to one whole core; the generator as the limit is marked."""
    busy = found.middles("busy")
    if not busy:
        return ""
    role = max(busy, key=lambda name: busy[name])
    limit = " !" if role == GENERATOR and busy[role] >= BUSY else ""
    return f"{role} {100 * busy[role]:.0f} %{limit}"


def latency_table(results: Results) -> str:
    """Return the latencies of the open loop and of the wake-up."""
    head = ("latency", "subject", "load", "rate/s", "p50 ms", "p90 ms", "p99 ms", "p99.9 ms", "generator lag p99 ms")
    rows: list[tuple[str, ...]] = []
    for found in results.measured():
        figures = found.middles("figures")
        if found.scenario == "paced":
            for load in (20, 50, 80):
                shown = [number(figures[f"load{load}_p{at}_ms"]) for at in ("50", "90", "99", "99.9")]
                rate, lag = number(figures[f"load{load}_rate"]), number(figures[f"load{load}_lag_p99_ms"])
                if figures[f"load{load}_lag_p99_ms"] > LAG_SHARE * figures[f"load{load}_p99_ms"]:
                    lag += " !"
                rows.append(("enqueue, open loop", found.subject, f"{load} %", rate, *shown, lag))
        if found.scenario == "wake":
            for name, text in (("from_due", "due"), ("from_sent", "sent"), ("from_accepted", "answered")):
                shown = [number(figures[f"{name}_p50_ms"]), "", number(figures[f"{name}_p99_ms"]), ""]
                rows.append((f"wake-up since the enqueue was {text}", found.subject, "", "", *shown, ""))
    return table(head, rows, left=2) if rows else ""


def cost_table(results: Results) -> str:
    """Return what a job costs where requests are paid for."""
    head = (
        "cost of a life",
        "subject",
        "requests/job",
        "writes/commit",
        "units/job",
        *(f"of {step}" for step in STEPS.values()),
        "units by the double",
        "$ a million jobs",
    )
    rows: list[tuple[str, ...]] = []
    for found in results.measured():
        if found.scenario != "cost":
            continue
        figures = found.middles("figures")
        names = ("requests_per_job", "writes_per_commit", "units_per_job", *(f"{step}_units" for step in STEPS.values()))
        answered = number(figures["units_answered_per_job"]) if figures["units_answered_per_job"] else "none"
        rows.append(
            ("write units", found.subject, *(number(figures[name]) for name in names), answered, number(figures["dollars_per_million"]))
        )
    if not rows:
        return ""
    price = f"A unit at ${DOLLARS_PER_MILLION_UNITS} a million: on-demand, standard class, us-east-1. Storage, backups and traffic are not in it."
    return f"{table(head, rows, left=2)}\n{price}"


def model_table(results: Results, cores_here: int) -> str:
    """Return what the model of `cpu` says: of this run, with the generator on the same cores, and of more cores without it."""
    head = ("model", "subject", "measured", "model here", "1 front max", "1 shard max", *(f"{cores} cores" for cores in MODEL_CORES))
    rows: list[tuple[str, ...]] = []
    for found in results.measured():
        us = found.middles("cpu_us")
        scenario = SCENARIOS[found.scenario]
        if found.scenario not in {"enqueue", "next", "life"} or not found.subject.endswith("/1"):
            continue
        if not us.get("front") or not us.get("shard"):
            continue
        cells = [scaled(us, cores) for cores in MODEL_CORES]
        shown = [f"{number(rate / scenario.requests)} ({fronts}+{shards})" for rate, fronts, shards in cells]
        ceilings = [1e6 / us[role] / scenario.requests for role in ("front", "shard")]
        here = min(1e6 * cores_here / sum(us.values()) / scenario.requests, *ceilings)
        name = f"{found.scenario}, {scenario.unit}"
        rows.append((name, found.subject, number(found.median), number(here), *map(number, ceilings), *shown))
    return table(head, rows, left=2) if rows else ""


def bars_table(found: Sequence[Verdict]) -> str:
    """Return the bars."""
    rows = [
        (
            verdict.name,
            f"{number(verdict.measured)} {verdict.unit}" if verdict.measured is not None else verdict.note,
            f"{verdict.sign} {number(verdict.wanted)} {verdict.unit}",
            {True: "yes", False: "NO", None: "–"}[verdict.met],
        )
        for verdict in found
    ]
    return table(("bar", "measured", "wanted", "met?"), rows)


def preface(machine: Machine, options: Options, generator: str) -> str:
    """Return what a reader must know before the numbers."""
    versions = " · ".join(f"{name} {version}" for name, version in machine.versions.items())
    lines = [
        f"{machine.cores} cores · {machine.cpu} · {machine.memory_gib} GiB · {machine.kernel} · {machine.python} · commit {machine.commit}",
        versions,
        f"stores on {machine.filesystem}, an append with fdatasync takes {machine.fdatasync_us:g} µs · load average before: {machine.load_before:g}",
        f"{options.connections} connections · {options.seconds:g} s a sample · {options.repeat} rounds · rates by {generator}",
    ]
    if machine.filesystem in {"tmpfs", "ramfs"}:
        lines.append("WARNING: the stores are in memory, so nothing here is durable: give --folder on a disk")
    if machine.load_before > 0.5 * machine.cores:
        lines.append("WARNING: this machine is busy with something else: no absolute number here means much")
    return "\n".join(lines)


NOTES = """\
E: some answers were errors, see below. !: values more than 15 % apart, or a limit of the generator. µs: CPU a request, user and system.
× : to the same scenario, above 1 is better. busiest: the process nearest to a whole core. Predictions were made before the first run.
Model: 1e6 × cores / Σ µs, no front or shard above a core; "here" with the generator on the same cores, else without; the disk is no limit."""
