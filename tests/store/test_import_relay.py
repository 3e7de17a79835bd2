"""`proteus-shards import-relay`: databases of both generations, as relay's own migrations lay them out, come over whole and in order."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest

from tests.conftest import Server, StartServer
from tests.servers.postgres import PostgresServer
from tests.test_cli import run

RUN = UUID("11111111-2222-4333-8444-555555555555")
NAMES = "id varchar(1024) NOT NULL, queue varchar(1024) NOT NULL, timeout interval NOT NULL"
TIMES = "updated_at timestamp NOT NULL, created_at timestamp NOT NULL, run_at timestamp NOT NULL, expires_at timestamp"
LAYOUTS = {
    "v1": f"{NAMES}, max_retries integer NOT NULL, retries_remaining integer NOT NULL, data jsonb NOT NULL, state jsonb, in_flight boolean, {TIMES}",
    "v1, bytea": f"{NAMES}, max_retries integer NOT NULL, retries_remaining integer NOT NULL, data bytea NOT NULL, state bytea, in_flight boolean, {TIMES}",
    "v2": f"{NAMES}, max_retries smallint, retries_remaining smallint, data jsonb NOT NULL, state jsonb, in_flight boolean, run_id uuid, {TIMES}",
}


@pytest.fixture(scope="module")
def postgres() -> Iterator[PostgresServer]:
    """Return a running Postgres."""
    server = PostgresServer()
    try:
        server.start()
        yield server
    finally:
        server.remove()


def database(postgres: PostgresServer, layout: str, jobs: list[dict[str, Any]]) -> str:
    """Make a database of relay's with these jobs, and return its URL."""
    name = f"relay_{uuid4().hex}"
    plain = postgres.url("x").partition("?")[0]

    async def fill() -> None:
        connection = await asyncpg.connect(plain)
        await connection.execute(f"CREATE SCHEMA {name}; SET search_path = {name}")
        await connection.execute(f"CREATE TABLE jobs ({LAYOUTS[layout]}, PRIMARY KEY (queue, id))")
        await connection.execute("CREATE TABLE internal_state (id varchar NOT NULL, last_run timestamp NOT NULL, PRIMARY KEY (id))")
        for place, job in enumerate(jobs):
            values: dict[str, Any] = {
                "id": str(place),
                "queue": "q",
                "timeout": "60 s",
                "max_retries": 3,
                "retries_remaining": 3,
                "data": '{"b": 1.50, "a": "\\u00e9"}',
                "state": None,
                "in_flight": False,
                "run_at": f"2024-01-01 00:00:00.{place:06d}",
                "created_at": "2024-01-01",
                "updated_at": "2024-01-01",
                **job,
            }
            if "bytea" in layout:
                values["data"] = values["data"].replace("\\", "\\\\")
            shown = ", ".join("NULL" if value is None else f"'{value}'" for value in values.values())
            await connection.execute(f"INSERT INTO jobs ({', '.join(values)}) VALUES ({shown})")
        await connection.close()

    asyncio.run(fill())
    return f"{plain}?search_path={name}"


def jobs_of(layout: str) -> list[dict[str, Any]]:
    """Return jobs with all that there may be."""
    jobs: list[dict[str, Any]] = [
        {"run_at": "2024-01-03"},
        {"state": '{"at":  7}', "retries_remaining": 1},
        {"in_flight": True, "retries_remaining": 2, **({"run_id": RUN} if layout == "v2" else {})},
        {"run_at": "2099-01-01", "queue": "r"},
        {
            "max_retries": -1 if layout != "v2" else None,
            "retries_remaining": -1 if layout != "v2" else None,
            "queue": "é/\N{GRINNING FACE}",
        },
    ]
    return jobs + [{} for _ in range(20)]


def take(server: Server, queue: str) -> list[dict[str, Any]]:
    """Take all jobs of a queue."""
    answer = server.request("GET", f"/v2/queues/{queue}/jobs?num_jobs=100")
    found: list[dict[str, Any]] = answer.json() if answer.status == 200 else []
    return found


