"""The commands that speak to a server, against a real one: what they do, what they print, and how they end."""

from __future__ import annotations

import io
import json
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from proteus_shards.client import Client, NewJob, Run
from proteus_shards.commands.console import Console
from tests.commands.conftest import RunCommand
from tests.conftest import STOP_SECONDS_MAX, Server, eventually, server_environ


def test_a_job_goes_round(command: RunCommand, queue: str) -> None:
    """Enqueued, fetched as JSON to the byte, completed; then there is none, which has an exit code of its own."""
    enqueued = command("enqueue", queue, '{"a":  1.0}', "--id", "1", "--timeout", "30")
    fetched = command("next", queue)
    completed = command("complete", queue, "1", "--run-id", fetched.json()["run_id"])

    assert (0, "1\n", "") == enqueued
    assert '"payload":{"a":  1.0}' in fetched.out
    assert (0, "", "") == completed
    assert (3, "", "") == command("next", queue)
    assert (3, "") == command("complete", queue, "1")[:2]


def test_the_options_of_an_enqueue_are_fields_of_the_job(command: RunCommand, client: Client, queue: str) -> None:
    """And with --json so is the answer."""
    ended = command("enqueue", queue, "--text", "hello", "--timeout", "7", "--max-retries", "3", "--json")
    job = client.next(queue)

    assert job is not None
    assert {"queue": queue, "id": job.id} == ended.json()
    assert ("hello", 7, 3) == (job.payload, job.timeout, job.max_retries)


@pytest.mark.parametrize(
    "arguments",
    [
        ["enqueue"],
        ["enqueue", "q", "not json"],
        ["enqueue", "q", "1", "--text", "x"],
        ["enqueue", "q", "--file", "-"],
        ["enqueue", "--file", "none"],
    ],
)
def test_what_makes_no_sense_is_refused_with_2(arguments: list[str], command: RunCommand) -> None:
    """Before anything is sent."""
    ended = command(*arguments)

    assert (2, "") == (ended.code, ended.out)
    assert ended.err.startswith("proteus-shards: ")


def test_a_refusal_ends_with_1_and_its_reason(command: RunCommand, queue: str) -> None:
    """In the server's words."""
    command("enqueue", queue, "--id", "1")

    assert (1, "", "proteus-shards: 409 a job with this id is already in the queue\n") == command("enqueue", queue, "--id", "1")


def test_a_server_that_is_away_ends_with_4(command: RunCommand) -> None:
    """The same command may do better later."""
    ended = command("next", "q", "--url", "http://127.0.0.1:1")

    assert (4, "") == (ended.code, ended.out)


def test_lines_of_a_file_are_enqueued(command: RunCommand, client: Client, queue: str, tmp_path: Path) -> None:
    """Those that are refused are told by their numbers."""
    path = tmp_path / "jobs"
    path.write_text("\n".join(json.dumps({"id": str(number), "queue": queue, "timeout": 30}) for number in range(5)) + '\n\n{"id": "x"}\n')
    ended = command("enqueue", "--file", str(path))

    assert (1, "accepted 5, refused 1\n", "line 7: queue: is required\n") == ended
    assert ["0", "1", "2", "3", "4"] == [job.id for job in client.next_many(queue, 10)]


