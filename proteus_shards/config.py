"""Every setting: its default, its limits, its help, and the four places that it may come from.

A `Settings` is made once, by `load_settings`, from the command line, then `PROTEUS_*` environment variables, then a TOML file, then
the defaults below (the first that names a setting wins). It is checked there, relations between settings included, and
travels whole to the processes. Nothing else in the product reads the environment or a file for a setting.

A name that means nothing is refused wherever it stands: a setting that is silently ignored is worse than a server that
does not start. `settings_table` describes every setting to the command line, its help and the README; all three are generated.
"""

from __future__ import annotations

import difflib
import ipaddress
import math
import os
import re
import tomllib
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_type_hints

import msgspec
import msgspec.inspect

from proteus_shards.cluster.address import check_cluster
from proteus_shards.cluster.model import Claim
from proteus_shards.core.placement import SHARDS_MAX
from proteus_shards.errors import SettingError
from proteus_shards.ipc.frames import FRAME_BYTES_MAX
from proteus_shards.settings_help import SETTINGS_HELP

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB
BODY_BYTES_LIMIT = 31 * MIB

# A delivered job carries a payload and a state, each as large as a body may be, and both must fit into one frame with its names.
assert 2 * BODY_BYTES_LIMIT + MIB <= FRAME_BYTES_MAX

LOOPBACK = "127.0.0.1"

_UNREACHABLE = 2**53  # a limit that only keeps a number exact in JSON; no message mentions it

_Count = Annotated[int, msgspec.Meta(ge=1, le=_UNREACHABLE)]
_Seconds = Annotated[float, msgspec.Meta(gt=0, le=86_400.0 * 3650)]


def is_loopback(host: str) -> bool:
    """Say whether an address to listen on can be reached from this machine only. Of names only `localhost` is known to be one."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def cores() -> int:
    """Return how many cores this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All settings of one server. Each field's help stands in `SETTINGS_HELP`."""

    host: str = LOOPBACK
    port: Annotated[int, msgspec.Meta(ge=0, le=65535)] = 8080
    shards: Annotated[int, msgspec.Meta(ge=1, le=SHARDS_MAX)] = msgspec.field(default_factory=cores)
    fronts: Annotated[int, msgspec.Meta(ge=1, le=256)] = 1
    store: str = "sqlite:///proteus-data"
    require_durability: Literal["memory", "process", "machine", "replica"] = "memory"
    tls_cert: str = ""
    tls_key: str = ""
    tls_client_ca: str = ""
    tokens_file: str = ""
    queues_file: str = ""
    insecure: bool = False
    hosts: str = ""
    cluster: bool = False
    node_address: str = ""
    cluster_cert: str = ""
    cluster_key: str = ""
    cluster_ca: str = ""
    lease_seconds: Annotated[float, msgspec.Meta(ge=1, le=3600)] = 8.0
    handover_seconds_max: _Seconds = 10.0
    node_connections_max: _Count = 10_000
    metrics_host: str = LOOPBACK
    metrics_port: Annotated[int, msgspec.Meta(ge=0, le=65535)] = 0
    metrics_relay: bool = False
    otel_endpoint: str = ""
    dashboard: bool = True
    log_format: Literal["auto", "console", "json"] = "auto"
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    body_size_max: Annotated[int, msgspec.Meta(ge=1, le=BODY_BYTES_LIMIT)] = 4 * MIB
    num_jobs_max: _Count = 1000
    next_queues_max: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 16
    batch_jobs_max: Annotated[int, msgspec.Meta(ge=1, le=100_000)] = 1000
    ndjson_bytes_max: _Count = 1 * GIB
    ndjson_seconds_max: _Seconds = 300.0
    wait_seconds_max: Annotated[float, msgspec.Meta(ge=0, le=3600)] = 60.0
    request_seconds_max: _Seconds = 30.0
    drain_seconds_max: _Seconds = 30.0
    hang_seconds_max: Annotated[float, msgspec.Meta(ge=3, le=86_400.0)] = 30.0
    connection_idle_seconds_max: _Seconds = 75.0
    fast_lane: bool = True
    header_bytes_max: Annotated[int, msgspec.Meta(ge=1 * KIB, le=1 * MIB)] = 32 * KIB
    headers_max: Annotated[int, msgspec.Meta(ge=1, le=10_000)] = 100
    url_bytes_max: Annotated[int, msgspec.Meta(ge=256, le=1 * MIB)] = 28 * KIB
    header_seconds_max: _Seconds = 10.0
    connections_max: _Count = 20_000
    bodies_bytes_max: Annotated[int, msgspec.Meta(ge=1 * KIB, le=_UNREACHABLE)] = 256 * MIB
    answers_bytes_max: Annotated[int, msgspec.Meta(ge=1 * KIB, le=_UNREACHABLE)] = 256 * MIB
    quart_requests_max: _Count = 128
    connection_requests_max: _Count = 1_000_000
    connection_pipeline_max: Annotated[int, msgspec.Meta(ge=1, le=10_000)] = 64
    http2_streams_max: Annotated[int, msgspec.Meta(ge=1, le=10_000)] = 100
    http2_control_frames_max: Annotated[int, msgspec.Meta(ge=10, le=100_000)] = 1000
    delay_seconds_max: _Seconds = 1.0
    link_requests_max: _Count = 8192
    link_operations_max: _Count = 65_536
    link_bytes_max: _Count = 256 * MIB
    hold_seconds_max: Annotated[float, msgspec.Meta(ge=0, le=60)] = 2.0
    resume_seconds_max: _Seconds = 10.0
    resume_frames_max: _Count = 10_000
    resume_bytes_max: _Count = 64 * MIB
    shard_pending_max: _Count = 131_072
    polls_max: _Count = 10_000
    queue_jobs_max: _Count = 5_000_000
    shard_jobs_max: _Count = 20_000_000
    shard_bytes_max: _Count = 4 * GIB
    queues_max: _Count = 1_000_000
    idempotency_keys_max: _Count = 1_000_000
    idempotency_seconds: _Seconds = 3600.0
    dead_letters_max: Annotated[int, msgspec.Meta(ge=0, le=_UNREACHABLE)] = 10_000
    dead_letters_seconds_max: _Seconds = 14 * 86_400.0
    schedules_max: _Count = 10_000
    metrics_queues_max: Annotated[int, msgspec.Meta(ge=0, le=10_000)] = 50
    dashboard_viewers_max: _Count = 64


