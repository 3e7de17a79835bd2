"""The URL of a Postgres store.

    postgres://user:password@host:port/database?schema=jobs&sslmode=verify-full
    postgres://user@/database?host=/var/run/postgresql            a Unix socket, by its folder
    postgres://user@one:5432,two:5432/database                    several hosts: whichever is the primary

The names are libpq's. The parts before the question mark may also be given as the options `host`, `port`, `user`, `password` and `dbname`; then the
URL must not have them in both places. What the URL leaves out has the default that is written here, and never that of a `PG…` variable of the
environment, which some other program may have needed. There are two exceptions, so that a secret need not stand in a URL: a password is
looked for in `PGPASSWORD` and in a password file (`passfile`, `PGPASSFILE`, `~/.pgpass`), and the files of TLS where libpq looks for them
(`PGSSLROOTCERT` and its like, `~/.postgresql/`). There is no `service`: its file would hide from the URL where the jobs are.

    schema                  where the tables are, by default proteus_shards
    timeout                 seconds for a commit, a read, or taking the rows over; by default 10
    connect_timeout         seconds to reach one host, by default 2
    load_timeout            seconds for each step of reading all rows at start, of which the first sorts them; by default 300
    synchronous_commit      on (default), remote_apply, remote_write, local or off: what a commit waits for
    application_name        how the sessions are shown in pg_stat_activity, by default proteus-shards
    target_session_attrs    read-write or primary (default)
    sslmode                 disable, allow, prefer (default), require, verify-ca or verify-full
    sslrootcert, sslcrl, sslcert, sslkey, sslpassword, sslnegotiation, ssl_min_protocol_version, ssl_max_protocol_version, krbsrvname, gsslib, passfile
"""

from __future__ import annotations

from urllib.parse import unquote

import msgspec

from proteus_shards.errors import SettingError
from proteus_shards.store.url_parts import Options

PORT = 5432
NAME_BYTES_MAX = 63  # what Postgres keeps of a name

_TLS_FILES = ("sslrootcert", "sslcrl", "sslcert", "sslkey", "sslpassword")
_TLS_VERSIONS = ("", "TLSv1", "TLSv1.1", "TLSv1.2", "TLSv1.3")


class PostgresUrl(msgspec.Struct, frozen=True):
    """Keep the rows in Postgres."""

    hosts: tuple[tuple[str, int], ...]  # a host that begins with a slash is the folder of a socket
    user: str | None = None  # None: the user of the operating system
    password: str | None = None
    database: str | None = None  # None: named like the user
    schema: str = "proteus_shards"
    timeout_seconds: float = 10.0
    connect_timeout_seconds: float = 2.0
    load_timeout_seconds: float = 300.0
    synchronous_commit: str = "on"
    application_name: str = "proteus-shards"
    target_session_attrs: str = "primary"
    passfile: str | None = None
    tls: tuple[tuple[str, str], ...] = (("sslmode", "prefer"), ("sslnegotiation", "postgres"))  # options for the driver as they are
    krbsrvname: str | None = None
    gsslib: str = "gssapi"

    def __repr__(self) -> str:
        """Show where it leads, and no secret."""
        return f"PostgresUrl({self.place})"

    @property
    def place(self) -> str:
        """Where it leads, for a message: hosts, database and schema."""
        hosts = ",".join(f"{host}:{port}" for host, port in self.hosts)
        return f"{hosts}/{self.database or ''} schema {self.schema}"


def read_postgres(place: str, options: Options) -> PostgresUrl:
    """Return what the URL means. Raises `SettingError`."""
    authority, database = _split(place)
    login, at, hosts = authority.rpartition("@")
    user, colon, password = login.partition(":")
    return PostgresUrl(
        hosts=_hosts(hosts, options),
        user=_one_of("user", _decoded(user) if at and user else None, options.text("user")),
        password=_one_of("password", _decoded(password) if colon else None, options.text("password")),
        database=_one_of("dbname", _decoded(database) or None, options.text("dbname")),
        schema=_schema(options.text("schema", "proteus_shards") or ""),
        timeout_seconds=options.seconds("timeout", 10.0, 3600),
        connect_timeout_seconds=options.seconds("connect_timeout", 2.0, 3600),
        load_timeout_seconds=options.seconds("load_timeout", 300.0, 86_400),
        synchronous_commit=options.choice("synchronous_commit", ("on", "remote_apply", "remote_write", "local", "off"), "on"),
        application_name=_plain("application_name", options.text("application_name", "proteus-shards") or ""),
        target_session_attrs=options.choice("target_session_attrs", ("read-write", "primary"), "primary"),
        passfile=options.text("passfile"),
        tls=_tls(options),
        krbsrvname=options.text("krbsrvname"),
        gsslib=options.choice("gsslib", ("gssapi", "sspi"), "gssapi"),
    )


