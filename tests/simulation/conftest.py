"""What a simulation turns off for its speed is on again for the tests after it."""

from __future__ import annotations

import gc
import logging
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    """Let logs be heard, and garbage be looked for."""
    yield
    logging.disable(logging.NOTSET)
    gc.enable()