class ShardBoot(msgspec.Struct, frozen=True):
    """What the supervisor tells a shard process: one line of JSON on its standard input, which then stays open as its lifeline."""

    settings: Settings
    shard: int
    run_dir: str
    claim: Claim | None = None  # in a cluster: what the process is started for
    luggage: str = ""  # path of what the host before handed over of this shard; empty: nothing
    server: str = ""  # outside a cluster: the name, drawn at the start of the server, under which it holds shards that hosts could share
    turn: int = 0  # at which it holds this one; 0: it holds none, as its store cannot be shared
    turns: tuple[int, ...] = ()  # of a preparation of a store that has served: at which the server held each shard

    @property
    def opens_under(self) -> Claim | None:
        """What the shard's rows may be opened under; None: whoever holds them."""
        return self.claim or (Claim(self.shard, self.server, self.turn) if self.turn else None)


class FrontBoot(msgspec.Struct, frozen=True):
    """What the supervisor tells a front process, in the same way. `listen_fd` and `metrics_fd` are inherited sockets that listen already."""

    settings: Settings
    front: int
    run_dir: str
    listen_fd: int
    metrics_fd: int | None = None


class Ready(msgspec.Struct, frozen=True, tag="ready"):
    """What a child writes to its standard output, as one line of JSON, once it serves."""

    detail: str = ""
    turns: tuple[int, ...] = ()  # of a preparation outside a cluster: those at which the server holds its shards


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    """What a child writes instead, where it cannot start. `final`: starting it again would not help.

    `fenced`: another owner has the shard, so this process's claim is over. That may come after `Ready`, too.
    """

    detail: str
    final: bool = False
    fenced: bool = False


class Beat(msgspec.Struct, frozen=True, tag="beat"):
    """What a child writes every `BEAT_SECONDS` from its event loop: it is alive, and not merely there."""


BEAT_SECONDS = 1.0


def luggage_path(run_dir: str, shard: int, turn: int) -> str:
    """Return the path to which a shard's process, in a cluster, writes what it had in memory only, when it ends in order. `turn`: its own."""
    return str(Path(run_dir) / f"luggage-{shard}-{turn}")


def node_socket_path(run_dir: str) -> str:
    """Return the path of the Unix socket of a host's node process."""
    return str(Path(run_dir) / "node.sock")


def socket_path(run_dir: str, shard: int) -> str:
    """Return the path of a shard's Unix socket."""
    return str(Path(run_dir) / f"shard-{shard}.sock")


Kind = Literal["text", "choice", "switch", "count", "bytes", "seconds"]

VARIABLE_PREFIX = "PROTEUS_"
CONFIG_VARIABLE = "PROTEUS_CONFIG"
CLIENT_VARIABLES = frozenset({"PROTEUS_URL", "PROTEUS_TOKEN"})  # of clients, and no settings
TEST_VARIABLE_PREFIX = "PROTEUS_TEST_"  # fault points and the like: no settings