def _split(place: str) -> tuple[str, str]:
    if not place.startswith("//"):
        raise SettingError("store: write postgres://USER:PASSWORD@HOST:PORT/DATABASE; what is special in a URL as %-escapes")
    authority, _, database = place[2:].partition("/")
    if "/" in database:
        raise SettingError("store: a / in a name inside a postgres URL must be written %2F")
    return authority, database


def _decoded(part: str) -> str:
    try:
        text = unquote(part, errors="strict")
    except UnicodeDecodeError as error:
        raise SettingError("store: a part of the URL is not UTF-8 once its %-escapes are decoded") from error
    if "\0" in text:
        raise SettingError("store: no part of a postgres URL may hold a NUL")
    return text


def _one_of(name: str, in_url: str | None, option: str | None) -> str | None:
    if in_url is not None and option is not None:
        raise SettingError(f"store: the URL gives {name} twice, before the question mark and as an option")
    if option is not None and "\0" in option:
        raise SettingError("store: no part of a postgres URL may hold a NUL")
    return in_url if option is None else option


def _hosts(listed: str, options: Options) -> tuple[tuple[str, int], ...]:
    hosts, ports = options.text("host"), options.text("port")
    if listed and hosts is not None:
        raise SettingError("store: the URL gives host twice, before the question mark and as an option")
    names: list[tuple[str, str]] = [_host(part) for part in (hosts or listed).split(",")]
    if ports is not None:
        if any(port for _, port in names):
            raise SettingError("store: the URL gives port twice, behind the host and as an option")
        given = ports.split(",")
        if len(given) not in {1, len(names)}:
            raise SettingError("store: the option port must name one port, or one for each host")
        names = [(name, given[number % len(given)]) for number, (name, _) in enumerate(names)]
    return tuple((name, _port(port)) for name, port in names)


def _host(part: str) -> tuple[str, str]:
    """Cut `host:port`, `[v6 address]:port` or the folder of a socket."""
    if part.startswith("["):
        name, bracket, rest = part[1:].partition("]")
        colon, port = rest[:1], rest[1:]
        if not bracket or (rest and colon != ":"):
            raise SettingError("store: an address in brackets must be followed by nothing or by :PORT")
    else:
        name, colon, port = part.partition(":")
    name = _decoded(name)
    if not name:
        raise SettingError("store: the URL names no host; write postgres://…@HOST/…, or ?host=/FOLDER for a Unix socket")
    if colon and not port:
        raise SettingError("store: a colon behind a host must be followed by a port")
    return name, port


def _port(text: str) -> int:
    if not text:
        return PORT
    if not (text.isascii() and text.isdigit() and len(text) <= 5 and 1 <= int(text) <= 65535):
        raise SettingError("store: a port must be a number from 1 to 65535; in a password, / and @ must be written %2F and %40")
    return int(text)


def _plain(name: str, text: str) -> str:
    if not text.isprintable():
        raise SettingError(f"store: the option {name} must not hold control characters")
    return text


def _schema(text: str) -> str:
    if len(_plain("schema", text).encode()) > NAME_BYTES_MAX:
        raise SettingError(f"store: the option schema must have at most {NAME_BYTES_MAX} bytes")
    if text.startswith("pg_"):
        raise SettingError("store: the option schema must not begin with pg_, which Postgres keeps for itself")
    return text


def _tls(options: Options) -> tuple[tuple[str, str], ...]:
    given = {
        "sslmode": options.choice("sslmode", ("disable", "allow", "prefer", "require", "verify-ca", "verify-full"), "prefer"),
        "sslnegotiation": options.choice("sslnegotiation", ("postgres", "direct"), "postgres"),
        "ssl_min_protocol_version": options.choice("ssl_min_protocol_version", _TLS_VERSIONS, ""),
        "ssl_max_protocol_version": options.choice("ssl_max_protocol_version", _TLS_VERSIONS, ""),
    }
    given |= {name: options.text(name) or "" for name in _TLS_FILES}
    if given["sslnegotiation"] == "direct" and given["sslmode"] in {"disable", "allow", "prefer"}:
        raise SettingError("store: sslnegotiation=direct needs sslmode=require, verify-ca or verify-full")
    return tuple((name, value) for name, value in given.items() if value)
