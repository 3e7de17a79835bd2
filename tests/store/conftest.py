"""Let pytest explain the assertions of the shared suite as it does those of a test file; the servers that tests of stores share."""

from __future__ import annotations

import pytest

from tests.servers.postgres import own_postgres, postgres_server
from tests.servers.redis import redis_server

__all__ = ["own_postgres", "postgres_server", "redis_server"]

pytest.register_assert_rewrite("tests.store.exercise", "tests.store.exercise_owners", "tests.store.exercise_rows")