_KINDS: dict[type[msgspec.inspect.Type], Kind] = {
    msgspec.inspect.StrType: "text",
    msgspec.inspect.LiteralType: "choice",
    msgspec.inspect.BoolType: "switch",
    msgspec.inspect.IntType: "count",
    msgspec.inspect.FloatType: "seconds",
}
_UNITS = {"kib": KIB, "mib": MIB, "gib": GIB}
_SIZE = re.compile(r"(\d{1,15})\s*([kmg]ib)", re.IGNORECASE)
_COLLECTOR = re.compile(r"https?://[^\s/?#@]+(/[^\s?#@]*)?")
_SWITCH = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}


class Setting(msgspec.Struct, frozen=True):
    """One setting as a user meets it."""

    name: str
    kind: Kind
    group: str  # "server", "storage", "limits" or "logs"
    default: str  # as a user would write it
    allowed: str  # which values there are, in words
    help: str

    @property
    def option(self) -> str:
        """Its option on the command line."""
        return "--" + self.name.replace("_", "-")

    @property
    def variable(self) -> str:
        """Its environment variable."""
        return VARIABLE_PREFIX + self.name.upper()


@cache
def settings_table() -> tuple[Setting, ...]:
    """Return every setting, in the order of `Settings`."""
    described = msgspec.inspect.type_info(Settings)
    assert isinstance(described, msgspec.inspect.StructType)
    return tuple(_setting(field) for field in described.fields)


def load_settings(
    given: Mapping[str, object],
    environ: Mapping[str, str],
    config_path: str | os.PathLike[str] | None = None,
    check_store: Callable[[str], object] | None = None,
) -> Settings:
    """Make the settings of one server from what the user gave.

    `given` holds what the command line said, by setting name; None is "not said". Without a `config_path`, `PROTEUS_CONFIG` may
    name the file. `check_store` is called with the store's URL and raises `SettingError`, which begins with "store", where no store can be made of it.
    Raises `SettingError`, which names the setting, where its value came from, and which values there are.
    """
    table = {setting.name: setting for setting in settings_table()}
    found: dict[str, tuple[str, object]] = {}  # name -> where it came from, and what stood there; the last writer wins
    path = config_path or environ.get(CONFIG_VARIABLE)
    if path:
        found |= _from_file(Path(path), table)
    found |= _from_environment(environ, table)
    found |= {name: (table[name].option, value) for name, value in given.items() if value is not None}

    values = {name: _value(table[name], source, value) for name, (source, value) in found.items()}
    settings = Settings(**values)
    sources = {name: source for name, (source, _) in found.items()}
    if check_store is not None:
        try:
            check_store(settings.store)
        except SettingError as error:
            raise SettingError(str(error).replace("store", sources.get("store", "store"), 1)) from error
    _check_relations(settings, sources)
    return settings


def _setting(field: msgspec.inspect.Field) -> Setting:
    kind = _KINDS[type(field.type)]
    if kind == "count" and ("_bytes_" in field.name or "_size_" in field.name):
        kind = "bytes"
    default = field.default if field.default is not msgspec.NODEFAULT else field.default_factory()
    name = field.name
    prefix = name.partition("_")[0]
    return Setting(
        name=name,
        kind=kind,
        group={"log": "logs", "store": "storage", "require": "storage"}.get(prefix, "limits" if name.endswith("_max") else "server"),
        default="one per core" if name == "shards" else _written(kind, default) or "none",
        allowed=_allowed(kind, name, field.type),
        help=SETTINGS_HELP[name],
    )


def _written(kind: Kind, value: Any) -> str:
    """Write a value as a user would."""
    match kind:
        case "bytes":
            unit = next((unit for unit in ("GiB", "MiB", "KiB") if value and value % _UNITS[unit.lower()] == 0), None)
            return f"{value // _UNITS[unit.lower()]}{unit}" if unit else str(value)
        case "seconds":
            return f"{value:.12g}"
        case "switch":
            return str(value).lower()
        case _:
            return str(value)


def _allowed(kind: Kind, name: str, described: Any) -> str:
    """Say which values a setting takes."""
    match kind:
        case "text":
            return "text that is not empty"
        case "choice":
            return "one of " + ", ".join(get_args(get_type_hints(Settings)[name]))
        case "switch":
            return "true or false"
    noun = {"count": "a whole number", "bytes": "a whole number of bytes, or one with KiB, MiB or GiB", "seconds": "a number of seconds"}
    high = "" if described.le is None or described.le >= _UNREACHABLE else _written(kind, described.le)
    if described.gt is not None:
        return f"{noun[kind]}, more than {_written(kind, described.gt)}" + (f", at most {high}" if high else "")
    low = _written(kind, described.ge)
    return f"{noun[kind]}, from {low} to {high}" if high else f"{noun[kind]}, at least {low}"


