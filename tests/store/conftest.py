"""Let pytest explain the assertions of the shared suite as it does those of a test file."""

from __future__ import annotations

import pytest

pytest.register_assert_rewrite("tests.store.exercise", "tests.store.exercise_owners", "tests.store.exercise_rows")
