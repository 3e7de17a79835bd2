"""Who may do what: the file of tokens, and how a token is made.

The file has one JSON object a line; blank lines, and those that begin with `#`, are left out:

    {"name": "mailer", "sha256": "…", "scopes": ["produce"], "queues": ["mail", "mail-*"], "expires": "2030-01-31T00:00:00Z"}
    {"name": "runners", "certificate": "runner.example.org", "scopes": ["consume"], "queues": ["*"]}

A line grants scopes on queues to whoever shows a token, or a client certificate in whose subject or alternative names that name stands. `queues` are patterns
over the decoded name, as the shards know it: `*` is any text, everything else is itself. Left out, they are all queues; `expires` left out is never.

Decisions:

- **A file that is wrong anywhere is refused as a whole.** A line that is misread could grant what nobody meant, one that is passed over would lock out.
- **Only SHA-256 hashes of tokens are kept.** A token is 256 random bits, so there is nothing to guess and a slow hash would protect nothing. Hashes are compared with all
  of the file, each in constant time: neither which token nor how much of it was right can be seen from the time.
- **Several lines may have one name.** A token is replaced by adding the new one, moving its users, and taking the old line out.
- Names are told to logs and never decide anything.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Collection, Iterable, Sequence
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import msgspec

from proteus_shards.errors import SettingError

TOKEN_BYTES = 32
TOKEN_PREFIX = "pst_"  # by which scanners of repositories may know one  # noqa: S105  # not a token
EVERY_QUEUE = "*"
FILE_BYTES_MAX = 1024 * 1024
SEEN_MAX = 1024  # queues that a grant remembers its answer for
LINES_MAX = 1000  # each costs a comparison for a token that was not seen before


class Scope(StrEnum):
    """What a token is for. `ADMIN` includes the others."""

    PRODUCE = "produce"
    CONSUME = "consume"
    READ = "read"
    ADMIN = "admin"


_Text = Annotated[str, msgspec.Meta(min_length=1, max_length=256)]


class _Line(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    name: _Text
    sha256: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")] | None = None
    certificate: _Text | None = None
    scopes: Annotated[list[Scope], msgspec.Meta(min_length=1)]
    queues: Annotated[tuple[_Text, ...], msgspec.Meta(min_length=1)] = (EVERY_QUEUE,)
    expires: Annotated[datetime, msgspec.Meta(tz=True)] | None = None


class Grant:
    """What one line of the file allows."""

    def __init__(self, name: str, scopes: Collection[Scope], queues: Sequence[str], expires: float | None = None) -> None:
        """`expires` is in seconds since 1970."""
        self.name = name
        self.scopes = frozenset(Scope) if Scope.ADMIN in scopes else frozenset(scopes)
        self.every_queue = EVERY_QUEUE in queues
        self.expires = expires
        self._seen: dict[str, bool] = {}
        self._pattern = re.compile("|".join(".*".join(map(re.escape, queue.split("*"))) for queue in queues), re.DOTALL)

    def allows(self, queue: str) -> bool:
        """Say whether a queue, by its decoded name, is among those of the grant."""
        if self.every_queue:
            return True
        seen = self._seen.get(queue)
        if seen is None:
            if len(self._seen) >= SEEN_MAX:
                self._seen.clear()
            seen = self._seen[queue] = self._pattern.fullmatch(queue) is not None
        return seen


class Grants:
    """All lines of one file."""

    def __init__(self, by_digest: Sequence[tuple[bytes, Grant]], by_name: Sequence[tuple[str, Grant]]) -> None:
        """`by_digest` are tokens by their SHA-256, `by_name` certificates by a name in them."""
        self._by_digest = tuple(by_digest)
        self._by_name = tuple(by_name)

    def __len__(self) -> int:
        return len(self._by_digest) + len(self._by_name)

    def of_token(self, token: bytes) -> Grant | None:
        """Return what a token grants, be it expired or not."""
        digest = hashlib.sha256(token).digest()
        found: Grant | None = None
        for known, grant in self._by_digest:
            if hmac.compare_digest(known, digest):
                found = grant
        return found

    def of_certificate(self, names: Collection[str]) -> Grant | None:
        """Return what the first line grants that a certificate of these names meets, be it expired or not."""
        return next((grant for name, grant in self._by_name if name in names), None)


def read_grants(path: str) -> Grants:
    """Read a file of tokens. Raises `SettingError`, which names the line and never shows what stands in it."""
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise SettingError(f"tokens_file: {path} cannot be read: {error.strerror}") from error
    if len(content) > FILE_BYTES_MAX:
        raise SettingError(f"tokens_file: {path} is larger than {FILE_BYTES_MAX} bytes")
    by_digest: list[tuple[bytes, Grant]] = []
    by_name: list[tuple[str, Grant]] = []
    for number, text in enumerate(content.splitlines(), 1):
        if not text.strip() or text.lstrip().startswith(b"#"):
            continue
        try:
            line = msgspec.json.decode(text, type=_Line)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise SettingError(f"tokens_file: {path} line {number}: {_reason(error)}") from error
        grant = Grant(line.name, line.scopes, line.queues, line.expires.timestamp() if line.expires is not None else None)
        if (line.sha256 is None) == (line.certificate is None):
            raise SettingError(f"tokens_file: {path} line {number}: must have sha256 or certificate, and not both")
        if line.sha256 is not None:
            digest = bytes.fromhex(line.sha256)
            if any(digest == known for known, _ in by_digest):
                raise SettingError(f"tokens_file: {path} line {number}: this token stands there twice")
            by_digest.append((digest, grant))
        else:
            assert line.certificate is not None
            by_name.append((line.certificate, grant))
    if len(by_digest) + len(by_name) > LINES_MAX:
        raise SettingError(f"tokens_file: {path} has more than {LINES_MAX} lines")
    return Grants(by_digest, by_name)


def new_token(name: str, scopes: Iterable[str], queues: Sequence[str], expires: datetime | None = None) -> tuple[str, str]:
    """Make a token. Returns it, and the line that grants it these rights; it cannot be had from that again. Raises `SettingError`."""
    token = TOKEN_PREFIX + secrets.token_urlsafe(TOKEN_BYTES)
    digest = hashlib.sha256(token.encode()).hexdigest()
    fields = {"name": name, "sha256": digest, "scopes": list(scopes), "queues": list(queues)}
    if expires is not None:
        fields["expires"] = expires.astimezone(UTC).isoformat().replace("+00:00", "Z")
    try:
        line = msgspec.convert(fields, _Line)
    except msgspec.ValidationError as error:
        raise SettingError(f"token: {_reason(error)}") from error
    return token, msgspec.json.encode(line).decode()


def _reason(error: Exception) -> str:
    """Say what is wrong with a line, without its values."""
    text = str(error)
    if "enum value" in text:
        return f"scopes: must be among {', '.join(Scope)}"
    return text if isinstance(error, msgspec.ValidationError) else "is not a JSON object"
