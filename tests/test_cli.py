"""The command line, and the real server behind it: started, hurt, and stopped as a user would."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from proteus_shards import __version__
from proteus_shards.cli import main
from proteus_shards.config import settings_table
from tests.conftest import STOP_SECONDS_MAX, Answer, Server, StartServer, eventually, runs, server_environ

JOB = {"queue": "mail", "timeout": 30, "persist_data": True, "payload": {"to": "ada"}}


def run(*arguments: str, cwd: Path, environ: Mapping[str, str] | None = None) -> tuple[int, str, str]:
    """Run the command line in a process of its own, and return exit code, standard output and standard error."""
    ran = subprocess.run(
        [sys.executable, "-m", "proteus_shards", *arguments],
        cwd=cwd,
        env=server_environ(environ or {}),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=STOP_SECONDS_MAX,
    )
    return ran.returncode, ran.stdout, ran.stderr


def answered(server: Server, method: str, path: str, body: object = None) -> Answer:
    """Send a request until it is answered otherwise than by "try again": a part of the server may be starting."""
    answers: list[Answer] = []

    def tried() -> bool:
        try:
            answers.append(server.request(method, path, body))
        except OSError:
            return False
        return answers[-1].status not in {429, 503}

    eventually(tried)
    return answers[-1]


def test_the_version_is_the_package_s_own(capsys: pytest.CaptureFixture[str]) -> None:
    """It goes to standard output."""
    with pytest.raises(SystemExit) as caught:
        main(["--version"])

    assert (caught.value.code, capsys.readouterr().out) == (0, f"proteus-shards {__version__}\n")


def test_the_help_shows_every_setting_with_its_default_and_its_variable(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing has to be looked up elsewhere."""
    monkeypatch.setenv("COLUMNS", "400")
    with pytest.raises(SystemExit) as caught:
        main(["serve", "--help"])

    shown = capsys.readouterr().out
    words = " ".join(shown.split())
    assert caught.value.code == 0
    for setting in settings_table():
        text = f"{setting.help} [default: {setting.default}] [env: {setting.variable}]"
        assert re.search(rf"{setting.option}\b[^\[]* {re.escape(text)}", words), setting.option
    assert [title for title in ("server", "storage", "limits", "logs") if f"\n{title}:\n" in shown] == [
        "server",
        "storage",
        "limits",
        "logs",
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["surf"], "invalid choice: 'surf'"),
        (["serve", "--prot", "80"], "unrecognized arguments: --prot 80"),
        (["serve", "--por", "80"], "unrecognized arguments: --por 80"),
        (["serve", "--port"], "argument --port: expected one argument"),
    ],
)
def test_a_wrong_option_exits_with_2(capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    """An abbreviation is wrong too: it would change its meaning with the next option that is added."""
    with pytest.raises(SystemExit) as caught:
        main(arguments)

    assert caught.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "environ", "message"),
    [
        (["--port", "http"], {}, "--port must be a whole number, from 0 to 65535, not 'http'"),
        ([], {"PROTEUS_FRONTS": "0"}, "PROTEUS_FRONTS must be a whole number, from 1 to 256, not '0'"),
        ([], {"PROTEUS_PROT": "1"}, "there is no setting for the environment variable PROTEUS_PROT; did you mean PROTEUS_PORT?"),
        (["--config", "no.toml"], {}, "the settings file no.toml cannot be read: No such file or directory"),
    ],
)
def test_a_wrong_setting_exits_with_2_and_one_line(tmp_path: Path, arguments: list[str], environ: dict[str, str], message: str) -> None:
    """No traceback: the user, not the program, is at fault."""
    assert run("serve", *arguments, cwd=tmp_path, environ=environ) == (2, "", f"proteus-shards: {message}\n")


