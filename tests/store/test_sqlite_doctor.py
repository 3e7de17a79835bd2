"""What the doctor finds of a SQLite store's folder, and that it leaves all as it is."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from proteus_shards.errors import StoreError
from proteus_shards.store import sqlite_doctor, sqlite_kind
from proteus_shards.store.sqlite import SqliteStore
from proteus_shards.store.sqlite_doctor import examine_folder
from proteus_shards.store.sqlite_holder import holder_of
from proteus_shards.store.sqlite_prepare import prepare
from proteus_shards.store.sqlite_trial import SqliteTrial
from proteus_shards.store.urls import SqliteUrl
from tests.store.rows import in_asyncio, inserting, make_row, opened


@pytest.fixture
def url(tmp_path: Path) -> SqliteUrl:
    """Return a folder that is prepared for two shards."""
    url = SqliteUrl(tmp_path / "data")
    prepare(url, 2)
    return url


def found(url: SqliteUrl, level: str) -> list[str]:
    """Return what the findings of a level say."""
    return [finding.what for finding in examine_folder(url) if finding.level == level]


def read_elsewhere(file: Path) -> str:
    """Return what another process complains of when it reads a file."""
    code = f"import sqlite3; sqlite3.connect({str(file)!r}, timeout=0).execute('SELECT * FROM meta')"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False).stderr


def contents(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Return all files and folders below a folder, with their times."""
    return {str(path): (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else b"") for path in sorted(folder.rglob("*"))}


def test_a_prepared_folder_is_good(url: SqliteUrl, monkeypatch: pytest.MonkeyPatch) -> None:
    """It says for how many shards, how large it is, and that nobody has it; no file is touched."""
    monkeypatch.setattr(sqlite_doctor, "SYNC_MS_SLOW", float("inf"))
    before = contents(url.folder)

    good = found(url, "good")

    assert found(url, "fault") == []
    assert "prepared for 2 shards (generation 1)" in good
    assert "no server has the files open" in good
    assert any(what.startswith("the files hold ") for what in good)
    assert any(what.startswith("a sync takes ") for what in good)
    assert contents(url.folder) == before


@pytest.mark.parametrize(
    ("version", "level"), [((3, 36, 0), "fault"), ((3, 37, 0), "note"), ((3, 51, 2), "note"), ((3, 51, 3), "good"), ((4, 0, 0), "good")]
)
def test_the_version_of_sqlite_is_judged(
    url: SqliteUrl, monkeypatch: pytest.MonkeyPatch, version: tuple[int, int, int], level: str
) -> None:
    """Too old, known to be faulty with several connections, or neither."""
    monkeypatch.setattr(sqlite3, "sqlite_version_info", version)
    monkeypatch.setattr(sqlite3, "sqlite_version", ".".join(map(str, version)))

    assert next(examine_folder(url)).level == level


def test_what_a_loss_of_power_may_take_is_a_warning(url: SqliteUrl) -> None:
    """And a file that is not checked a note."""
    weak = SqliteUrl(url.folder, synchronous="normal", check="none")

    assert any(what.startswith("synchronous=normal: ") for what in found(weak, "warning"))
    assert any(what.startswith("check=none: ") for what in found(weak, "note"))


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ("nfs4", "over a network"),
        ("cifs", "over a network"),
        ("fuse.sshfs", "over a network"),
        ("overlay", "container"),
        ("tmpfs", "memory"),
    ],
)
def test_a_file_system_that_may_break_a_promise_is_a_warning(
    url: SqliteUrl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, told: str
) -> None:
    """The nearest mount counts, and a name with a space in it is understood."""
    odd = tmp_path / "a b"
    escaped = str(odd).replace(" ", r"\040")
    lines = [
        "1 0 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw",
        f"2 1 8:2 / {escaped} rw - {kind} x rw",
    ]
    mounts = tmp_path / "mountinfo"
    mounts.write_text("\n".join(lines) + "\n")
    monkeypatch.setattr(sqlite_doctor, "_MOUNTS", mounts)

    assert "the file system is ext4" in found(url, "good")
    assert [told in what for what in found(SqliteUrl(odd / "data"), "warning") if "file system" in what] == []  # it is not there yet
    odd.mkdir()
    assert [told in what for what in found(SqliteUrl(odd / "data"), "warning") if "file system" in what] == [True]


