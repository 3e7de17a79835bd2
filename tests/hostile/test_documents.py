"""What SECURITY.md and the README say of security and limits: each threat has its tests, each limit its place, and the container's packages their hashes."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from proteus_shards.config import settings_table

ROOT = Path(__file__).resolve().parents[2]
SECURITY = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
README = (ROOT / "README.md").read_text(encoding="utf-8")
LOCK = re.sub(r"(?m)^ *#.*\n", "", (ROOT / "deploy" / "requirements.lock").read_text(encoding="utf-8"))
NAME = re.compile(r"[A-Za-z0-9._-]+")


def section(title: str) -> str:
    """Return a section of the README."""
    return README.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def paths_in(text: str) -> list[str]:
    """Return the tests that a text names."""
    return re.findall(r"`(tests/[a-z0-9_/]+(?:\.py)?)`", text)


def test_every_threat_has_a_control_and_tests_that_exist() -> None:
    """T1 to T21, in order."""
    rows = [row.split(" | ") for row in SECURITY.splitlines() if re.match(r"\| T\d+ \|", row)]

    assert [row[0].strip("| ") for row in rows] == [f"T{number}" for number in range(1, 22)]
    assert [row[0] for row in rows if not paths_in(row[-1])] == []
    assert [path for row in rows for path in paths_in(row[-1]) if not (ROOT / path).exists()] == []


def test_the_readme_names_tests_that_exist() -> None:
    """In what it says of security and of limits."""
    named = paths_in(section("Security")) + paths_in(section("Limits"))

    assert len(named) > 20
    assert [path for path in named if not (ROOT / path).exists()] == []


def test_every_limit_has_its_place_in_the_readme() -> None:
    """A new setting that ends in _max is named in the section, too, and none is named that there is not."""
    named = set(re.findall(r"`(\w+_max)`", section("Limits")))

    assert named == {setting.name for setting in settings_table() if setting.name.endswith("_max")}


def test_the_container_installs_only_what_has_a_hash() -> None:
    """Every dependency of the server is locked; where one is new, `tox -e lock` writes the file anew."""
    locked = re.findall(r"^([A-Za-z0-9._-]+)==[^\n]*((?:\\\n    --hash=sha256:[0-9a-f]{64} ?)+)", LOCK, re.MULTILINE)
    names = {name.lower().replace("_", "-") for name, _ in locked}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    wanted = [
        *project["dependencies"],
        *(each for extra in re.findall(r"\w+", extras["all"][0].partition("[")[2]) for each in extras[extra]),
    ]
    found = [match[0].lower() for each in wanted if (match := NAME.match(each)) is not None]

    assert len(locked) == len(re.findall(r"^\w", LOCK, re.MULTILINE))
    assert [name for name in found if name not in names] == []
    assert [line for line in LOCK.splitlines() if line and not re.match(r"\w|    --hash", line)] == []
