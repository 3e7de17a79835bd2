"""The README is run and compared: its commands, its walk, and the parts that follow from the code.

`python -m tests.test_readme` writes the generated parts anew.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

import proteus_shards
from proteus_shards.config import MIB, load_settings, settings_table
from proteus_shards.core.model import Status
from proteus_shards.core.queue import TRANSITIONS
from proteus_shards.errors import SettingError
from proteus_shards.front.operations import OPERATIONS
from proteus_shards.store.dynamodb_url import DynamodbUrl
from proteus_shards.store.postgres_url import PostgresUrl
from proteus_shards.store.redis_url import RedisUrl
from proteus_shards.store.registry import prepare_store
from proteus_shards.store.urls import MemoryUrl, SqliteUrl, read_url
from proteus_shards.tally import METRICS
from tests.conftest import Server, StartServer, children_of, eventually, server_environ
from tests.test_layers import ALLOWED

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
INSTALL_SECONDS_MAX = 600
COMMAND_SECONDS_MAX = 60

_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_NUMBER = re.compile(r"\b[0-9a-f]{64}\b|\d+((\\\.|,)\d+)*")
_GENERATED = re.compile(r"(<!-- (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)

# What differs from run to run, and what stands for it in the comparison.
MASKS = {
    re.compile(r'"run_id":"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}"'): '"run_id":"RUN_ID"',
    re.compile(r'_at":"\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}\.\d{6}Z"'): '_at":"TIME"',
}


class Step(NamedTuple):
    """One command of a console block, and what it prints."""

    command: str
    output: str


def blocks(language: str) -> list[str]:
    """Return the contents of the README's code blocks of a language."""
    return [content for found, content in _BLOCK.findall(README.read_text(encoding="utf-8")) if found == language]


def steps(console: str) -> list[Step]:
    """Return the commands of a console block with their outputs."""
    parts = re.split(r"^\$ ", console, flags=re.MULTILINE)
    assert parts[0] == "", "a console block begins with a command"
    return [Step(*part.split("\n", 1)) for part in parts[1:]]


def masked(text: str) -> str:
    """Return an output without what differs from run to run."""
    for pattern, name in MASKS.items():
        text = pattern.sub(name, text)
    return text


def shape(output: str) -> re.Pattern[str]:
    """Return what an output looks like, whatever its numbers, notes and hashes are. A line "…" stands for any lines."""
    lines = ["(.*\n)*?" if line == "…" else _NUMBER.sub("[0-9a-f.,]+", re.escape(line)) + r"( \(.*\))?\n" for line in output.splitlines()]
    return re.compile("".join(lines))


def settings_part() -> str:
    """Return the table of settings."""
    rows = ["| Setting | Default | Allowed | Meaning |", "|---|---|---|---|"]
    rows += [f"| `{setting.option}` | {setting.default} | {setting.allowed} | {setting.help} |" for setting in settings_table()]
    return "\n".join(rows) + "\n"


def life_part() -> str:
    """Return the picture of a job's life. A job that is gone is the start and the end of it."""

    def name(status: Status) -> str:
        return "[*]" if status is Status.GONE else status.name.lower()

    edges: dict[tuple[Status, Status], list[str]] = {}
    for verb, moves in TRANSITIONS.items():
        for before, after in moves.items():
            edges.setdefault((before, after), []).append(verb.value)
    lines = [f"    {name(before)} --> {name(after)}: {' / '.join(verbs)}" for (before, after), verbs in edges.items()]
    return "\n".join(["```mermaid", "stateDiagram-v2", *lines, "```"]) + "\n"


def metrics_part() -> str:
    """Return the table of metrics."""
    rows = ["| Metric | Kind | Labels | Meaning |", "|---|---|---|---|"]
    rows += [
        f"| `{name}` | {metric.kind} | {' '.join(f'`{label}`' for label in metric.labels)} | {metric.help} |"
        for name, metric in METRICS.items()
    ]
    return "\n".join(rows) + "\n"


PARTS = {"settings": settings_part, "life": life_part, "metrics": metrics_part}


def generated(text: str) -> str:
    """Return a README with its generated parts as they should be."""
    return _GENERATED.sub(lambda found: found[1] + PARTS[found[2]]() + found[3], text)


def test_the_generated_parts_say_what_the_code_does() -> None:
    """After a change, `python -m tests.test_readme` writes them anew."""
    text = README.read_text(encoding="utf-8")

    assert sorted(name for _, name, _ in _GENERATED.findall(text)) == sorted(PARTS)
    assert text == generated(text)


