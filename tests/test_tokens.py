"""The file of tokens: what its lines grant, which files are refused, and how a token is made."""

from __future__ import annotations

import hashlib
import hmac
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proteus_shards.errors import SettingError
from proteus_shards.tokens import FILE_BYTES_MAX, LINES_MAX, TOKEN_PREFIX, Grant, Scope, new_token, read_grants

DIGEST = hashlib.sha256(b"secret").hexdigest()


def line(**changes: Any) -> str:
    """Return a line of the file; None leaves a field out."""
    fields = {"name": "a", "sha256": DIGEST, "scopes": ["produce"], "queues": ["q"], **changes}
    return json.dumps({name: value for name, value in fields.items() if value is not None})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file of tokens that a test may fill."""
    return tmp_path / "tokens"


def test_a_token_that_was_made_grants_what_its_line_says(path: Path) -> None:
    """And no other text does, not even the hash that stands there."""
    token, text = new_token("ci", ["produce", "read"], ["mail-*"], datetime(2030, 1, 31, tzinfo=UTC))
    path.write_text(f"# mine\n\n{text}\n")

    grants = read_grants(str(path))
    found = grants.of_token(token.encode())

    assert found is not None
    assert (found.name, found.scopes, found.expires) == ("ci", frozenset({Scope.PRODUCE, Scope.READ}), 1896048000.0)
    assert (found.allows("mail-1"), found.allows("mail"), found.every_queue) == (True, False, False)
    assert [grants.of_token(other) for other in (b"", token[:-1].encode(), json.loads(text)["sha256"].encode())] == [None] * 3


def test_a_token_is_256_random_bits_and_its_line_holds_only_a_hash() -> None:
    """It cannot be had from the file."""
    made = [new_token("a", ["admin"], ["*"]) for _ in range(100)]

    assert len({token for token, _ in made}) == 100
    assert all(token.startswith(TOKEN_PREFIX) and len(token) == len(TOKEN_PREFIX) + 43 for token, _ in made)
    assert all(token not in text and token[len(TOKEN_PREFIX) :] not in text for token, text in made)


def test_two_tokens_of_one_name_live_side_by_side(path: Path) -> None:
    """So one takes the place of the other without a gap."""
    made = [new_token("ci", ["produce"], ["*"]) for _ in range(2)]
    path.write_text("\n".join(text for _, text in made))

    grants = read_grants(str(path))

    assert [found.name for token, _ in made if (found := grants.of_token(token.encode())) is not None] == ["ci", "ci"]


def test_a_token_is_compared_with_every_line_in_constant_time(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which line was right, or how much of it, does not show in the time."""
    made = [new_token("a", ["produce"], ["*"]) for _ in range(5)]
    path.write_text("\n".join(text for _, text in made))
    grants = read_grants(str(path))
    compared: list[tuple[bytes, bytes]] = []
    real = hmac.compare_digest

    def compare(known: bytes, shown: bytes) -> bool:
        compared.append((known, shown))
        return real(known, shown)

    monkeypatch.setattr(hmac, "compare_digest", compare)
    for token in (made[0][0], made[4][0], "wrong"):
        grants.of_token(token.encode())

    assert len(compared) == 15


def test_the_admin_may_do_everything() -> None:
    """Its scope includes the others."""
    assert Grant("a", [Scope.ADMIN], ["*"]).scopes == frozenset(Scope)


@pytest.mark.parametrize(
    ("pattern", "inside", "outside"),
    [
        ("*", ["", "q", "a\nb"], []),
        ("q", ["q"], ["", "Q", "qq", "q/", "q\n", " q", "%71"]),
        ("mail-*", ["mail-", "mail-a", "mail-a\nb"], ["mail", "xmail-a", "MAIL-a"]),
        ("*-eu-*", ["-eu-", "a-eu-b-eu-c"], ["a-eu"]),
        ("a.b", ["a.b"], ["axb"]),
        ("[ab]?", ["[ab]?"], ["a", "ax", "[ab]"]),
        ("caf\u00e9", ["caf\u00e9"], ["cafe\u0301"]),
    ],
)
def test_a_star_is_any_text_and_everything_else_is_itself(pattern: str, inside: list[str], outside: list[str]) -> None:
    """Case and composition count, as they do for the shards."""
    grant = Grant("a", [Scope.READ], [pattern])

    assert ([grant.allows(name) for name in inside], [grant.allows(name) for name in outside]) == (
        [True] * len(inside),
        [False] * len(outside),
    )


def test_several_patterns_add_up() -> None:
    """Each is a whole: no part of one joins another."""
    grant = Grant("a", [Scope.READ], ["a*", "b"])

    assert [grant.allows(name) for name in ("ax", "b", "bx", "xb", "a|b", "")] == [True, True, False, False, True, False]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{", "line 2: is not a JSON object"),
        ("[]", "line 2: Expected `object`, got `array`"),
        (line(extra=1), "unknown field"),
        (line(sha256="ab"), "`$.sha256`"),
        (line(sha256=DIGEST.upper()), "`$.sha256`"),
        (line(sha256=None), "must have sha256 or certificate, and not both"),
        (line(certificate="c"), "must have sha256 or certificate, and not both"),
        (line(scopes=[]), "`$.scopes`"),
        (line(scopes=["all"]), "scopes: must be among produce, consume, read, admin"),
        (line(scopes=None), "missing required field `scopes`"),
        (line(queues=[]), "`$.queues`"),
        (line(queues="q"), "`$.queues`"),
        (line(expires="2030-01-31"), "`$.expires`"),
        (line(expires="2030-01-31T00:00:00"), "`$.expires`"),
        (line(name=""), "`$.name`"),
        (f"{line()}\n{line(name='b')}", "line 3: this token stands there twice"),
        (line().replace("produce", "\\ud800"), "line 2"),
    ],
)
def test_a_file_that_is_wrong_anywhere_is_refused_as_a_whole(text: str, told: str, path: Path) -> None:
    """The message names the line, and shows no hash."""
    path.write_text(f"# tokens\n{text}\n")

    with pytest.raises(SettingError) as caught:
        read_grants(str(path))

    assert str(caught.value).startswith(f"tokens_file: {path} ")
    assert told in str(caught.value)
    assert DIGEST not in str(caught.value)


def test_a_file_that_is_away_or_too_large_is_refused(path: Path) -> None:
    """A limit stands before it is read line by line."""
    with pytest.raises(SettingError, match=r"tokens_file: .* cannot be read: No such file"):
        read_grants(str(path))
    path.write_bytes(b"\n" * (FILE_BYTES_MAX + 1))
    with pytest.raises(SettingError, match=r"larger than 1048576 bytes"):
        read_grants(str(path))
    path.write_text("\n".join(line(sha256=f"{number:064x}") for number in range(LINES_MAX + 1)))
    with pytest.raises(SettingError, match=r"more than 1000 lines"):
        read_grants(str(path))


@given(st.binary(max_size=200))
def test_any_bytes_are_a_file_of_tokens_or_refused(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    """With the one error that says so."""
    path = tmp_path_factory.getbasetemp() / "any-tokens"
    path.write_bytes(data)
    try:
        read_grants(str(path))
    except SettingError:
        return


@pytest.mark.parametrize(("scopes", "queues"), [(["all"], ["*"]), ([], ["*"]), (["read"], []), (["read"], [""])])
def test_a_token_without_sense_is_not_made(scopes: list[str], queues: list[str]) -> None:
    """The same rules hold for a new line."""
    with pytest.raises(SettingError, match=r"^token: "):
        new_token("a", scopes, queues)
