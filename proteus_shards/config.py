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


SETTINGS_HELP: dict[str, str] = {
    "host": "address to listen on",
    "port": "port to listen on; 0 takes a free one",
    "shards": "shard processes",
    "fronts": "HTTP front processes that share the port",
    "store": "where persist_data jobs are kept: sqlite:///FOLDER, sqlite:////ABSOLUTE/FOLDER, postgres://USER@HOST/DATABASE, "
    "redis://HOST:PORT/NUMBER, dynamodb://TABLE or memory: (nothing is kept)",
    "require_durability": "what an acknowledged persist_data job must survive, from nothing (memory) over the end of any process and a loss of power "
    "(machine) to the loss of a store node; a store that promises less is refused",
    "tls_cert": "PEM file with the server's certificate chain: the port then speaks HTTPS, and nothing else. Read again when it changes",
    "tls_key": "PEM file with the certificate's private key, where it is not in tls_cert",
    "tls_client_ca": "PEM file with the authorities of client certificates: a client must then show one",
    "tokens_file": "file of who may do what, a line for each token or client certificate; see `proteus-shards token new`. Read again when it changes. Without it "
    "nobody is asked",
    "queues_file": "TOML file with settings of queues, a table for each, which are applied at the start of the server, over what was set before",
    "insecure": "listen on addresses that others can reach though nobody is asked who they are",
    "hosts": "names, separated by commas, under which clients and proxies reach a server where nobody is asked who they are, beside its host, addresses and localhost; "
    "any other Host is 421, since a page on the web may let its own name point here",
    "cluster": "share the store's shards with other hosts that are started with it; needs node_address, and a store that hosts can share (Postgres, Redis, DynamoDB). "
    "shards is then the number of the whole cluster, fixed by the first host",
    "node_address": "HOST:PORT under which the other hosts of the cluster reach this one's shards, and by which it is known",
    "cluster_cert": "PEM file with this host's certificate chain for the other hosts, both to serve and to ask with; without it hosts speak plain TCP, on loopback or "
    "with insecure only. Read again when it changes",
    "cluster_key": "PEM file with its private key, where it is not in cluster_cert",
    "cluster_ca": "PEM file with the authorities of the hosts' certificates",
    "lease_seconds": "a host that gives no sign of life in the store for so long is dead to the others, and its shards go to them",
    "handover_seconds_max": "time that a host which gives a shard away in order keeps what the shard had in memory only, for the new host to fetch",
    "node_connections_max": "most connections of other hosts to this one, of which each front of each host makes one for each shard; beyond it they are refused",
    "metrics_host": "address of metrics_port",
    "metrics_port": "a port of its own for GET /metrics, /health and /ready, plain HTTP without tokens, beside the one on port; 0: none",
    "metrics_relay": "show relay's metric names on GET /metrics, beside those of this server: counters, by queue for as many as metrics_queues_max",
    "otel_endpoint": "base URL of a collector of OpenTelemetry (OTLP over HTTP), such as http://127.0.0.1:4318, to be told of enqueues, deliveries and completions of jobs "
    "that are traced; needs the extra otel. OTEL_* variables say the rest",
    "dashboard": "show a dashboard at /; off: nothing is there",
    "log_format": "auto is console on a terminal and json elsewhere",
    "log_level": "the least level that is logged",
    "body_size_max": "largest request body, in bytes, after decompression; beyond it 413",
    "num_jobs_max": "most jobs that one next may ask for; beyond it 422",
    "next_queues_max": "most queues that one next may name, and most nexts in one batch; beyond it 422 and 413",
    "batch_jobs_max": "most jobs in an array, or operations in a batch; beyond it 413",
    "ndjson_bytes_max": "most bytes of one enqueue as application/x-ndjson, after decompression; each line has the limit body_size_max",
    "ndjson_seconds_max": "time for one enqueue as application/x-ndjson",
    "wait_seconds_max": "longest wait that a next may ask for; beyond it 422",
    "request_seconds_max": "longest time that a request waits for its shard, besides the wait it asked for; then 503",
    "drain_seconds_max": "time that SIGTERM leaves for what is under way",
    "hang_seconds_max": "a shard or front process without a sign of life for so long is killed and started again",
    "connection_idle_seconds_max": "an idle keep-alive connection is closed after this",
    "fast_lane": "serve the hot job routes on the fast lane; off: everything through Quart on Hypercorn",
    "header_bytes_max": "largest head of a request, request line included, in bytes; beyond it 431",
    "headers_max": "most header fields of a request; beyond it 431",
    "url_bytes_max": "longest target of a request, in bytes; beyond it 414. Two names of 1024 characters fit, percent-encoded",
    "header_seconds_max": "time for the head of a request to arrive; then 408",
    "connections_max": "most connections of one front; beyond it they wait to be accepted",
    "bodies_bytes_max": "most bytes of request bodies that have not come to their end, of all connections of one front; beyond it 429",
    "answers_bytes_max": "most bytes of answers that clients have not taken, of all connections of one front; beyond it jobs go back, and their next gets 429",
    "connection_requests_max": "requests on one connection, after which it is closed",
    "connection_pipeline_max": "requests that one connection may send ahead of their answers; more are not read until then",
    "http2_streams_max": "requests under way at once on one HTTP/2 connection; beyond it the connection is ended",
    "http2_control_frames_max": "most frames of one HTTP/2 connection within ten seconds that carry nothing: resets, pings, settings and the like; beyond it the "
    "connection is ended",
    "delay_seconds_max": "where requests of one front wait longer than this for one shard, further ones are refused at once with 429, but for 256 that always pass",
    "link_requests_max": "most requests of one front under way at one shard, polls that wait aside; an array is one. Beyond it 429",
    "link_operations_max": "most operations in them, those of arrays and batches counted one by one; beyond it 429",
    "link_bytes_max": "most bytes of one front's requests that wait to be sent to one shard; beyond it 429",
    "hold_seconds_max": "in a cluster, time that a request waits for a shard that moves, or whose host is cut off; then 429",
    "resume_seconds_max": "in a cluster, time that a shard and a front of another host remember what is under way between them when their connection is cut; then 503",
    "resume_frames_max": "most messages that each of the two keeps for it",
    "resume_bytes_max": "most bytes of them",
    "shard_pending_max": "most operations that wait for a commit in one shard; beyond it 429",
    "polls_max": "most waiting next requests in one shard; beyond it 429",
    "queue_jobs_max": "most live jobs in one queue; beyond it 429",
    "shard_jobs_max": "most live jobs in one shard; beyond it 429",
    "shard_bytes_max": "most bytes of payload and state in one shard; beyond it 429",
    "queues_max": "most queues in one shard; beyond it 429",
    "idempotency_keys_max": "most answers that one shard keeps for requests with an Idempotency-Key; beyond it 429",
    "idempotency_seconds": "how long the answer to a request with an Idempotency-Key is kept",
    "dead_letters_max": "dead letters kept per queue; the oldest beyond it are dropped, counted and logged",
    "dead_letters_seconds_max": "a dead letter older than this is dropped, counted and logged",
    "schedules_max": "most recurring jobs of one shard; beyond it 429",
    "metrics_queues_max": "queues with series of their own in GET /metrics: the deepest; all others are summed",
    "dashboard_viewers_max": "most pages of the dashboard that one front keeps up to date; beyond it 429",
}


class ShardBoot(msgspec.Struct, frozen=True):
    """What the supervisor tells a shard process: one line of JSON on its standard input, which then stays open as its lifeline."""

    settings: Settings
    shard: int
    run_dir: str
    claim: Claim | None = None  # in a cluster: what the process is started for
    luggage: str = ""  # path of what the host before handed over of this shard; empty: nothing
    server: str = ""  # outside a cluster: the name, drawn at the start of the server, under which it holds shards that hosts could share
    turn: int = 0  # at which it holds this one; 0: it holds none, as its store cannot be shared

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
