"""What a run has found: samples by cell, and what follows from them. Everything that is shown or stored is taken from here."""

from __future__ import annotations

import statistics
from collections.abc import Iterable

import msgspec

from bench.plan import SCENARIOS, Cell
from bench.run import Options, Sample


class CellResult(msgspec.Struct):
    """All samples of one cell."""

    scenario: str
    subject: str
    samples: list[Sample] = []
    failures: list[str] = []

    @property
    def values(self) -> list[float]:
        """The values of its samples."""
        return [sample.value for sample in self.samples]

    @property
    def median(self) -> float:
        """The median of its values."""
        return statistics.median(self.values)

    @property
    def spread(self) -> float:
        """How far its values lie apart, as a share of the median."""
        return (max(self.values) - min(self.values)) / self.median if self.median else 0.0

    @property
    def errors(self) -> int:
        """All errors of its samples."""
        return sum(sample.errors for sample in self.samples)

    def middle(self, name: str) -> float:
        """Return the median of a figure."""
        return statistics.median(sample.figures[name] for sample in self.samples)

    def middles(self, field: str) -> dict[str, float]:
        """Return the medians of `cpu_us`, `busy` or `figures`, by name."""
        maps: list[dict[str, float]] = [getattr(sample, field) for sample in self.samples]
        names = dict.fromkeys(name for each in maps for name in each)
        return {name: statistics.median(each[name] for each in maps if name in each) for name in names}


class NotMeasured(Exception):
    """A bar asks for something that this run has not measured, or not without errors."""


class Results:
    """The results of a run, in the order of its cells."""

    def __init__(self, cells: Iterable[Cell]) -> None:
        self.cells = {(cell.scenario, cell.subject.name): CellResult(cell.scenario, cell.subject.name) for cell in cells}

    def add(self, cell: Cell, samples: list[Sample]) -> None:
        """Note samples."""
        self.cells[cell.scenario, cell.subject.name].samples += samples

    def fail(self, cell: Cell, reason: str) -> None:
        """Note that a sample could not be taken."""
        self.cells[cell.scenario, cell.subject.name].failures.append(reason)

    def measured(self) -> list[CellResult]:
        """Return the cells that have samples."""
        return [found for found in self.cells.values() if found.samples]

    def failures(self) -> list[str]:
        """Return all that went wrong, errors in answers included."""
        texts: list[str] = []
        for (scenario, subject), found in self.cells.items():
            texts += [f"{scenario} {subject}: {reason}" for reason in found.failures]
            if found.errors:
                first = next(sample.first_error for sample in found.samples if sample.errors)
                texts.append(f"{scenario} {subject}: {found.errors} errors, the first: {first}")
        return texts

    def value(self, scenario: str, subject: str, figure: str | None = None) -> float:
        """Return the median of a cell, or of one of its figures. Raises `NotMeasured`."""
        found = self.cells.get((scenario, subject))
        if found is None or not found.samples:
            raise NotMeasured("not measured")
        if found.errors:
            raise NotMeasured("had errors")
        return found.median if figure is None else found.middle(figure)

    def ratio(self, found: CellResult, subject: str) -> float | None:
        """Return how a cell relates to another subject in the same scenario, where that is measured; above 1 is better."""
        other = self.cells.get((found.scenario, subject))
        if other is None or not other.samples or not other.median or not found.median:
            return None
        ratio = found.median / other.median
        return 1 / ratio if SCENARIOS[found.scenario].less else ratio


class Summary(msgspec.Struct, frozen=True):
    """One cell as it stands in bench.json."""

    scenario: str
    subject: str
    unit: str
    median: float
    low: float
    high: float
    cpu_us: dict[str, float]
    busy: dict[str, float]
    figures: dict[str, float]
    samples: list[Sample]


def summaries(results: Results) -> list[Summary]:
    """Return all measured cells for bench.json."""
    return [
        Summary(
            found.scenario,
            found.subject,
            SCENARIOS[found.scenario].unit,
            found.median,
            min(found.values),
            max(found.values),
            found.middles("cpu_us"),
            found.middles("busy"),
            found.middles("figures"),
            found.samples,
        )
        for found in results.measured()
    ]


__all__ = ["CellResult", "NotMeasured", "Options", "Results", "Summary", "summaries"]
