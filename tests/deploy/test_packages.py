"""The wheel and the sdist: built as an index gets them, installed as a user does, and run from there."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import venv
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from proteus_shards import __version__
from proteus_shards.cli import build_parser
from tests.conftest import Server

ROOT = Path(__file__).resolve().parents[2]
BUILD_SECONDS_MAX = 120.0
PACKAGE = "proteus_shards"


def clean_environ() -> dict[str, str]:
    """Return an environment in which this clone is not on the path."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH" and not name.startswith("PROTEUS_")}


def build(source: Path, out: Path, kind: str) -> Path:
    """Build a package."""
    command = [sys.executable, "-m", "hatchling", "build", "--target", kind, "--directory", str(out)]
    built = subprocess.run(command, cwd=source, env=clean_environ(), capture_output=True, text=True, check=False, timeout=BUILD_SECONDS_MAX)
    assert 0 == built.returncode, built.stderr
    (found,) = out.glob("*.whl" if kind == "wheel" else "*.tar.gz")
    return found


def names_in(wheel: Path) -> set[str]:
    """Return the files of the package in a wheel."""
    with zipfile.ZipFile(wheel) as opened:
        return {name for name in opened.namelist() if name.startswith(f"{PACKAGE}/")}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a wheel of this clone."""
    return build(ROOT, tmp_path_factory.mktemp("wheel"), "wheel")


@pytest.fixture
def installed(tmp_path: Path, wheel: Path) -> Path:
    """Return a new environment with the wheel in it. What it depends on is taken from this one, so that no index is asked."""
    folder = tmp_path / "environment"
    venv.create(folder, symlinks=True)
    (site,) = folder.glob("lib/python*/site-packages")
    with zipfile.ZipFile(wheel) as opened:
        opened.extractall(site)
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    (entry,) = site.glob(f"{PACKAGE}-*.dist-info/entry_points.txt")
    name, _, target = entry.read_text().splitlines()[1].partition(" = ")
    module, _, function = target.partition(":")
    script = folder / "bin" / name
    script.write_text(f"#!{folder}/bin/python\nimport sys\nfrom {module} import {function}\nsys.exit({function}())\n")
    script.chmod(0o755)
    return folder


def test_the_wheel_holds_all_that_the_package_has(wheel: Path) -> None:
    """Each file beside the code is in it, the marker of types too, and nothing else is."""
    there = {
        path.relative_to(ROOT).as_posix() for path in (ROOT / PACKAGE).rglob("*") if path.is_file() and "__pycache__" not in path.parts
    }

    assert there == names_in(wheel)
    assert {".css", ".html", ".js", ".lua", ".sql", ".svg"} <= {Path(name).suffix for name in there}
    with zipfile.ZipFile(wheel) as opened:
        outside = {name.partition("/")[0] for name in opened.namelist()} - {PACKAGE}
        licenses = [name for name in opened.namelist() if "/licenses/" in name]
    assert {f"{PACKAGE}-{__version__}.dist-info"} == outside
    assert 2 == len(licenses)


def test_the_sdist_builds_the_same_wheel(wheel: Path, tmp_path: Path) -> None:
    """Whoever packs it anew, from the sdist alone, gets the same files; tests, benchmark and deploy/ are in it."""
    sdist = build(ROOT, tmp_path / "sdist", "sdist")
    with tarfile.open(sdist) as opened:
        opened.extractall(tmp_path, filter="data")
    unpacked = tmp_path / f"{PACKAGE}-{__version__}"

    rebuilt = build(unpacked, tmp_path / "wheel", "wheel")

    assert names_in(wheel) == names_in(rebuilt)
    for name in ("tests/conftest.py", "bench/README.md", "deploy/README.md", "CHANGELOG.md", "LICENSE-MIT", "tox.ini", "PKG-INFO"):
        assert (unpacked / name).is_file()


def test_the_command_is_called_like_the_package() -> None:
    """So `pipx run proteus-shards` and `uvx proteus-shards` find it without being told."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

    assert [project["name"]] == list(project["scripts"])


def test_the_version_stands_in_one_place() -> None:
    """The metadata read it from the package, and nobody else writes it down."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    holders = [path for path in (ROOT / PACKAGE).rglob("*.py") if f'"{__version__}"' in path.read_text(encoding="utf-8")]

    assert ["version"] == project["project"]["dynamic"]
    assert [ROOT / project["tool"]["hatch"]["version"]["path"]] == holders


def test_an_installed_server_serves_from_anywhere(installed: Path, tmp_path: Path) -> None:
    """With its dashboard, its SQL and its processes found in the new environment only."""
    environ = clean_environ()
    program = str(installed / "bin" / "proteus-shards")
    told = subprocess.run([program, "--version"], cwd=tmp_path, env=environ, capture_output=True, text=True, check=False, timeout=60)
    assert (0, f"proteus-shards {__version__}\n") == (told.returncode, told.stdout), told.stderr
    where = [str(installed / "bin" / "python"), "-P", "-c", f"import {PACKAGE}; print({PACKAGE}.__file__)"]
    found = subprocess.run(where, cwd=tmp_path, env=environ, capture_output=True, text=True, check=True, timeout=60).stdout
    assert found.startswith(str(installed))

    server = Server("--port", "0", "--shards", "1", cwd=tmp_path, environ={}, command=[program])
    try:
        assert 202 == server.request("POST", "/enqueue", {"id": "1", "queue": "q", "timeout": 30, "persist_data": True}).status
        page = server.request("GET", "/")
        assert (200, True) == (page.status, b"<html" in page.body)
        assert __version__ == server.request("GET", "/health").json()["version"]
        children = server.children()
        assert children
        assert all(str(installed) in command for command in children.values())
    finally:
        assert 0 == server.stop()


# --- help ------------------------------------------------------------------------------------------------------


def parsers(parser: argparse.ArgumentParser, path: str = "") -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """Yield each command with its words, from the whole program down."""
    yield path, parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, found in action.choices.items():
                yield from parsers(found, f"{path} {name}".strip())


def test_every_command_has_help_and_every_option_of_it() -> None:
    """Whatever can be typed is explained by `--help`, and each command stands in the list of the one above it."""
    found = dict(parsers(build_parser()))

    assert {"serve", "doctor", "store copy", "token new", "enqueue", "work", "queues", "dead redrive", "completion"} <= set(found)
    for path, parser in found.items():
        text = parser.format_help()
        assert parser.description, path
        assert text.startswith("usage: proteus-shards")
        for action in parser._actions:
            assert isinstance(action, argparse._SubParsersAction) or action.help, f"{path} {action.option_strings or action.dest}"
            if isinstance(action, argparse._SubParsersAction):
                listed = {choice.dest for choice in action._choices_actions if choice.help}
                assert set(action.choices) == listed, path


@pytest.mark.parametrize("path", [path for path, _ in parsers(build_parser())])
def test_help_ends_with_0(path: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Every command takes `--help`, prints it and does nothing else."""
    with pytest.raises(SystemExit) as ended:
        build_parser().parse_args([*path.split(), "--help"])

    assert 0 == ended.value.code
    assert capsys.readouterr().out.startswith("usage: proteus-shards")
