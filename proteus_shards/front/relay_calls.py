"""The calls that both generations of relay's API have alike: each shows a job in its own way, and tells of trouble in its own words."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache, partial

import msgspec

from proteus_shards.config import Settings
from proteus_shards.core.commands import Complete, Delivered, Done, Next, Outcome, Reason, Refused
from proteus_shards.core.commands_control import GetJob, Jobs, State
from proteus_shards.front.answers import JSON_HEADERS, Answer, Problem
from proteus_shards.front.operations import Ask
from proteus_shards.front.relay_words import Asked, Dialect, JobLike, refused_silently, refused_text, wanted, without_body

_KNOWN_MAX = 1024

_encode = msgspec.json.Encoder().encode


class Calls:
    """The calls about one queue or job. `view` returns a job as the generation shows it."""

    def __init__(self, dialect: Dialect, view: Callable[[JobLike], msgspec.Struct]) -> None:
        self._dialect = dialect
        self._view = view
        self._known = lru_cache(_KNOWN_MAX)(self._understand)

    def next_jobs(self, queue: str, _body: bytes, query: bytes, settings: Settings) -> Asked:
        """`GET …/queues/{queue}/jobs?num_jobs=`: an array of 1 to num_jobs jobs, or 204."""
        return self._known(queue, query, settings.num_jobs_max, settings.wait_seconds_max)

    def get(self, queue: str, job_id: str, _body: bytes, _query: bytes, _settings: Settings) -> Asked:
        """`GET …/queues/{queue}/jobs/{id}`: one job, or 404 without a body."""
        return Ask(GetJob(queue, job_id), self._show_one, partial(self._refuse_look, queue, job_id))

    def head(self, queue: str, job_id: str, _body: bytes, _query: bytes, _settings: Settings) -> Asked:
        """`HEAD …/queues/{queue}/jobs/{id}`: whether there is such a job."""
        return Ask(GetJob(queue, job_id), _show_existence, partial(refused_silently, self._dialect))

    def _understand(self, queue: str, query: bytes, num_jobs_max: int, wait_seconds_max: float) -> Asked:
        found = wanted(query, num_jobs_max, wait_seconds_max)
        if isinstance(found, Problem):
            return without_body(found)
        return Ask(Next(queue, *found), self._show_next, partial(refused_silently, self._dialect))

    def _show_next(self, outcome: Outcome) -> Answer:
        assert type(outcome) is Delivered
        return Answer(200, JSON_HEADERS, _encode([self._view(job) for job in outcome.jobs])) if outcome.jobs else Answer(204)

    def _show_one(self, outcome: Outcome) -> Answer:
        found = _living(outcome)
        return Answer(200, JSON_HEADERS, _encode(self._view(found[0]))) if found else Answer(404)

    def _refuse_look(self, queue: str, job_id: str, refused: Refused) -> Answer:
        return Answer(404) if refused.reason is Reason.NOT_FOUND else refused_text(self._dialect, queue, job_id, refused)


def remove(command: Complete, refuse: Callable[[Refused], Answer]) -> Ask:
    """Return the errand of a DELETE."""
    return Ask(command, _removed, refuse)


def _removed(outcome: Outcome) -> Answer:
    assert type(outcome) is Done
    return Answer(200)


def _show_existence(outcome: Outcome) -> Answer:
    return Answer(200 if _living(outcome) else 404)


def _living(outcome: Outcome) -> Sequence[JobLike]:
    """Return the job that was asked for, unless it is dead: relay knows no dead ones."""
    assert type(outcome) is Jobs
    return [job for job in outcome.jobs if job.state_name != State.DEAD]
