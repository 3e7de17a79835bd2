"""What must be in a store after a loss of power, from what clients were told until then.

Two judgements, which know nothing of each other. The **clients'**: a job whose enqueue was answered is there with its own payload, its counted
attempts and its newest state, one whose completion was answered is not, none is there that nobody sent, each queue is in the order of
sending, and has the settings that were answered last. The **commits'**: rows and records are, to the byte, those after the first so many batches, since a commit is all or nothing
and none may overtake another.

What a loss of the last commits explains (`LOSSES`) is told apart from what nothing does.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import TypeVar

import msgspec

from proteus_shards.core.commands import Command, Complete, Delivered, Done, Enqueue, Heartbeat, Outcome, Undeliver
from proteus_shards.core.commands_control import SetQueue
from proteus_shards.core.model import Kind, RecordKey, Row, RowKey
from proteus_shards.core.placement import slot_of
from tests.faults.power_cut_work import NO_SETTINGS, Answered, Committing, Prepared, Sent, Told
from tests.store.rows import key_of, marked, recorded

LOSSES = ("lost", "back", "attempt", "state", "settings")


_Value = TypeVar("_Value")


class Fault(msgspec.Struct, frozen=True):
    """One thing that is not as it should be: a word of `LOSSES`, or "invented", "changed", "order", "torn"."""

    kind: str
    detail: str


class Kept(msgspec.Struct):
    """What a store has."""

    rows: list[Row] = msgspec.field(default_factory=list)  # in the order of their loading
    records: dict[RecordKey, bytes] = msgspec.field(default_factory=dict)


class Fate(msgspec.Struct):
    """All that clients know of one job."""

    number: int
    payload: bytes
    accepted: bool = False
    ending: bool = False  # a completion was sent
    ended: bool = False
    attempt: int = 0
    given_back: bool = False
    states: list[bytes | None] = msgspec.field(default_factory=lambda: [None])  # the newest that was answered, and those since


class Truth:
    """Takes what is told, in order, and judges what was recovered by it at any moment.

    `start`: what is there for good. `knows_commits`: whether batches are told.
    """

    def __init__(self, start: Kept, *, knows_commits: bool = True) -> None:
        self._knows_commits = knows_commits
        self.prepared = False
        self.first = 1 + max((int(row.id) for row in start.rows), default=-1)
        self._fates = {
            (row.queue, row.id): Fate(int(row.id), row.payload, accepted=True, attempt=row.attempt, states=[row.state])
            for row in start.rows
        }
        self._settings = {
            key.name: [value] for key, value in start.records.items()
        }  # of queues: the newest that were answered, and those since
        self._asked: dict[int, Command] = {}
        self._rows = {key_of(row): row for row in start.rows}
        self._records = dict(start.records)
        self._commits = 0
        self._states = {_digest(start.rows, start.records): 0}  # of rows and records after each commit: which it was

    def take(self, told: Told) -> None:
        """Take the next message."""
        if isinstance(told, Sent):
            for number, command in told.commands:
                self._asked[number] = command
                self._sent(command)
        elif isinstance(told, Answered):
            for number, outcome in told.answers:
                self._answered(self._asked.pop(number), outcome)
        elif isinstance(told, Committing):
            _commit(self._rows, told)
            recorded(self._records, told.batch.records)
            self._commits += 1
            self._states[_digest(self._rows.values(), self._records)] = self._commits
        else:
            assert isinstance(told, Prepared)
            self.prepared = True

    def judge(self, kept: Kept) -> list[Fault]:
        """Return what is wrong with what was recovered."""
        rows = kept.rows
        found = {(row.queue, row.id): row for row in rows}
        faults = [Fault("invented", f"{row.queue}/{row.id}") for names, row in found.items() if names not in self._fates]
        for (queue, name), fate in self._fates.items():
            faults += [Fault(kind, f"{queue}/{name}") for kind in _wrongs(fate, found.get((queue, name)))]
        faults += [Fault("invented", f"record {key.kind} {key.name}") for key in kept.records if key not in self._known_records()]
        for queue, settings in self._settings.items():
            if kept.records.get(_settings_of(queue), NO_SETTINGS) not in settings:
                faults.append(Fault("settings", queue))
        for queue in {row.queue for row in rows}:
            numbers = [int(row.id) for row in rows if row.queue == queue]
            if numbers != sorted(numbers):
                faults.append(Fault("order", f"{queue}: {numbers}"))
        if len(found) != len(rows) or (self._knows_commits and _digest(rows, kept.records) not in self._states):
            faults.append(
                Fault("torn", f"{len(rows)} rows and {len(kept.records)} records are not those after any of {self._commits} commits")
            )
        return faults

    def lost_commits(self, kept: Kept) -> int:
        """Return how many of the commits that began are not in what was recovered."""
        return self._commits - self._states[_digest(kept.rows, kept.records)]

    def _known_records(self) -> set[RecordKey]:
        return {_settings_of(queue) for queue in self._settings}

    def _sent(self, command: Command) -> None:
        if isinstance(command, Enqueue):
            self._fates[command.queue, command.id] = Fate(int(command.id), command.payload, states=[command.state])
        elif isinstance(command, Complete):
            self._fates[command.queue, command.id].ending = True
        elif isinstance(command, Undeliver):
            self._fates[command.queue, command.id].given_back = True
        elif isinstance(command, Heartbeat) and command.state is not None:
            self._fates[command.queue, command.id].states.append(command.state or None)
        elif isinstance(command, SetQueue):
            self._settings.setdefault(command.queue, [NO_SETTINGS]).append(command.patch)

    def _answered(self, command: Command, outcome: Outcome) -> None:
        if isinstance(outcome, Delivered):
            for job in outcome.jobs:
                fate = self._fates[job.queue, job.id]
                fate.attempt = max(fate.attempt, job.attempt)
        if isinstance(command, Enqueue):
            self._fates[command.queue, command.id].accepted = isinstance(outcome, Done)
        elif isinstance(command, Complete) and isinstance(outcome, Done):
            self._fates[command.queue, command.id].ended = True
        elif isinstance(command, Heartbeat) and command.state is not None:
            _settle(self._fates[command.queue, command.id].states, command.state or None, outcome)
        elif isinstance(command, SetQueue):
            _settle(self._settings[command.queue], command.patch, outcome)


def losses(faults: Iterable[Fault]) -> Counter[str]:
    """Count what a loss of the last commits explains."""
    return Counter(fault.kind for fault in faults if fault.kind in LOSSES)


def _settle(values: list[_Value], value: _Value, outcome: Outcome) -> None:
    """Take note of what became of a change: with `Done` nothing before it is there any more."""
    index = values.index(value, 1)
    if isinstance(outcome, Done):
        del values[:index]
    else:
        del values[index]


def _settings_of(queue: str) -> RecordKey:
    return RecordKey(slot_of(queue), int(Kind.QUEUE), queue)


def _wrongs(fate: Fate, row: Row | None) -> list[str]:
    if row is None:
        return ["lost"] if fate.accepted and not fate.ending else []
    wrongs = []
    if fate.ended:
        wrongs.append("back")
    if row.payload != fate.payload:
        wrongs.append("changed")
    if row.attempt < fate.attempt and not fate.given_back:
        wrongs.append("attempt")
    if row.state not in fate.states:
        wrongs.append("state")
    return wrongs


def _commit(rows: dict[RowKey, Row], told: Committing) -> None:
    for key in told.batch.deletes:
        del rows[key]
    for mark in told.batch.marks:
        key = RowKey(mark.slot, mark.seq, mark.queue, mark.id)
        rows[key] = marked(rows[key], mark)
    for row in told.batch.inserts:
        rows[key_of(row)] = row


def _digest(rows: Iterable[Row], records: dict[RecordKey, bytes]) -> int:
    return hash((frozenset(rows), frozenset(records.items())))
