"""The URL of a DynamoDB store: `dynamodb://TABLE?region=…&endpoint=…&profile=…`.

Whatever is absent comes from where every AWS tool finds it: the environment, the files below ~/.aws, the role of the machine. Credentials are
never part of the URL, since a URL ends up in process lists; an endpoint that carries a user or a password is refused.
"""

from __future__ import annotations

import re
from urllib.parse import unquote, urlsplit

import msgspec

from proteus_shards.errors import SettingError
from proteus_shards.store.url_parts import Options

TIMEOUT_SECONDS_MAX = 300.0
CREATE_SECONDS_MAX = 3600.0
UNITS_MAX = 1_000_000

_TABLE = re.compile(r"[A-Za-z0-9_.-]{3,255}")
_REGION = re.compile(r"[a-z0-9-]{1,63}")


class DynamodbUrl(msgspec.Struct, frozen=True):
    """Keep the rows in a table of DynamoDB."""

    table: str
    region: str | None = None
    endpoint: str | None = None  # of another service than that of the region: DynamoDB Local, a VPC endpoint
    profile: str | None = None
    create: bool = True  # make the table where there is none
    read_units: int | None = None  # of a table made with billing=provisioned; None: billing=on_demand
    write_units: int | None = None
    timeout_seconds: float = 10.0  # of a call, its retries included
    connect_seconds: float = 2.0
    create_seconds: float = 120.0  # for a new table to become active


def read_dynamodb(place: str, options: Options) -> DynamodbUrl:
    """Return what the URL means. Raises `SettingError`."""
    billing = options.choice("billing", ("on_demand", "provisioned"), "on_demand")
    read_units = options.count("read_units", 0, 1, UNITS_MAX)
    write_units = options.count("write_units", 0, 1, UNITS_MAX)
    if billing == "provisioned" and not (read_units and write_units):
        raise SettingError("store: billing=provisioned needs the options read_units and write_units")
    if billing == "on_demand" and (read_units or write_units):
        raise SettingError("store: the options read_units and write_units go with billing=provisioned")
    return DynamodbUrl(
        table=_table(place),
        region=_region(options.text("region")),
        endpoint=_endpoint(options.text("endpoint")),
        profile=options.text("profile"),
        create=options.switch("create", default=True),
        read_units=read_units or None,
        write_units=write_units or None,
        timeout_seconds=options.seconds("timeout", 10.0, TIMEOUT_SECONDS_MAX),
        connect_seconds=options.seconds("connect_timeout", 2.0, TIMEOUT_SECONDS_MAX),
        create_seconds=options.seconds("create_timeout", 120.0, CREATE_SECONDS_MAX),
    )


def _table(place: str) -> str:
    if not place.startswith("//"):
        raise SettingError("store: write dynamodb://TABLE")
    table = unquote(place[2:])
    if not _TABLE.fullmatch(table):
        raise SettingError("store: the table of dynamodb://TABLE must be 3 to 255 letters, digits, and any of _ . -")
    return table


def _region(region: str | None) -> str | None:
    if region is not None and not _REGION.fullmatch(region):
        raise SettingError("store: the option region must be the name of a region, like eu-central-1")
    return region


def _endpoint(endpoint: str | None) -> str | None:
    if endpoint is None:
        return None
    told = SettingError("store: the option endpoint must be http://HOST:PORT or https://HOST, without a user, a password, or a path")
    try:
        parts = urlsplit(endpoint)
        port = parts.port
    except ValueError:
        raise told from None  # its message holds the value
    bare = f"{parts.scheme}://{parts.netloc}" == endpoint.rstrip("/") and "@" not in parts.netloc and parts.hostname
    if parts.scheme not in {"http", "https"} or not bare or port == 0:
        raise told
    return endpoint.rstrip("/")