def test_the_stores_of_the_table_are_stores() -> None:
    """Each URL is one that the server takes, and each kind of store is there."""
    urls = [row[1].strip("`") for row in rows_after("| Store | `--store` | An acknowledged job survives | Needs |")]

    assert {type(read_url(url)) for url in urls} == {MemoryUrl, SqliteUrl, PostgresUrl, RedisUrl, DynamodbUrl}


def test_the_options_of_the_stores_are_options() -> None:
    """Each that is named is one that the URL of its store takes: what is refused is its value at most."""
    places = {
        "SQLite": ["sqlite:///x"],
        "Postgres": ["postgres://u@h/d"],
        "Redis": ["rediss://h", "redis:///0"],
        "DynamoDB": ["dynamodb://table"],
    }
    unknown = [
        f"{store}: {option}"
        for store, options in rows_after("| Store | Options of the URL |")
        for option in re.findall(r"`(\w+)`", options)
        if all("has no option" in refusal_of(f"{place}?{option}=1") for place in places[store])
    ]

    assert unknown == []


def refusal_of(url: str) -> str:
    """Return why a store URL is refused, if it is."""
    try:
        read_url(url)
    except SettingError as error:
        return str(error)
    return ""


def test_the_walk_prints_what_the_readme_says(server: Server) -> None:
    """Every console block, in order, against a real server and with a real curl."""
    assert shutil.which("curl"), "this test needs curl: apt-get install curl"
    walk = [step for block in blocks("console") for step in steps(block)]

    assert len(walk) > 10
    for step in walk:
        command = step.command.replace("localhost:8080", f"{server.host}:{server.port}")
        ran = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False, timeout=COMMAND_SECONDS_MAX)

        assert (ran.stderr, ran.returncode) == ("", 0), step.command
        assert masked(ran.stdout) == masked(step.output), step.command


def test_the_producer_and_the_worker_of_the_readme_work_together(server: Server, tmp_path: Path) -> None:
    """The snippets as they stand: one enqueues, the other does it and ends when it is told to."""
    for name, block in zip(("producer.py", "tasks.py"), blocks("python"), strict=True):
        (tmp_path / name).write_text(block)
    produce, work = blocks("bash")[0].strip().splitlines()
    environ = server_environ({"PROTEUS_URL": server.url})
    subprocess.run([sys.executable, *produce.split()[1:]], cwd=tmp_path, env=environ, check=True, timeout=COMMAND_SECONDS_MAX)
    with (tmp_path / "out").open("wb") as out:
        worker = subprocess.Popen([sys.executable, "-m", "proteus_shards", *work.split()[1:]], cwd=tmp_path, env=environ, stdout=out)
    try:
        eventually(lambda: (tmp_path / "out").read_text().count("\n") == 4)
        eventually(lambda: server.request("GET", "/queue?queue=letters").json()["in_flight"] == 0)
        worker.terminate()
        assert worker.wait(COMMAND_SECONDS_MAX) == 0
    finally:
        worker.kill()
        worker.wait()
    lines = (tmp_path / "out").read_text().splitlines()

    assert sorted(lines[:4]) == ["page 0 to ada", "page 0 to grace", "page 1 to ada", "page 1 to grace"]
    assert lines[4:] == ["completed 2, failed 0, released 0, lost 0"]


def test_the_commands_of_the_readme_are_commands(server: Server, tmp_path: Path) -> None:
    """Each line as it stands, in order, in a shell."""
    (tmp_path / "proteus-shards").write_text(f'#!/bin/sh\nexec {sys.executable} -m proteus_shards "$@"\n')
    (tmp_path / "proteus-shards").chmod(0o755)
    environ = server_environ({"PROTEUS_URL": server.url}) | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    for line in blocks("bash")[1].strip().splitlines():
        ran = subprocess.run(
            ["bash", "-o", "pipefail", "-c", line],
            cwd=tmp_path,
            env=environ,
            capture_output=True,
            text=True,
            check=False,
            timeout=COMMAND_SECONDS_MAX,
        )

        assert (ran.returncode, ran.stderr) == (0, ""), line


def test_the_commands_about_stores_print_what_the_readme_says(tmp_path: Path) -> None:
    """Every shell session, in order, on a store of two shards."""
    asyncio.run(prepare_store(f"sqlite:///{tmp_path}/jobs", 2))
    session = [step for block in blocks("shellsession") for step in steps(block)]

    assert len(session) == 3
    for step in session:
        command = step.command.replace("proteus-shards", f"'{sys.executable}' -m proteus_shards", 1)
        ran = subprocess.run(
            ["bash", "-c", f"{command} 2>&1"],
            cwd=tmp_path,
            env=server_environ({}),
            capture_output=True,
            text=True,
            check=False,
            timeout=COMMAND_SECONDS_MAX,
        )
        assert shape(step.output).fullmatch(ran.stdout), (step, ran.stdout)