def _from_file(path: Path, table: Mapping[str, Setting]) -> dict[str, tuple[str, object]]:
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingError(f"the settings file {path} cannot be read: {error.strerror}") from error
    except ValueError as error:  # not UTF-8, or not TOML
        raise SettingError(f"the settings file {path} is not TOML: {error}") from error
    found: dict[str, tuple[str, object]] = {}
    for key, value in content.items():
        name = key.replace("-", "_")
        if name not in table:
            raise SettingError(f"{path}: there is no setting {key!r}{_did_you_mean(name, table)}")
        if name in found:
            raise SettingError(f"{path}: {key} stands there twice, with dashes and with underscores")
        found[name] = (f"{key} in {path}", value)
    return found


def _from_environment(environ: Mapping[str, str], table: Mapping[str, Setting]) -> dict[str, tuple[str, object]]:
    names = {setting.variable: setting.name for setting in table.values()}
    found: dict[str, tuple[str, object]] = {}
    for variable, value in environ.items():
        if not variable.startswith(VARIABLE_PREFIX) or variable == CONFIG_VARIABLE or variable.startswith(TEST_VARIABLE_PREFIX):
            continue
        if variable in CLIENT_VARIABLES:
            continue
        if variable not in names:
            raise SettingError(f"there is no setting for the environment variable {variable}{_did_you_mean(variable, names)}")
        found[names[variable]] = (variable, value)
    return found


def _did_you_mean(name: str, names: Mapping[str, object]) -> str:
    close = difflib.get_close_matches(name, names, n=1)
    return f"; did you mean {close[0]}?" if close else ""


def _value(setting: Setting, source: str, value: object) -> Any:
    """Turn what a user wrote into a checked value. Text comes from the command line and the environment, other types from TOML."""
    read = value
    if isinstance(value, str):
        if setting.kind == "bytes" and (size := _SIZE.fullmatch(value.strip())):
            read = int(size[1]) * _UNITS[size[2].lower()]
        elif setting.kind == "switch":
            read = _SWITCH.get(value.strip().lower(), value)
    try:
        checked: object = msgspec.convert(
            read, get_type_hints(Settings, include_extras=True)[setting.name], strict=not isinstance(read, str)
        )
    except msgspec.ValidationError:
        checked = None
    if checked is None or checked == "" or (isinstance(checked, float) and not math.isfinite(checked)):
        written = repr(value) if isinstance(value, str) else _named(value)
        raise SettingError(f"{source} must be {setting.allowed}, not {written if len(written) <= 60 else 'that'}")
    return checked


def _named(value: object) -> str:
    if isinstance(value, dict | list):
        return "a table or an array"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _check_relations(settings: Settings, sources: Mapping[str, str]) -> None:
    for name in ("tls_key", "tls_client_ca"):
        if getattr(settings, name) and not settings.tls_cert:
            raise SettingError(f"{sources[name]} needs tls_cert, the certificate to serve with")
    if settings.otel_endpoint and _COLLECTOR.fullmatch(settings.otel_endpoint) is None:
        raise SettingError(
            f"{sources['otel_endpoint']} must be http://HOST:PORT or https://HOST, perhaps with a path, and without a user, a password or a query"
        )
    check_cluster(settings, sources, is_loopback)
    if settings.metrics_host != LOOPBACK and not settings.metrics_port:
        raise SettingError(f"{sources['metrics_host']} needs metrics_port, the port to serve on")
    if not (is_loopback(settings.host) or settings.tokens_file or settings.tls_client_ca or settings.insecure):
        raise SettingError(
            f"{sources['host']}: others can reach {settings.host}, and anyone who does could take and change all jobs. Give a tokens_file "
            "(see `proteus-shards token new`) or a tls_client_ca; or, where something else keeps others away, insecure"
        )
    if settings.batch_jobs_max > settings.shard_pending_max:
        name = sources.get("batch_jobs_max", sources.get("shard_pending_max", "batch_jobs_max"))
        raise SettingError(
            f"{name}: batch_jobs_max ({settings.batch_jobs_max}) must be at most shard_pending_max ({settings.shard_pending_max}), "
            "else a whole batch for one shard can never pass"
        )
    if settings.shard_bytes_max < 2 * settings.body_size_max:
        raise SettingError(
            f"{sources.get('shard_bytes_max', 'shard_bytes_max')} must be at least twice the largest body "
            f"({sources.get('body_size_max', 'body_size_max')}, {_written('bytes', settings.body_size_max)}), "
            f"since a job may hold a payload and a state of that size, not {_written('bytes', settings.shard_bytes_max)}"
        )