def test_lines_of_standard_input_are_enqueued(command: RunCommand, client: Client, queue: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the file is -."""
    line = json.dumps({"id": "1", "queue": queue, "timeout": 30})
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(line.encode())))
    ended = command("enqueue", "--file", "-", "--json")

    assert {"accepted": 1, "existing": 0, "refused": 0, "stopped": None} == ended.json()
    assert client.next(queue) is not None


def test_an_export_is_what_an_import_takes(command: RunCommand, client: Client, queue: str, tmp_path: Path) -> None:
    """In order, to the byte, and a second import changes nothing."""
    jobs = [NewJob(id=str(number), queue=queue, timeout=30, payload={"ü": number}, max_retries=2) for number in range(250)]
    client.enqueue_many(jobs)
    path = tmp_path / "jobs"
    exported = command("export", queue, "--output", str(path))
    before = [(job.id, bytes(job.payload_json), job.max_retries) for job in client.next_many(queue, 1000)]
    client.complete_many(Run(queue, str(number)) for number in range(250))
    imported = command("import", str(path))

    assert (0, 0) == (exported.code, imported.code)
    assert (0, "accepted 0, refused 0, there already 250\n", "") == command("import", str(path))
    assert before == [(job.id, bytes(job.payload_json), job.max_retries) for job in client.next_many(queue, 1000)]


def test_an_export_carries_what_is_left_of_a_ttl(command: RunCommand, client: Client, queue: str) -> None:
    """From now, or from the job's run_at, where that is later; a job in flight has its own, too."""
    client.enqueue(queue, id="run", timeout=30, ttl=500)
    assert client.next(queue) is not None
    client.enqueue(queue, id="ready", timeout=30, ttl=1000)
    client.enqueue(queue, id="later", timeout=30, ttl=70, run_at="2999-01-01T00:00:00Z")
    client.enqueue(queue, id="none", timeout=30)
    ttls = {job["id"]: job.get("ttl") for job in map(json.loads, command("export", queue).out.splitlines())}

    assert (70, None) == (ttls["later"], ttls.get("none"))
    assert 0 < ttls["run"] <= 500 < ttls["ready"] <= 1000


def test_queues_are_listed(command: RunCommand, client: Client, queue: str) -> None:
    """As a table, or one a line of JSON."""
    client.enqueue(queue, timeout=30)
    table = command("queues", "--contains", queue)
    listed = command("queues", "--contains", queue, "--json")

    assert ["queue", queue] == [line.split()[0] for line in table.out.splitlines()]
    assert (queue, 1) == (listed.json()["queue"], listed.json()["ready"])


def test_jobs_are_listed_and_one_is_shown(command: RunCommand, client: Client, queue: str) -> None:
    """Names that could move a cursor are shown escaped; an unknown job ends with 3."""
    client.enqueue(queue, {"x": 1}, id="a\u202eb", timeout=30)
    table = command("jobs", queue)
    shown = command("jobs", queue, "a\u202eb")

    assert "a\\u202eb" in table.out
    assert ("ready", {"x": 1}) == (shown.json()["state_name"], shown.json()["payload"])
    assert 3 == command("jobs", queue, "none").code


def test_a_queue_is_paused_and_resumed(command: RunCommand, client: Client, queue: str) -> None:
    """Its settings say so."""
    assert 0 == command("pause", queue).code
    assert client.get_queue(queue).paused
    assert {"queue": queue, "paused": False} == command("resume", queue, "--json").json()
    assert not client.get_queue(queue).paused


def test_top_shows_one_picture_where_there_is_no_terminal(command: RunCommand, client: Client, queue: str) -> None:
    """The busiest queue first."""
    client.enqueue_many(NewJob(id=str(number), queue=queue, timeout=30) for number in range(500))
    ended = command("top")

    assert 0 == ended.code
    assert re.search(r"ready [\d,]+", ended.out.splitlines()[0])
    assert queue == ended.out.splitlines()[3].split()[0]
    assert queue == command("top", "--json").json()["busiest"][0]["queue"]


def test_bench_leaves_no_job_behind(command: RunCommand, client: Client) -> None:
    """And shows rates and latencies of each call."""
    ended = command("bench", "--seconds", "0.05", "--concurrency", "2", "--json")

    assert {"enqueue", "next", "complete"} == ended.json().keys()
    assert {"per_second", "p50_ms", "p99_ms", "max_ms"} == ended.json()["next"].keys()
    assert 0 == sum(queue.ready + queue.in_flight for queue in client.each_queue(contains="proteus-bench-"))


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish", "tcsh"])
def test_completions_are_scripts_of_their_shell(shell: str, command: RunCommand, tmp_path: Path) -> None:
    """Each names the commands."""
    ended = command("completion", shell)
    path = tmp_path / "script"
    path.write_text(ended.out)

    assert 0 == ended.code
    assert all(name in ended.out for name in ("enqueue", "export", "completion"))
    if shutil.which(shell) and shell != "tcsh":
        assert 0 == subprocess.run([shell, "-n", str(path)], check=False).returncode


HANDLERS = """
import pathlib

def handle(job):
    job.checkpoint({"seen": True})
    with open("seen", "a") as file:
        file.write(job.payload + "\\n")

async def wait(job):
    with open("seen", "a") as file:
        file.write("begun\\n")
    import anyio
    await anyio.sleep_forever()
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_work_runs_a_function_until_it_is_told_to_end(
    memory_server: Server, client: Client, queue: str, tmp_path: Path, number: int
) -> None:
    """It ends with 0 and says what it has done."""
    (tmp_path / "tasks.py").write_text(HANDLERS)
    client.enqueue_many(NewJob(id=str(each), queue=queue, timeout=30, payload=f"job {each}") for each in range(3))
    worker = subprocess.Popen(
        [sys.executable, "-m", "proteus_shards", "work", "tasks:handle", "--queue", queue, "--url", memory_server.url, "--json"],
        cwd=tmp_path,
        env=server_environ({}),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        seen = tmp_path / "seen"
        eventually(lambda: seen.exists() and seen.read_text().count("\n") == 3 and client.get_queue(queue).in_flight == 0)
        worker.send_signal(number)
        out, err = worker.communicate(timeout=STOP_SECONDS_MAX)
    finally:
        worker.kill()
        worker.wait()

    assert (0, 3) == (worker.returncode, json.loads(out)["completed"]), err
    assert "job 0\njob 1\njob 2\n" == seen.read_text()


@pytest.mark.parametrize("handler", ["tasks", "no_such_module:f", "json:no_such_function", "json:__name__"])
def test_a_handler_that_is_none_is_refused_with_2(handler: str, command: RunCommand) -> None:
    """Before any job is fetched."""
    assert 2 == command("work", handler, "--queue", "q").code


def test_dead_letters_are_listed_redriven_and_purged(command: RunCommand, client: Client, queue: str) -> None:
    """Each says how many."""
    for number in range(3):
        client.enqueue(queue, id=str(number), timeout=0)
        assert client.next(queue, wait=20) is not None
    eventually(lambda: client.get_queue(queue).dead == 3)
    listed = command("dead", "list", queue)

    assert ["id", "0", "1", "2"] == [line.split()[0] for line in listed.out.splitlines()]
    assert {"queue": queue, "redriven": 1} == command("dead", "redrive", queue, "--id", "1", "--json").json()
    assert (0, "2 removed\n", "") == command("dead", "purge", queue)
    assert ["1"] == [job.id for job in client.next_many(queue, 5)]


def test_a_queue_is_purged(command: RunCommand, client: Client, queue: str) -> None:
    """Of what waits, where nothing else is said."""
    client.enqueue_many(NewJob(id=str(number), queue=queue, timeout=30) for number in range(3))

    assert (0, "3 removed\n", "") == command("purge", queue)
    assert client.next(queue) is None


@pytest.mark.parametrize(("said", "confirmed"), [("y\n", True), ("YES\n", True), ("n\n", False), ("", False)])
def test_a_purge_asks_on_a_terminal(said: str, confirmed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Anything but a yes is a no."""

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr("sys.stdin", Terminal(said))
    monkeypatch.setattr("sys.stderr", Terminal())

    assert confirmed == Console(as_json=False).confirms("Remove? ")
