"""The architecture as a test: imports point down only, and a few habits hold everywhere in the package."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import proteus_shards
from tests.conftest import server_environ

PACKAGE = Path(proteus_shards.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
LINES_MAX = 500

# part → the parts that it may import. A part is a folder or a module of the package; "" is the package's __init__ (the version).
ALLOWED: dict[str, set[str]] = {
    "": set(),
    "errors": set(),
    "fault_points": set(),
    "core": {"errors"},
    "cluster": {"errors", "core"},
    "ipc": {"", "errors", "cluster", "core"},
    "settings_help": set(),
    "config": {"errors", "cluster", "core", "ipc", "settings_help"},
    "tally": {"core"},
    "tokens": {"errors"},
    "memory": set(),
    "boot": {"cluster", "config", "ipc"},
    "certificates": {"errors"},
    "peering": {"certificates", "config"},
    "logs": {"config"},
    "store": {"errors", "cluster", "core", "config"},
    "shard": {"", "errors", "fault_points", "core", "ipc", "boot", "config", "logs", "memory", "store", "tally"},
    "node": {"", "errors", "boot", "cluster", "config", "core", "ipc", "logs", "peering", "store", "tally"},
    "front": {
        "",
        "errors",
        "fault_points",
        "certificates",
        "cluster",
        "core",
        "ipc",
        "boot",
        "config",
        "logs",
        "peering",
        "settings_help",
        "tally",
        "tokens",
    },
    "surroundings": {"", "errors", "config"},
    "child": {"errors", "boot", "config", "ipc", "surroundings", "tally"},
    "tenants": {"errors", "child", "cluster", "config", "ipc"},
    "supervisor": {"", "errors", "boot", "cluster", "config", "child", "ipc", "surroundings", "tally", "tenants"},
    "client": {"errors"},
    "commands": {"errors", "client"},
    "cli": {
        "",
        "errors",
        "commands",
        "config",
        "logs",
        "store.registry",
        "store.doctor",
        "store.copy",
        "store.sqlite_backup",
        "store.postgres_relay",
        "supervisor",
        "tokens",
    },
    "__main__": {"cli"},
}

# library → where it may be imported, as the beginnings of paths inside the package
HOMES: dict[str, tuple[str, ...]] = {
    "trio": ("front/", "supervisor.py", "tenants.py", "child.py"),
    "quart": ("front/",),
    "quart_trio": ("front/",),
    "hypercorn": ("front/",),
    "httptools": ("front/",),
    "prometheus_client": ("front/",),
    "opentelemetry": ("front/telemetry.py",),
    "httpx2": ("client/",),
    "anyio": ("client/",),
    "shtab": ("commands/completion.py",),
    "jinja2": ("front/",),
    "asyncio": ("node/", "shard/", "store/"),
    "uvloop": ("node/", "shard/"),
    "cronsim": ("shard/calendar",),
    "zoneinfo": ("shard/calendar",),
    "sqlite3": ("store/sqlite",),
    "asyncpg": ("store/postgres",),
    "redis": ("store/redis",),
    "aioboto3": ("store/dynamodb",),
    "aiobotocore": ("store/dynamodb",),
    "boto3": ("store/dynamodb",),
    "botocore": ("store/dynamodb",),
}

# what a sans-IO machine must not touch: clocks, randomness, files, sockets, other tasks
NOT_SANS_IO = {
    "asyncio",
    "datetime",
    "io",
    "os",
    "pathlib",
    "random",
    "secrets",
    "select",
    "socket",
    "subprocess",
    "threading",
    "time",
    "trio",
    "uuid",
}


def name_of(path: Path) -> str:
    """Return the path of a file inside the package."""
    return path.relative_to(PACKAGE).as_posix()


def part_of(module: str) -> str:
    """Return the part that a module of the package belongs to."""
    rest = module.split(".")[1:]
    return "" if not rest or rest == ["__init__"] else rest[0]


def imports_of(path: Path) -> Iterator[tuple[int, str]]:
    """Yield line and full module name of every import in a file, those inside functions and for type checkers included."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name_of(path)}:{node.lineno}: write the whole name of the module"
            assert node.module is not None
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield node.lineno, whole if is_module(whole) else node.module


