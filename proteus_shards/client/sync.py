"""`Client`: the API for threads. Each method is a call of `calls` carried out; a client may be used by many threads at once."""

from __future__ import annotations

import functools
import random
import ssl
import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Concatenate, ParamSpec, Self, TypeVar

import httpx2

from proteus_shards.client import calls
from proteus_shards.client.calls import Call
from proteus_shards.client.errors import ClientError
from proteus_shards.client.retries import Retries
from proteus_shards.client.transport import ANSWER_SECONDS_MAX, fault_of, note_earlier, open_of, options_of, read
from proteus_shards.client.words import Page

P = ParamSpec("P")
T = TypeVar("T")


def _method(make: Callable[P, Call[T]]) -> Callable[Concatenate[Client, P], T]:
    """Make a method of a call."""

    @functools.wraps(make)
    def method(self: Client, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self.run(make(*args, **kwargs))

    return method


def _each(make: Callable[P, Call[Page[T]]]) -> Callable[Concatenate[Client, P], Iterator[T]]:
    """Make a method that goes through all pages of a call."""

    @functools.wraps(make)
    def method(self: Client, /, *args: P.args, **kwargs: P.kwargs) -> Iterator[T]:
        while True:
            page = self.run(make(*args, **kwargs))
            yield from page.items
            if page.next is None:
                return
            kwargs["after"] = page.next

    return method


class Client:
    """A client of one server, for threads. Times are seconds.

    `url` and `token` come from PROTEUS_URL and PROTEUS_TOKEN where they are left out. For HTTPS `ca` is a file with the authorities to
    trust, `cert` a client certificate (a file, or one and its key), `verify` may be an SSL context of your own.
    Raises `SettingError`; calls raise `ClientError` (see `errors`).
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        token: str | None = None,
        verify: ssl.SSLContext | bool = True,
        ca: str | None = None,
        cert: tuple[str, str] | str | None = None,
        answer_seconds_max: float = ANSWER_SECONDS_MAX,
        retries: Retries | None = None,
    ) -> None:
        self._options = options_of(url, token, verify, ca, cert, answer_seconds_max, retries)
        self._http = httpx2.Client(**self._options.kwargs)

    @property
    def url(self) -> str:
        """Where the server is."""
        return self._options.url

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def run(self, call: Call[T]) -> T:
        """Carry out a call, again where that is safe, and return what it returns."""
        began = time.monotonic()
        tries = 0
        before: ClientError | None = None
        while True:
            try:
                return self._try(call)
            except ClientError as error:
                tries += 1
                note_earlier(error, before)
                before = open_of(error, before)
                pause = self._options.retries.pause(
                    error, tries, time.monotonic() - began, repeatable=call.repeatable, random=random.random
                )
                if pause is None or isinstance(call.body, Iterator):
                    raise
            time.sleep(pause)

    def _try(self, call: Call[T]) -> T:
        try:
            response = self._http.request(**self._options.request(call), content=call.body)
        except httpx2.HTTPError as error:
            raise fault_of(error) from error
        return read(call, response)

    enqueue = _method(calls.enqueue)
    enqueue_many = _method(calls.enqueue_many)
    enqueue_lines = _method(calls.enqueue_lines)
    next = _method(calls.next_job)
    next_many = _method(calls.next_jobs)
    heartbeat = _method(calls.heartbeat)
    heartbeat_many = _method(calls.heartbeat_many)
    complete = _method(calls.complete)
    complete_many = _method(calls.complete_many)
    complete_and_next = _method(calls.complete_and_next)
    fail = _method(calls.fail)
    release = _method(calls.release)
    batch = _method(calls.batch)
    get_job = _method(calls.get_job)
    find = _method(calls.find)
    jobs = _method(calls.jobs)
    each_job = _each(calls.jobs)
    change_job = _method(calls.change_job)
    delete_job = _method(calls.delete_job)
    queues = _method(calls.queues)
    each_queue = _each(calls.queues)
    get_queue = _method(calls.get_queue)
    set_queue = _method(calls.set_queue)
    pause = _method(calls.pause)
    resume = _method(calls.resume)
    purge = _method(calls.purge)
    dead = _method(calls.dead)
    each_dead = _each(calls.dead)
    redrive = _method(calls.redrive)
    schedules = _method(calls.schedules)
    each_schedule = _each(calls.schedules)
    get_schedule = _method(calls.get_schedule)
    put_schedule = _method(calls.put_schedule)
    delete_schedule = _method(calls.delete_schedule)
    cluster = _method(calls.cluster)
    move_shard = _method(calls.move_shard)
    drain_host = _method(calls.drain_host)
    forget_host = _method(calls.forget_host)
    health = _method(calls.health)
