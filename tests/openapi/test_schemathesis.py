"""schemathesis asks real servers on every store whatever the document allows and forbids, and compares the answers with it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import StartServer, server_environ
from tests.dashboard.cluster_site import Site
from tests.servers.places import place, places

__all__ = ["place", "places"]

HERE = Path(__file__).parent
SECONDS_MAX = 240
TAGS = [word for tag in ("Producing", "Running", "Operating", "Schedules") for word in ("--include-tag", tag)]  # what comes to the store


def conform(url: str, folder: Path, *options: str) -> None:
    """Let schemathesis loose on a server: the same requests at each run, from a seed that never changes."""
    for file in ("hooks.py", "schemathesis.toml"):
        shutil.copy(HERE / file, folder)
    ran = subprocess.run(
        [
            *(sys.executable, "-m", "schemathesis.cli", "run", f"{url}/openapi.json", "--no-color", "--workers", "1"),
            *("--generation-deterministic", *options),
        ],
        cwd=folder,
        env=server_environ({}),
        capture_output=True,
        text=True,
        check=False,
        timeout=SECONDS_MAX,
    )
    shown = ran.stdout.partition("= FAILURES =")[2] or ran.stdout

    assert ran.returncode == 0, shown[-6000:] + ran.stderr[-2000:]


def test_every_boundary_is_as_the_document_says(start_server: StartServer, tmp_path: Path) -> None:
    """Each value at, and just beyond, each limit, on a server in memory."""
    server = start_server("--store", "memory:", "--wait-seconds-max", "0.01")

    conform(server.url, tmp_path, "--phases", "coverage")


@pytest.mark.slow
def test_drawn_requests_are_answered_as_the_document_says(start_server: StartServer, place: str, tmp_path: Path) -> None:
    """On every store."""
    server = start_server("--store", place, "--wait-seconds-max", "0.01")

    conform(server.url, tmp_path, "--phases", "fuzzing", "--max-examples", "4", *TAGS)


def test_it_holds_without_the_fast_lane(start_server: StartServer, tmp_path: Path) -> None:
    """Both ways in answer alike."""
    server = start_server("--store", "memory:", "--wait-seconds-max", "0.01", "--no-fast-lane")

    conform(server.url, tmp_path, "--phases", "fuzzing", "--max-examples", "4")


def test_the_calls_about_a_cluster_are_as_the_document_says(tmp_path: Path) -> None:
    """Before a front whose node grants every wish."""
    with Site(tmp_path) as site:
        conform(site.url, tmp_path, "--phases", "coverage", "--include-tag", "Cluster")