def is_module(name: str) -> bool:
    """Say whether a name is a module of the package."""
    if not name.startswith("proteus_shards."):
        return False
    path = PACKAGE.joinpath(*name.split(".")[1:])
    return path.is_dir() or path.with_suffix(".py").is_file()


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_imports_inside_the_package_point_down_only(path: Path) -> None:
    """The order of the layers is what keeps a decision in one place."""
    own = part_of("proteus_shards." + name_of(path).removesuffix(".py").replace("/", "."))
    assert own in ALLOWED, f"{name_of(path)} belongs to no layer: say in ALLOWED what it may import"
    wrong = [
        f"{name_of(path)}:{line} imports {module}"
        for line, module in imports_of(path)
        if module.split(".")[0] == "proteus_shards"
        and part_of(module) not in {own, *ALLOWED[own]}
        and not any(f"{module}.".startswith(f"proteus_shards.{allowed}.") for allowed in ALLOWED[own] if "." in allowed)
    ]

    assert not wrong


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_a_library_is_imported_only_where_it_is_at_home(path: Path) -> None:
    """One event loop a process, and a database driver only in its own store."""
    wrong = [
        f"{name_of(path)}:{line} imports {module}"
        for line, module in imports_of(path)
        if not name_of(path).startswith(HOMES.get(module.split(".")[0], ("",)))
    ]

    assert not wrong


@pytest.mark.parametrize("path", [path for path in FILES if name_of(path).startswith(("core/", "cluster/", "ipc/"))], ids=name_of)
def test_the_core_and_the_ipc_do_no_io(path: Path) -> None:
    """Time, randomness and bytes are given to them."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    waits = [node.lineno for node in ast.walk(tree) if isinstance(node, ast.AsyncFunctionDef | ast.Await | ast.AsyncFor | ast.AsyncWith)]
    wrong = [f"{name_of(path)}:{line} imports {module}" for line, module in imports_of(path) if module.split(".")[0] in NOT_SANS_IO]

    assert not waits
    assert not wrong


def test_the_layers_have_no_cycle() -> None:
    """Whatever the table allows, something is at the bottom."""
    left = {part: {other.partition(".")[0] for other in others} for part, others in ALLOWED.items()}
    while left:
        bottom = {part for part, others in left.items() if not others}
        assert bottom, f"a cycle among {sorted(left)}"
        left = {part: others - bottom for part, others in left.items() if part not in bottom}


@pytest.mark.parametrize("module", ["proteus_shards.cli", "proteus_shards.supervisor"])
def test_the_supervisor_loads_no_second_event_loop_and_no_web_framework(module: str) -> None:
    """Not by way of another module either."""
    code = f"import sys, {module}; sys.exit(' '.join({{'asyncio', 'uvloop', 'sqlite3', 'quart', 'hypercorn'}} & set(sys.modules)) or None)"

    ran = subprocess.run([sys.executable, "-c", code], env=server_environ({}), capture_output=True, text=True, check=False)

    assert (ran.returncode, ran.stderr) == (0, "")


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_nothing_is_left_for_later_and_nothing_prints(path: Path) -> None:
    """Notes to oneself are not finished work, and standard output belongs to the start line."""
    text = path.read_text(encoding="utf-8")
    notes = [word for word in ("TODO", "FIXME", "XXX", "HACK") if word in text]
    prints = [
        node.lineno
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    ]

    assert not notes
    assert not prints


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_a_file_is_short_enough_to_hold_one_thing(path: Path) -> None:
    """A file that grows past this holds two."""
    assert len(path.read_text(encoding="utf-8").splitlines()) <= LINES_MAX


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_every_module_says_how_to_think_about_it(path: Path) -> None:
    """A header docstring, ended like a sentence."""
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))

    assert docstring
    assert docstring.splitlines()[0].endswith((".", ":"))