def test_a_system_that_does_not_tell_is_not_judged(url: SqliteUrl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on macOS."""
    monkeypatch.setattr(sqlite_doctor, "_MOUNTS", tmp_path / "none")

    assert [finding for finding in examine_folder(url) if "file system" in finding.what] == []


@pytest.mark.parametrize(("limit", "level"), [("FREE_BYTES_NONE", "fault"), ("FREE_BYTES_SCARCE", "warning")])
def test_a_disk_that_is_nearly_full_is_told(url: SqliteUrl, monkeypatch: pytest.MonkeyPatch, limit: str, level: str) -> None:
    """Before it is met."""
    monkeypatch.setattr(sqlite_doctor, limit, 2**60)

    assert any(" are free" in what for what in found(url, level))


def test_a_slow_sync_is_a_warning(url: SqliteUrl, monkeypatch: pytest.MonkeyPatch) -> None:
    """It bounds every commit."""
    monkeypatch.setattr(sqlite_doctor, "SYNC_MS_SLOW", -1.0)

    assert any(what.startswith("a sync takes ") for what in found(url, "warning"))


def test_a_folder_that_others_may_enter_is_a_warning_and_what_a_trial_left_a_note(url: SqliteUrl) -> None:
    """Both are harmless to the server."""
    url.folder.chmod(0o755)
    (url.folder / ".trial-old").mkdir()

    assert f"{url.folder} may be entered by other users" in found(url, "warning")
    assert any(".trial-old" in what for what in found(url, "note"))


def test_a_folder_that_this_user_may_not_write_is_a_fault(url: SqliteUrl, monkeypatch: pytest.MonkeyPatch) -> None:
    """It names who may."""
    monkeypatch.setattr(os, "access", lambda *_: False)

    assert f"{url.folder} may not be read and written by this user" in found(url, "fault")


def test_missing_and_foreign_things_are_faults(url: SqliteUrl) -> None:
    """A file, the manifest, or a version that knows it."""
    first, second = (url.folder / f"generation-000001/shard-{shard}.sqlite3" for shard in (0, 1))
    second.unlink()
    assert "1 files are missing: shard-1.sqlite3" in found(url, "fault")
    first.unlink()
    manifest = url.folder / "manifest.json"
    manifest.write_text('{"layout": 99}')
    assert any("written by a newer version" in what for what in found(url, "fault"))
    manifest.unlink()
    assert f"{url.folder} holds generation-000001 but no manifest.json" in found(url, "fault")


def test_what_is_left_of_a_move_is_told(url: SqliteUrl) -> None:
    """It takes up space until the next start."""
    (url.folder / "generation-000009").mkdir()

    assert any("generation-000009 is left of a move" in what for what in found(url, "note"))


@in_asyncio
async def test_a_holder_is_named_and_keeps_its_lock(url: SqliteUrl) -> None:
    """Even in its own process."""
    file = url.folder / "generation-000001/shard-1.sqlite3"
    async with opened(SqliteStore(url, 1, 2)) as store:
        assert holder_of([url.folder / "generation-000001/shard-0.sqlite3", file]) == os.getpid()
        assert "database is locked" in read_elsewhere(file)
        await store.commit(inserting())
        assert "database is locked" in read_elsewhere(file)
    assert holder_of([file]) is None


def test_a_holder_that_cannot_be_asked_for_is_a_note(url: SqliteUrl, monkeypatch: pytest.MonkeyPatch) -> None:
    """No reason to say that a store is at fault."""

    def fail(_: object) -> int:
        raise subprocess.TimeoutExpired("x", 1)

    monkeypatch.setattr(sqlite_doctor, "holder_of", fail)

    assert "whether a server has the files open cannot be told (TimeoutExpired)" in found(url, "note")


# --- the kind ----------------------------------------------------------------------------------------------------


@in_asyncio
async def test_prepared_shards_says_none_of_a_new_place_and_makes_nothing(tmp_path: Path) -> None:
    """Nor of one whose first preparation was interrupted; a lost manifest is an error."""
    url = SqliteUrl(tmp_path / "data")
    assert await sqlite_kind.prepared_shards(url) is None
    assert contents(tmp_path) == {}

    url.folder.mkdir()
    (url.folder / "manifest.json").write_text('{"layout": 1, "shards": 3, "generation": 0}')
    assert await sqlite_kind.prepared_shards(url) is None

    (url.folder / "manifest.json").unlink()
    (url.folder / "generation-000001").mkdir()
    with pytest.raises(StoreError, match=r"but no manifest\.json"):
        await sqlite_kind.prepared_shards(url)


@in_asyncio
async def test_a_trial_lies_beside_the_files_of_the_store_and_goes_when_it_is_closed(url: SqliteUrl) -> None:
    """On the same file system; where the folder does not exist yet, in the nearest above it."""
    for place, asked in ((url.folder, url), (url.folder.parent, SqliteUrl(url.folder.parent / "new/data"))):
        before = sorted(place.iterdir())
        trial = SqliteTrial(asked)
        async with opened(trial):
            await trial.commit(inserting(make_row(1)))
            (made,) = set(place.iterdir()) - set(before)
            assert made.stat().st_mode & 0o077 == 0
            assert len(list(made.rglob("*.sqlite3"))) == 1
        assert sorted(place.iterdir()) == before


@in_asyncio
async def test_a_trial_that_cannot_be_made_raises_a_store_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And closing it does no harm."""
    trial = SqliteTrial(SqliteUrl(tmp_path / "data"))
    monkeypatch.setattr("tempfile.mkdtemp", lambda **_: (_ for _ in ()).throw(PermissionError(13, "Permission denied")))
    with pytest.raises(StoreError, match="Permission denied"):
        await trial.open()
    await trial.close()
