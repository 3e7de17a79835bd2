"""The plots of a run, as PNG files. Without matplotlib there are none."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from bench.cpu import scaled
from bench.plan import SCENARIOS
from bench.results import CellResult, Results

CORES = (1, 2, 4, 8, 16, 32)
RATES = ("enqueue", "next", "life", "life-checked", "batch", "batch-enqueue", "batch-complete", "loop", "mixed", "large")
PERCENTILES = [*range(100), 99.9, 100]


def available() -> bool:
    """Say whether matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def draw(results: Results, out: Path) -> list[Path]:
    """Draw all plots that there are results for, and return their files."""
    import matplotlib as mpl  # noqa: PLC0415 it is optional, and slow to load

    mpl.use("Agg")
    found = results.measured()
    drawn = [
        _rates([each for each in found if each.scenario in RATES], out / "rates.png"),
        _cpu([each for each in found if each.scenario in RATES and each.middles("cpu_us")], out / "cpu.png"),
        _latency([each for each in found if each.scenario in {"paced", "wake"}], out / "latency.png"),
        _model([each for each in found if each.scenario in {"enqueue", "life"} and each.subject.endswith("/1")], out / "model.png"),
        _backlog([each for each in found if each.scenario == "backlog"], out / "backlog.png"),
    ]
    return [path for path in drawn if path is not None]


def _figure(panels: int, height: float) -> tuple[Any, list[Any]]:
    from matplotlib.figure import Figure  # noqa: PLC0415

    figure = Figure(figsize=(9, max(2.5, height)), layout="constrained")
    axes = figure.subplots(panels, 1, squeeze=False)
    return figure, [row[0] for row in axes]


def _rates(found: list[CellResult], path: Path) -> Path | None:
    """Draw medians with their whole range, a panel a scenario."""
    names = list(dict.fromkeys(each.scenario for each in found))
    if not names:
        return None
    figure, axes = _figure(len(names), 0.32 * len(found) + 0.9 * len(names))
    for axis, name in zip(axes, names, strict=True):
        rows = [each for each in found if each.scenario == name][::-1]
        medians = [each.median for each in rows]
        errors = [[each.median - min(each.values) for each in rows], [max(each.values) - each.median for each in rows]]
        axis.barh([each.subject for each in rows], medians, xerr=errors, color=[_colour(each.subject) for each in rows], ecolor="0.3")
        axis.set_title(f"{name}, {SCENARIOS[name].unit}", loc="left", fontsize=10)
        axis.xaxis.set_major_formatter("{x:,.0f}")
        axis.tick_params(labelsize=8)
    figure.savefig(path, dpi=120)
    return path


def _cpu(found: list[CellResult], path: Path) -> Path | None:
    """Draw the CPU of a request by process, the generator's too."""
    rows = [each for each in found if not each.subject.endswith("/quart") and each.scenario != "large"][::-1]
    if not rows:
        return None
    figure, (axis,) = _figure(1, 0.3 * len(rows) + 1)
    labels = [f"{each.scenario} {each.subject}" for each in rows]
    spent = [each.middles("cpu_us") for each in rows]
    start = [0.0] * len(rows)
    for role in dict.fromkeys(role for each in spent for role in each):
        widths = [each.get(role, 0.0) for each in spent]
        axis.barh(labels, widths, left=start, label=role)
        start = [a + b for a, b in zip(start, widths, strict=True)]
    axis.set_title("CPU a request, µs", loc="left", fontsize=10)
    axis.tick_params(labelsize=8)
    axis.legend(fontsize=8)
    figure.savefig(path, dpi=120)
    return path


def _latency(found: list[CellResult], path: Path) -> Path | None:
    """Draw latency by percentile: the sample whose value is the median."""
    if not found:
        return None
    figure, axes = _figure(len(found), 2.6 * len(found))
    for axis, each in zip(axes, found, strict=True):
        sample = sorted(each.samples, key=lambda sample: sample.value)[len(each.samples) // 2]
        for label, curve in sample.curves.items():
            if len(curve) == len(PERCENTILES):
                axis.plot([1 / max(1 - percent / 100, 1e-3 / 2) for percent in PERCENTILES], curve, label=label)
        axis.set_xscale("log")
        axis.set_yscale("log")
        axis.yaxis.set_major_formatter("{x:g}")
        axis.yaxis.set_minor_formatter(lambda _value, _position: "")
        axis.set_xticks([1, 2, 10, 100, 1000, 2000], ["0", "50", "90", "99", "99.9", "max"])
        axis.set_title(f"{each.scenario} {each.subject}, ms by percentile", loc="left", fontsize=10)
        axis.grid(visible=True, alpha=0.3)
        axis.legend(fontsize=8)
    figure.savefig(path, dpi=120)
    return path


def _model(found: list[CellResult], path: Path) -> Path | None:
    """Draw what the model says of more cores."""
    rows = [(each, us) for each in found if (us := each.middles("cpu_us")).get("front") and us.get("shard")]
    if not rows:
        return None
    figure, (axis,) = _figure(1, 4)
    for each, us in rows:
        rates = [scaled(us, cores)[0] / SCENARIOS[each.scenario].requests for cores in CORES]
        axis.plot(CORES, rates, marker="o", label=f"{each.scenario} {each.subject}")
    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    axis.yaxis.set_major_formatter("{x:,.0f}")
    axis.set_xticks(CORES, [str(cores) for cores in CORES])
    axis.set_title("Model: jobs/s by cores, from CPU a request; the disk is no limit in it", loc="left", fontsize=10)
    axis.grid(visible=True, alpha=0.3)
    axis.legend(fontsize=8)
    figure.savefig(path, dpi=120)
    return path


def _backlog(found: list[CellResult], path: Path) -> Path | None:
    """Draw rates with many jobs waiting beside those with none."""
    if not found:
        return None
    figure, (axis,) = _figure(1, 3)
    labels = [f"{each.subject} {what}" for each in found for what in ("enqueue", "next")]
    for offset, state in ((-0.2, "none"), (0.2, "full")):
        values = [each.middle(f"{what}_{state}") for each in found for what in ("enqueue", "next")]
        axis.bar([i + offset for i in range(len(labels))], values, width=0.4, label={"none": "none waiting", "full": "backlog"}[state])
    axis.set_xticks(range(len(labels)), labels, fontsize=8)
    axis.set_title("jobs/s without and with a backlog", loc="left", fontsize=10)
    axis.legend(fontsize=8)
    figure.savefig(path, dpi=120)
    return path


def _colour(subject: str) -> str:
    if "/" not in subject:
        return "tab:gray"
    if subject.endswith("/quart"):
        return "tab:orange"
    return "tab:blue" if subject.startswith("memory") else "tab:green"