def test_the_first_line_of_the_server_is_as_the_readme_says(start_server: StartServer) -> None:
    """Where it listens, and where it keeps its jobs."""
    server = start_server()

    assert (
        server.start_line
        == f"proteus-shards {proteus_shards.__version__} listening on {server.url} · store sqlite:///proteus-data · shards 2 · fronts 1"
    )


def test_the_readme_has_two_commands_and_ci_runs_the_second() -> None:
    """The first is run by the test below, the second runs this test."""
    install, check = (block.strip() for block in blocks("sh"))

    assert "proteus-shards serve" in install
    assert check in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_first_command_installs_and_runs_a_server(tmp_path: Path) -> None:
    """In a copy of the sources, without anything else that this machine has; every file of the package is installed."""
    clone = tmp_path / "clone"
    shutil.copytree(
        ROOT, clone, ignore=shutil.ignore_patterns(".git", ".hypothesis", ".tox", ".venv", "__pycache__", "*_cache", "proteus-data", "dist")
    )
    environ = {name: value for name, value in server_environ({"PROTEUS_PORT": "0"}).items() if name not in {"PYTHONPATH", "VIRTUAL_ENV"}}
    log_path = tmp_path / "log"
    with log_path.open("wb") as log:
        shell = subprocess.Popen(
            ["bash", "-c", blocks("sh")[0]], cwd=clone, env=environ, stdin=subprocess.DEVNULL, stdout=log, stderr=log, process_group=0
        )
    try:
        eventually(lambda: " listening on " in log_path.read_text() or shell.poll() is not None, INSTALL_SECONDS_MAX)
        url = re.search(r"^proteus-shards \S+ listening on (\S+) ", log_path.read_text(), re.MULTILINE)
        assert url is not None, log_path.read_text()
        health = subprocess.run(["curl", "-sf", f"{url[1]}/health"], capture_output=True, check=False, timeout=COMMAND_SECONDS_MAX)
        assert health.returncode == 0, log_path.read_text()

        servers = [pid for pid, command in children_of(shell.pid).items() if "serve" in command]
        os.kill(servers[0] if servers else shell.pid, 15)  # a shell may put the last command into its own place
        assert shell.wait(COMMAND_SECONDS_MAX) == 0, log_path.read_text()
    finally:
        if shell.poll() is None:
            os.killpg(shell.pid, 9)
            shell.wait()

    package = ROOT / "proteus_shards"
    sources = {str(path.relative_to(package)) for path in package.rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    (installed,) = clone.glob(".venv/lib/*/site-packages/proteus_shards")
    assert sources <= {str(path.relative_to(installed)) for path in installed.rglob("*")}


def test_the_settings_file_of_the_readme_is_one(tmp_path: Path) -> None:
    """Each of its lines counts."""
    (content,) = blocks("toml")
    path = tmp_path / "proteus.toml"
    path.write_text(content)

    settings = load_settings({}, {}, path)

    assert (settings.host, settings.shards, settings.store) == ("::1", 4, "sqlite:////var/lib/proteus-shards")
    assert settings.body_size_max == 8 * MIB


def rows_after(header: str) -> list[list[str]]:
    """Return the cells of the table that begins with a header line."""
    lines = README.read_text(encoding="utf-8").split(f"{header}\n", 1)[1].splitlines()[1:]
    table = lines[: lines.index("")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table]


def test_the_table_of_calls_has_every_call() -> None:
    """No route is left out, and none is made up."""
    calls = {row[0].strip("`") for row in rows_after("| Call | Arguments | Answers |")}

    assert calls == {f"{method} {path}" for method, path in OPERATIONS} | {
        "GET /health",
        "GET /ready",
        "GET /metrics",
        "GET /openapi.json",
        "GET /docs",
    }


def test_the_table_of_parts_says_what_the_layer_test_allows() -> None:
    """The version number in the package's own file and the module behind `python -m` are left out."""
    parts = {row[0].strip("`"): {name.strip("`") for name in row[2].split()} for row in rows_after("| Part | Holds | May import |")}

    assert parts == {part: allowed - {""} for part, allowed in ALLOWED.items() if part not in {"", "__main__"}}


if __name__ == "__main__":
    README.write_text(generated(README.read_text(encoding="utf-8")), encoding="utf-8")