def test_a_store_of_no_known_kind_exits_with_2_and_shows_no_secret(tmp_path: Path) -> None:
    """The message names the option; a password in the URL is not repeated."""
    code, out, err = run("serve", "--store", "nothing://user:hunter2@host/db", cwd=tmp_path)

    assert (code, out) == (2, "")
    assert err.startswith("proteus-shards: --store: ")
    assert err.count("\n") == 1
    assert "hunter2" not in err


def test_a_busy_port_exits_with_1_and_one_line(tmp_path: Path) -> None:
    """The message names the address."""
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        port = busy.getsockname()[1]

        assert run("serve", "--port", str(port), cwd=tmp_path) == (
            1,
            "",
            f"proteus-shards: cannot listen on 127.0.0.1 port {port}: Address already in use\n",
        )
    assert list(tmp_path.iterdir()) == []


def test_a_store_in_use_by_another_server_exits_with_1(start_server: StartServer, tmp_path: Path) -> None:
    """Two servers never write to one store, and the first goes on."""
    server = start_server()

    code, out, err = run("serve", "--port", "0", "--shards", "2", cwd=tmp_path)

    assert (code, out) == (1, "")
    assert err.splitlines()[-1].startswith("proteus-shards: ")
    assert "Traceback" not in err
    assert server.request("GET", "/health").status == 200


def test_a_server_serves_until_it_is_told_to_stop(start_server: StartServer) -> None:
    """SIGTERM: exit code 0, nothing left, and a log of JSON lines without a complaint."""
    server = start_server("--connections-max", "100")  # more may be more than this machine allows
    children = server.children()

    assert server.request("POST", "/enqueue", {"id": "1", **JOB}).status == 202
    assert server.request("GET", "/next?queue=mail").json()["payload"] == {"to": "ada"}
    assert server.stop() == 0

    assert len(children) == 3
    assert not [pid for pid in children if Path(f"/proc/{pid}").exists()]
    assert [line for line in server.log().splitlines() if json.loads(line)["level"] not in {"debug", "info"}] == []


def test_ctrl_c_stops_it_too(server: Server) -> None:
    """The same drain."""
    assert server.stop(signal.SIGINT) == 0


def test_settings_may_come_from_the_environment_and_a_file(start_server: StartServer, tmp_path: Path) -> None:
    """All of them reach the processes."""
    (tmp_path / "proteus.toml").write_text('body-size-max = 100\nlog-format = "console"\n')
    server = start_server("--config", "proteus.toml", environ={"PROTEUS_STORE": "memory:", "PROTEUS_FRONTS": "2"})

    assert server.start_line.endswith(" · store memory: · shards 2 · fronts 2")
    assert server.request("POST", "/enqueue", {"id": "1", **JOB, "payload": "x" * 100}).status == 413
    assert server.request("POST", "/enqueue", {"id": "1", **JOB}).json()["field"] == "persist_data"
    assert len(server.children()) == 4


def test_several_fronts_serve_the_same_jobs(start_server: StartServer) -> None:
    """Whichever front takes a connection, the queue is one."""
    server = start_server("--fronts", "2")

    for number in range(20):
        assert server.request("POST", "/enqueue", {"id": str(number), **JOB}).status == 202
    assert [server.request("GET", "/next?queue=mail").json()["id"] for _ in range(20)] == [str(number) for number in range(20)]


def test_jobs_survive_a_restart_in_their_order(start_server: StartServer) -> None:
    """With another number of shards, too."""
    server = start_server("--shards", "2")
    for number in range(10):
        assert server.request("POST", "/enqueue", {"id": str(number), **JOB}).status == 202
    assert server.stop() == 0

    server = start_server("--shards", "3")

    assert [job["id"] for job in server.request("GET", "/next?queue=mail&num_jobs=100").json()] == [str(number) for number in range(10)]