@pytest.mark.parametrize("layout", LAYOUTS)
def test_all_jobs_come_over_in_order(start_server: StartServer, postgres: PostgresServer, tmp_path: Path, layout: str) -> None:
    """Waiting ones in relay's order, retries and states kept; a run goes on; what is scheduled stays so."""
    source = database(postgres, layout, jobs_of(layout))
    store = ["--store", f"sqlite:///{tmp_path / 'new'}", "--shards", "2"]

    dry = run("import-relay", *store, "--dry-run", source, cwd=tmp_path)
    generation = "2" if layout == "v2" else "1"
    summary = f"25 jobs of relay v{generation} in 3 queues (1 scheduled, 1 in flight, 1 with retries without end; 0.0 MB)\n"
    assert dry == (0, f"found {summary}", "")
    assert not (tmp_path / "new").exists()
    assert run("import-relay", *store, source, cwd=tmp_path)[:2] == (0, f"imported {summary}")

    server = start_server(*store)
    [running] = [server.request("GET", "/v2/queues/q/jobs/2").json()]
    assert (running["run_id"] == str(RUN)) is (layout == "v2")
    assert (running["retries_remaining"], running["run_id"] is None) == (2, False)
    waiting = take(server, "q")
    assert [job["id"] for job in waiting] == ["1", *map(str, range(5, 25)), "0"]
    assert waiting[0]["state"] == {"at": 7}
    assert waiting[0]["payload"] == {"b": 1.5, "a": "é"}
    assert [job["retries_remaining"] for job in waiting[:2]] == [1, 3]
    assert waiting[0]["run_at"].startswith("2024-01-01T00:00:00.000001")
    assert server.request("PATCH", "/v1/queues/q/jobs/2", "8").status == 202
    assert server.request("DELETE", f"/v2/queues/q/jobs/2/run-id/{running['run_id']}").status == 200
    assert take(server, "r") == []
    assert server.request("GET", "/v2/queues/r/jobs/3").json()["run_at"].startswith("2099-01-01T00:00:00")
    [endless] = take(server, "%C3%A9%2F%F0%9F%98%80")
    assert (endless["max_retries"], endless["retries_remaining"]) == (None, None)


def test_an_import_is_never_done_twice_in_silence(start_server: StartServer, postgres: PostgresServer, tmp_path: Path) -> None:
    """Neither into a store with jobs, nor into one that was worked off meanwhile, unless it is told to."""
    source = database(postgres, "v2", [{}, {}])
    store = ["--store", f"sqlite:///{tmp_path / 'new'}", "--shards", "2"]
    assert run("import-relay", *store, source, cwd=tmp_path)[0] == 0

    code, out, err = run("import-relay", *store, source, cwd=tmp_path)
    assert (code, out) == (1, "")
    assert "--again" in err
    assert "holds jobs already" in run("import-relay", *store, "--again", source, cwd=tmp_path)[2]
    server = start_server(*store)
    for job in take(server, "q"):
        assert server.request("DELETE", f"/v1/queues/q/jobs/{job['id']}").status == 200
    assert "holds" in run("import-relay", *store, source, cwd=tmp_path)[2]
    assert server.stop() == 0
    assert "stored row is not a job" not in server.log()
    assert "--again" in run("import-relay", *store, source, cwd=tmp_path)[2]
    assert run("import-relay", *store, "--again", source, cwd=tmp_path)[0] == 0


def test_unfit_jobs_end_the_import_or_are_left_behind(postgres: PostgresServer, tmp_path: Path) -> None:
    """Nothing is written where one cannot be held; no message shows what a job holds."""
    source = database(postgres, "v1", [{}, {"id": ""}, {"queue": "a\u0007b", "data": '"secret"'}])
    store = ["--store", f"sqlite:///{tmp_path / 'new'}", "--shards", "2"]

    code, out, err = run("import-relay", *store, source, cwd=tmp_path)
    assert (code, out) == (1, "")
    assert err.count("unfit: ") == 2
    assert "secret" not in err
    assert not (tmp_path / "new").exists()
    code, out, _ = run("import-relay", *store, "--skip-unfit", source, cwd=tmp_path)
    assert (code, "1 jobs" in out, "2 unfit ones left out" in out) == (0, True, True)


def test_what_is_no_database_of_relay_is_told(postgres: PostgresServer, tmp_path: Path) -> None:
    """In a line, without a secret."""
    plain = postgres.url("x").partition("?")[0]
    store = ["--store", f"sqlite:///{tmp_path / 'new'}"]
    for source, told in (
        ("mysql://host/db", "FROM must be"),
        (f"{plain}?search_path=nowhere", "no table `jobs`"),
        ("postgres://user:hush@127.0.0.1:1/x", "cannot be reached"),
    ):
        code, out, err = run("import-relay", *store, source, cwd=tmp_path)
        assert (code in (1, 2), out, told in err, "hush" in err) == (True, "", True, False), err
    assert run("import-relay", "--store", "memory:", plain, cwd=tmp_path)[0] == 2
