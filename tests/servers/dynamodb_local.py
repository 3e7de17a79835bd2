"""AWS's own DynamoDB Local (Java), fetched once: `python -m tests.servers.dynamodb_local`.

It is taken from Maven Central by Maven, into a cache folder. Tests that need it are skipped, with the reason, where it is not there.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.servers.dynamodb import Process

VERSION = "3.1.0"
FETCH_SECONDS_MAX = 900

_POM = f"""<project xmlns="http://maven.apache.org/POM/4.0.0"><modelVersion>4.0.0</modelVersion>
<groupId>tests</groupId><artifactId>dynamodb-local</artifactId><version>1</version>
<dependencies><dependency>
<groupId>software.amazon.dynamodb</groupId><artifactId>DynamoDBLocal</artifactId><version>{VERSION}</version>
</dependency></dependencies></project>
"""

# Java cannot be told to end with its parent: this process does it, by the kernel's help should it be killed itself
_KEEPER = """
import ctypes, os, signal, subprocess, sys
def with_parent():
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
java = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL, preexec_fn=with_parent)
signal.signal(signal.SIGTERM, lambda *_: os.killpg(0, signal.SIGKILL))
os.read(0, 1)
os.killpg(0, signal.SIGKILL)
"""


def folder() -> Path:
    """Return where it is kept."""
    cache = Path(os.environ.get("PROTEUS_TEST_CACHE") or Path.home() / ".cache" / "proteus-shards-tests")
    return cache / f"dynamodb-local-{VERSION}"


def missing() -> str | None:
    """Say what is missing to run it, or return None."""
    if shutil.which("java") is None:
        return "no Java"
    if not folder().is_dir():
        return "DynamoDB Local is not there: python -m tests.servers.dynamodb_local fetches it, by Maven"
    return None


def fetch() -> None:
    """Fetch it, unless it is there."""
    target = folder()
    if target.is_dir():
        return
    building = target.with_name(f"{target.name}.{os.getpid()}")
    building.mkdir(parents=True)
    try:
        (building / "pom.xml").write_text(_POM)
        command = ["mvn", "-B", "-q", "dependency:copy-dependencies", f"-DoutputDirectory={building / 'lib'}"]
        subprocess.run(command, cwd=building, check=True, timeout=FETCH_SECONDS_MAX)
        if not target.is_dir():
            building.rename(target)
    finally:
        shutil.rmtree(building, ignore_errors=True)


class DynamodbLocalServer(Process):
    """DynamoDB Local, its data in a folder.

    `kill` loses what was acknowledged just before (tried: the last transaction, 5 times of 5): for outages take the strict double.
    """

    def __init__(self, data: Path) -> None:
        super().__init__(data.with_name(f"{data.name}.log"))
        self._data = data

    def command(self) -> list[str]:
        self._data.mkdir(parents=True, exist_ok=True)
        lib = folder() / "lib"
        java = ["java", "-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", f"-Djava.library.path={lib}", "-cp", f"{lib}/*"]
        runner = "software.amazon.dynamodb.services.local.main.ServerRunner"
        options = ["-port", str(self.port), "-sharedDb", "-dbPath", str(self._data), "-disableTelemetry"]
        return [sys.executable, "-c", _KEEPER, *java, runner, *options]


if __name__ == "__main__":
    fetch()