@pytest.mark.parametrize("kind", ["shard", "front"])
def test_a_process_that_is_killed_is_replaced_and_no_accepted_job_is_lost(server: Server, kind: str) -> None:
    """What was answered with 202 is there afterwards, in order."""
    for number in range(5):
        assert server.request("POST", "/enqueue", {"id": str(number), **JOB}).status == 202
    for pid, command in server.children().items():
        if f"proteus_shards.{kind}" in command:
            os.kill(pid, signal.SIGKILL)

    assert [answered(server, "GET", "/next?queue=mail").json()["id"] for _ in range(5)] == [str(number) for number in range(5)]
    assert server.stop() == 0


def test_when_the_supervisor_is_killed_its_children_end_and_nothing_accepted_is_lost(start_server: StartServer) -> None:
    """A new server finds the store free."""
    server = start_server()
    children = server.children()
    assert server.request("POST", "/enqueue", {"id": "1", **JOB}).status == 202
    server.kill()
    eventually(lambda: not [pid for pid in children if runs(pid)])

    server = start_server()

    assert server.request("GET", "/next?queue=mail").json()["id"] == "1"


def test_everything_killed_at_once_loses_nothing_accepted(start_server: StartServer) -> None:
    """The store has it, not a process."""
    server = start_server()
    assert server.request("POST", "/enqueue", {"id": "1", **JOB}).status == 202
    children = server.children()
    for pid in (server.process.pid, *children):
        os.kill(pid, signal.SIGKILL)
    server.wait()
    eventually(lambda: not [pid for pid in children if runs(pid)])

    server = start_server()

    assert server.request("GET", "/next?queue=mail").json()["id"] == "1"


def new_token(*options: str) -> list[str]:
    """Return the two lines of `token new`: the token, and its line for the file."""
    command = [sys.executable, "-m", "proteus_shards", "token", "new", "--name", "test", *options]
    return subprocess.run(command, env=server_environ({}), check=True, capture_output=True, text=True).stdout.splitlines()


def test_a_token_that_was_made_opens_a_server_that_others_can_reach(start_server: StartServer, tmp_path: Path) -> None:
    """Once its line is in the file, without a restart; and not any more once it is taken out."""
    path = tmp_path / "tokens"
    first, second = new_token("--scopes", "admin"), new_token("--scopes", "consume", "--queues", "mail", "sms-*", "--expires", "90d")
    path.write_text(first[1] + "\n")
    server = start_server("--host", "0.0.0.0", "--tokens-file", str(path))

    def status(token: str) -> int:
        return server.request("GET", "/next?queue=mail", headers={"Authorization": f"Bearer {token}"}).status

    assert [server.request("GET", "/next?queue=mail").status, status(first[0]), status(second[0])] == [401, 204, 401]
    path.write_text(second[1] + "\n")
    eventually(lambda: status(second[0]) == 204)
    assert status(first[0]) == 401
    assert (server.request("GET", "/health").status, server.request("GET", "/metrics").status) == (200, 401)
    assert first[0] not in server.log()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--scopes", "everything"], "token: scopes: must be among produce, consume, read, admin"),
        (["--scopes", "read", "--expires", "soon"], "--expires must be RFC 3339"),
        (["--scopes", "read", "--expires", "2030-01-31T00:00:00"], "--expires must be RFC 3339"),
    ],
)
def test_a_token_without_sense_is_not_made(options: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    """It says why, and ends with 2."""
    assert main(["token", "new", "--name", "a", *options]) == 2
    assert told in capsys.readouterr().err


def test_a_server_does_not_start_on_a_tokens_file_that_it_cannot_use(tmp_path: Path) -> None:
    """It says which line is wrong."""
    path = tmp_path / "tokens"
    path.write_text("{}\n")
    command = [
        sys.executable,
        "-m",
        "proteus_shards",
        "serve",
        "--port",
        "0",
        "--shards",
        "1",
        "--store",
        "memory:",
        "--tokens-file",
        str(path),
    ]

    ran = subprocess.run(command, env=server_environ({}), check=False, capture_output=True, text=True, timeout=60)

    assert ran.returncode == 1
    assert f"tokens_file: {path} line 1: Object missing required field `name`" in ran.stderr
