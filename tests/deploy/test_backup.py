"""Backup and restore of SQLite, as deploy/README.md describes them: stop, copy, start; and the copy the other way round."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.conftest import Server, StartServer, server_environ

QUEUE = "mail"


def copy(source: Path, target: Path) -> subprocess.CompletedProcess[str]:
    """Copy a store to another place."""
    command = [sys.executable, "-m", "proteus_shards", "store", "copy", f"sqlite:///{source}", f"sqlite:///{target}"]
    return subprocess.run(command, env=server_environ({}), capture_output=True, text=True, check=False, timeout=60)


def enqueue(server: Server, *ids: str) -> None:
    """Enqueue jobs that are kept."""
    jobs = [{"id": job_id, "queue": QUEUE, "timeout": 60, "persist_data": True, "payload": job_id} for job_id in ids]
    assert 202 == server.request("POST", "/enqueue", jobs).status


def waiting(server: Server) -> list[str]:
    """Take all jobs that wait, in order."""
    answer = server.request("GET", f"/next?queue={QUEUE}&num_jobs=100")
    return [job["id"] for job in answer.json()] if answer.status == 200 else []


def test_a_restored_server_is_as_it_was_at_its_backup(start_server: StartServer, tmp_path: Path) -> None:
    """What was enqueued later is gone, what was completed later is back, in order, and the run in flight, its state and the queue's settings are kept."""
    live, backup = tmp_path / "live", tmp_path / "backup"
    options = ("--store", f"sqlite:///{live}")
    server = start_server(*options)
    enqueue(server, "running", "a", "b", "c")
    run_id = server.request("GET", f"/next?queue={QUEUE}").json()["run_id"]
    assert 202 == server.request("PATCH", f"/heartbeat?queue={QUEUE}&job_id=running&run_id={run_id}", {"sent": 7}).status
    assert 200 == server.request("PATCH", f"/queue?queue={QUEUE}", {"max_retries": 5}).status
    assert 0 == server.stop()
    copied = copy(live, backup)
    assert 0 == copied.returncode, copied.stderr
    assert "copied 4 jobs" in copied.stdout

    later = start_server(*options)
    enqueue(later, "d")
    assert 200 == later.request("DELETE", f"/complete?queue={QUEUE}&job_id=a").status
    assert 0 == later.stop()
    live.rename(tmp_path / "broken")
    restored = copy(backup, live)
    assert 0 == restored.returncode, restored.stderr

    server = start_server(*options)
    assert ["a", "b", "c"] == waiting(server)
    job = server.request("GET", f"/job?queue={QUEUE}&job_id=running").json()
    assert (run_id, {"sent": 7}) == (job["run_id"], job["state"])
    assert 5 == server.request("GET", f"/queue?queue={QUEUE}").json()["settings"]["max_retries"]
    assert 200 == server.request("DELETE", f"/complete?queue={QUEUE}&job_id=running&run_id={run_id}").status


def test_a_running_server_cannot_be_copied_by_accident(start_server: StartServer, tmp_path: Path) -> None:
    """Its files are locked: the copy is refused, writes nothing, and the server goes on."""
    live, backup = tmp_path / "live", tmp_path / "backup"
    server = start_server("--store", f"sqlite:///{live}")
    enqueue(server, "a")

    refused = copy(live, backup)

    assert 1 == refused.returncode
    assert "proteus-shards: " in refused.stderr
    assert not backup.exists()
    assert ["a"] == waiting(server)
