"""A small version of the run of a million bad inputs."""

from __future__ import annotations

from tests.hostile.run import hurt

SEED = 11


async def test_a_few_thousand_bad_inputs_do_no_harm() -> None:
    """No 5xx, no end of a process, no traceback, no connection without an end, and memory stays as it was."""
    report = await hurt(4000, SEED, lambda _: None)

    assert report.wrong == []
    assert set(report.inputs) == {"lane", "lane, broken", "quart", "quart, broken", "frames"}
