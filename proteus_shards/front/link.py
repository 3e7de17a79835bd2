"""One front's link to one shard: what it asks, and what becomes of that. The connection under it is `wire`'s.

How to think about it
=====================

A request passes three places: **queued** (accepted, no byte of it handed to the socket), **sent** (from the moment its frame is begun), and
**settled** (its callback was called, exactly once). `submit` is sync and cheap, and calls back from the link's own task;
`call` is the same for a task that wants to wait. What is refused is a value (`Refused`), never an exception:

- The link is down, too much is under way, or the request is still queued when the link is lost or its time is up: BUSY, surely without
  effect. A queued request that nobody waits for any more is not sent at all.
- The request was sent, and the link was lost or its time is up: UNKNOWN. A timeout also tells the shard to forget it (`Cancel`).

- In a cluster the shard may move, and the connection be cut while both ends live (`wire`). What the shard refuses as MOVED is kept, with its number, and sent
  again before all that is queued; a poll with what is left of its wait. UNKNOWN is then only what was sent to a process that nobody hears of any more.

**A run that nobody takes goes back.** A `next` that is abandoned (its client is gone) is cancelled at the shard. Its answer may be on the way
already: a `Delivered` that finds nobody waiting is answered with `Undeliver` for each of its jobs. Numbers are never used
twice in the life of a link object, so an answer cannot find the wrong request. A poll that the front itself ends, as it drains, is answered by the shard: a "no job" of the
front's own would pass the job that is on its way, and its client's next request would get the one after it first.

**Groups.** What `submit_all` takes travels in one frame, is applied in one go and answered at once. Its requests have numbers of their own, like any
others, and one entry: a hundred jobs cost the link little more than one.

**One frame a tick.** The writer sleeps until something is queued, and then takes all that has been queued meanwhile, up to a soft size.
There is no timer in it: a busy front gets large frames, an idle one sends at once.

**Bounds.** Requests under way (`link_requests_max`), where an array is one; their operations (`link_operations_max`); polls, which are no work while they
wait (`polls_max`); bytes queued (`link_bytes_max`); frame size. An array or a request beyond a bound passes when nothing
else is there. Give-backs have no bound: refusing one would cost its job a whole timeout.

Request times are checked every `SWEEP_SECONDS` for all requests together, so a timeout may come that much late; in return a request
costs no timer. No error in a callback, and no message that cannot be encoded, ends more than its own request.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterable
from functools import partial

import msgspec
import trio

from proteus_shards.config import Settings
from proteus_shards.core.commands import (
    Cancel,
    Command,
    Delivered,
    Delivery,
    Inspect,
    Next,
    Outcome,
    Reason,
    Refused,
    Statistics,
    Undeliver,
)
from proteus_shards.core.model import SECOND_US
from proteus_shards.errors import ProtocolError
from proteus_shards.front.pending import REQUEST_BYTES, UNSETTLED, Group, OnOutcomes, OnReply, Pending, UnderWay, weigh
from proteus_shards.front.wire import Wire
from proteus_shards.ipc.messages import Request, encode

SETTLE_SECONDS_MAX = 1.0
POLL_END_SECONDS_MAX = 1.0  # for a shard to say what became of a poll that is to end
FRAME_BYTES_SOFT = 1024 * 1024
FRAME_REQUESTS_MAX = 1024
OWED_MAX = 100_000  # give-backs kept for another try; each is a run that its client never saw

log = logging.getLogger("proteus_shards.front")


class LinkStatistics(msgspec.Struct, frozen=True):
    """One link at one moment. Counts are since the process started."""

    shard: int
    connected: bool
    in_flight: int  # requests accepted and not settled, queued ones included
    queued: int  # messages not yet handed to the socket
    queued_bytes: int  # roughly
    polls: int  # of the requests in flight, those that asked to wait for a job
    connects: int
    submitted: int
    refused: int  # not accepted: link down or a bound reached
    timeouts: int
    undelivered: int  # runs given back


class Link(Wire):
    """A link to one shard. Everything but `run`, `call` and the `wait_` functions is sync."""

    def __init__(self, target: str, shard: int, settings: Settings) -> None:
        super().__init__(target, shard, settings)
        self.shard_statistics: Statistics | None = None  # as of the last connect; kept while the shard is away
        self._bytes_max = settings.link_bytes_max
        self._under_way = UnderWay(settings)
        self._queue: deque[tuple[int, Command | list[Command], int]] = deque()  # (first) number, command(s), weight in bytes
        self._queued_bytes = 0
        self._owed: deque[Undeliver] = deque()  # give-backs to try again
        self._number = 0
        self._sent: dict[int, Command] = {}  # in a cluster: what was sent and not answered, by number
        self._kept: dict[int, Command] = {}  # what the shard has refused because it moves, to be sent again
        self._refused = self._timeouts = self._undelivered = 0

    # --- asking ------------------------------------------------------------------------------------------------

    @property
    def connected(self) -> bool:
        """Whether the shard has greeted and the link is up."""
        return self._connected

    @property
    def full(self) -> bool:
        """Whether it is up, and would take no request for now."""
        return self._connected and self._under_way.limit_hit(self._settings, 1) is not None

    def note_refusal(self) -> None:
        """Count a request that was refused without being asked of it."""
        self._refused += 1

    def submit(self, command: Command, on_reply: OnReply, deadline_seconds: float | None = None) -> int | Refused:
        """Send a command, and return its number, or why it is surely not sent.

        `on_reply` is called once, later, and must not block. `deadline_seconds` defaults to request_seconds_max and the wait that
        a `Next` asks for.
        """
        weight = weigh(command)
        under_way = self._under_way
        if (
            self._connected
            and len(under_way.entries) < under_way.free_max
            and (not self._queued_bytes or self._queued_bytes + weight <= self._bytes_max)
        ):
            return self._enter(command, on_reply, weight, deadline_seconds)
        refused = self._refusal(1, weight, poll=type(command) is Next and command.wait_us > 0)
        return self._enter(command, on_reply, weight, deadline_seconds) if refused is None else refused

    def submit_all(self, commands: list[Command], on_outcomes: OnOutcomes) -> Refused | None:
        """Send commands in one frame, in order; all or, for the reason returned, none. `on_outcomes` is called once, when all are settled.

        No `Next` among them may wait. More than link_operations_max of them pass where nothing else is under way.
        """
        count, weight = len(commands), sum(map(weigh, commands))
        refused = self._refusal(count, weight)
        if refused is not None:
            return refused
        first = self._number + 1
        self._number += count
        group = Group(first, [UNSETTLED] * count, count, on_outcomes)
        self._under_way.add_group(group, trio.current_time() + self._settings.request_seconds_max)
        self._queue.append((first, commands, weight))
        self._queued_bytes += weight
        self._writer.unpark()
        return None

    def _refusal(self, count: int, weight: int, *, poll: bool = False) -> Refused | None:
        """Say why a request of so many operations and bytes cannot be taken now, if it cannot."""
        if self._connected or self._hold_until is not None:
            limit = self._under_way.limit_hit(self._settings, count, poll=poll)
            if limit is None and self._queued_bytes and self._queued_bytes + weight > self._settings.link_bytes_max:
                limit = "bytes wait to be sent to {} (link_bytes_max)"
            if limit is None:
                return None
            reason = "too many " + limit.format(f"shard {self.shard}")
        else:
            reason = f"shard {self.shard} is away"
        self._refused += count
        return Refused(Reason.BUSY, reason)

    async def call(self, command: Command, deadline_seconds: float | None = None) -> Outcome:
        """Send a command and wait for its outcome. If the waiting task is cancelled, a `Next` and what it brought are given back."""
        outcome: Outcome | None = None
        settled = trio.Event()

        def on_reply(reply: Outcome) -> None:
            nonlocal outcome
            outcome = reply
            settled.set()

        number = self.submit(command, on_reply, deadline_seconds)
        if isinstance(number, Refused):
            await trio.lowlevel.checkpoint()
            return number
        try:
            await settled.wait()
        except BaseException:
            self.abandon(number)
            if type(outcome) is Delivered:
                self.undeliver(outcome.jobs)
            raise
        assert outcome is not None
        return outcome

    def abandon(self, number: int) -> None:
        """Wait no longer for a request; its callback is not called. A request that is settled already is left alone."""
        pending = self._under_way.remove(number)
        if pending is None:
            return
        if pending.next and pending.sent:
            self._put(Cancel(number))
        self._note_idle()

    def undeliver(self, jobs: Iterable[Delivery]) -> None:
        """Give back runs that surely never reached a runner. What can't be given back now is tried again, until the shard knows of no such run."""
        for job in jobs:
            self._undelivered += 1
            self._give_back(Undeliver(job.queue, job.id, job.run_id))

    def _give_back(self, command: Undeliver) -> None:
        if self._connected:
            self._enter(command, partial(self._check_give_back, command), weigh(command))
        elif len(self._owed) < OWED_MAX:
            self._owed.append(command)
        else:
            log.warning("a run could not be given back and waits for its timeout", extra={"shard": self.shard})

    def _check_give_back(self, command: Undeliver, outcome: Outcome) -> None:
        if isinstance(outcome, Refused) and outcome.reason is not Reason.NOT_FOUND and len(self._owed) < OWED_MAX:
            self._owed.append(command)  # `_sweep` tries again

    def end_polls(self) -> None:
        """Have every waiting poll answered soon: by the shard, with a job that it has just delivered or with none; with "no job" now, where the shard has not got it."""
        until = trio.current_time() + POLL_END_SECONDS_MAX
        for number, pending in list(self._under_way.entries.items()):
            if not pending.poll or pending.ending:
                continue
            if pending.sent and self._kept.pop(number, None) is None:
                pending.ending, pending.deadline = True, min(pending.deadline, until)
                self._put(Cancel(number, answered=True))
            elif self._under_way.remove(number) is not None:
                self._settle(number, pending, Delivered([]))

    def statistics(self) -> LinkStatistics:
        """Return what this link holds and has done."""
        return LinkStatistics(
            shard=self.shard,
            connected=self._connected,
            in_flight=len(self._under_way.entries),
            queued=len(self._queue),
            queued_bytes=self._queued_bytes,
            polls=self._under_way.polls,
            connects=self._connects,
            submitted=self._number,
            refused=self._refused,
            timeouts=self._timeouts,
            undelivered=self._undelivered,
        )

    async def wait_connected(self) -> None:
        """Wait until the link is up."""
        while not self._connected:
            await self._changed.wait()

    async def wait_settled(self) -> None:
        """Wait, a bounded time, until what was asked is answered and what must go back has gone back: the last step before an exit."""
        with trio.move_on_after(SETTLE_SECONDS_MAX):
            # Once this is answered, whatever was delivered before a `Cancel` took effect is here already.
            await self.call(Inspect())
            while self._under_way.entries:
                await self._changed.wait()

    # --- bookkeeping -------------------------------------------------------------------------------------------

    def _enter(self, command: Command, on_reply: OnReply, weight: int, deadline_seconds: float | None = None) -> int:
        is_next = type(command) is Next
        wait_us = command.wait_us if type(command) is Next else 0
        if deadline_seconds is None:
            deadline_seconds = self._settings.request_seconds_max + wait_us / SECOND_US if wait_us else self._settings.request_seconds_max
        number = self._put(command, weight)
        self._under_way.add(number, Pending(on_reply, trio.current_time() + deadline_seconds, is_next, wait_us > 0))
        return number

    def _put(self, command: Command, weight: int = REQUEST_BYTES) -> int:
        self._number = number = self._number + 1
        if not self._queue:
            self._writer.unpark()
        self._queue.append((number, command, weight))
        self._queued_bytes += weight
        return number

    def _settle(self, number: int, pending: Pending, outcome: Outcome) -> None:
        try:
            if (group := pending.group) is None:
                pending.on_reply(outcome)
            else:
                group.outcomes[number - group.first] = outcome
                group.left -= 1
                if not group.left:
                    group.on_outcomes(group.outcomes)
        except Exception:
            log.exception("a reply could not be handled", extra={"shard": self.shard})
        if not self._under_way.entries:
            self._announce()

    def _note_idle(self) -> None:
        if not self._under_way.entries:
            self._announce()

    def _learn(self, outcome: Outcome) -> None:
        if isinstance(outcome, Statistics):
            self.shard_statistics = outcome

    # --- coming up and going down ------------------------------------------------------------------------------

    def _begin(self) -> None:
        if self._kept:
            again = sorted(self._kept.items(), reverse=True)
            self._kept.clear()
            for number, command in again:
                weight = weigh(command)
                self._queue.appendleft((number, self._shortened(number, command), weight))
                self._queued_bytes += weight
        self._under_way.forget_probe()
        self._enter(Inspect(), self._learn, REQUEST_BYTES)

    def _shortened(self, number: int, command: Command) -> Command:
        """Return a poll that is sent again with what is left of its wait."""
        pending = self._under_way.entries.get(number)
        if pending is None or type(command) is not Next or not command.wait_us:
            return command
        left = pending.deadline - self._settings.request_seconds_max - trio.current_time()
        return msgspec.structs.replace(command, wait_us=max(0, min(command.wait_us, int(left * SECOND_US))))

    def _lose_sent(self) -> None:
        sent, self._sent = self._sent, {}
        for number in sent:
            pending = self._under_way.remove(number)
            if pending is not None:
                self._settle(number, pending, Refused(Reason.UNKNOWN, f"the link to shard {self.shard} was lost"))

    def _end_hold(self) -> None:
        held = list(self._kept)
        for number, command, _ in self._queue:
            held += range(number, number + len(command)) if isinstance(command, list) else (number,)
        self._kept.clear()
        self._queue.clear()
        self._queued_bytes = 0
        for number in held:
            pending = self._under_way.remove(number)
            if pending is not None:
                detail = f"shard {self.shard} is on its way to another host, or out of reach (hold_seconds_max)"
                self._settle(number, pending, Refused(Reason.BUSY, detail))

    def _lose(self) -> None:
        """Settle everything: the link is gone."""
        self._connected = False
        self._queue.clear()
        self._queued_bytes = 0
        pending = self._under_way.remove_all()
        for number, request in pending.items():
            if request.sent:
                self._settle(number, request, Refused(Reason.UNKNOWN, f"the link to shard {self.shard} was lost"))
            else:
                self._settle(number, request, Refused(Reason.BUSY, f"shard {self.shard} is away"))
        self._announce()

    # --- reading -----------------------------------------------------------------------------------------------

    def _take_or_keep(self, number: int, outcome: Outcome) -> None:
        """Take a reply in a cluster: what the shard refuses because it moves is sent again, to where it goes."""
        command = self._sent.pop(number, None)
        if type(outcome) is Refused and outcome.reason is Reason.MOVED:
            pending = self._under_way.entries.get(number)
            if pending is not None and pending.ending:
                self._take_reply(number, Delivered([]))
            elif command is not None and pending is not None:
                self._kept[number] = command
            self._leave()
        else:
            self._take_reply(number, outcome)
        if self._leave_at is not None:
            self._check_left()

    def _take_reply(self, number: int, outcome: Outcome) -> None:
        pending = self._under_way.remove(number)
        if pending is not None:
            self._settle(number, pending, outcome)
        elif type(outcome) is Delivered and outcome.jobs:
            self.undeliver(outcome.jobs)
        else:
            log.debug("a reply came that nobody waits for", extra={"shard": self.shard, "number": number})

    # --- writing -----------------------------------------------------------------------------------------------

    def _has_queued(self) -> bool:
        return bool(self._queue)

    def _has_sent(self) -> bool:
        return bool(self._sent)

    def _next_frame(self) -> bytes:
        return self._frame(self._take())

    def _take(self) -> list[Request]:
        """Take the requests of the next frame from the queue: from here on they count as sent."""
        requests: list[Request] = []
        size = 0
        while self._queue and len(requests) < FRAME_REQUESTS_MAX:
            number, command, weight = self._queue[0]
            if requests and size + weight > FRAME_BYTES_SOFT:
                break
            self._queue.popleft()
            self._queued_bytes -= weight
            pending = self._under_way.entries.get(number)
            if pending is not None:
                pending.sent = True
            elif type(command) is not Cancel:
                continue  # nobody waits for it any more
            size += weight
            if isinstance(command, list):
                requests.extend(enumerate(command, number))
            else:
                requests.append((number, command))
        if self._moves:
            self._note_sent(requests)
        return requests

    def _note_sent(self, requests: list[Request]) -> None:
        """Remember, in a cluster, what is sent until it is answered."""
        for number, command in requests:
            if type(command) is Cancel:
                if not command.answered:
                    self._sent.pop(command.request, None)
            else:
                self._sent[number] = command

    def _frame(self, requests: list[Request]) -> bytes:
        """Return the frame of requests. One that cannot be encoded is settled as a fault, and leaves the others whole."""
        if not requests:
            return b""
        try:
            return self._pack(encode(requests))
        except Exception as error:
            if len(requests) > 1:
                return b"".join(self._frame([request]) for request in requests)
            log.exception("a request could not be encoded", extra={"shard": self.shard})
            number = requests[0][0]
            pending = self._under_way.remove(number)
            if pending is not None:
                detail = "the request is too large for a frame" if isinstance(error, ProtocolError) else "the request could not be encoded"
                self._settle(number, pending, Refused(Reason.FAULT, detail))
            return b""

    # --- time --------------------------------------------------------------------------------------------------

    def _look_over(self, now: float) -> None:
        late = [number for number, pending in self._under_way.entries.items() if pending.deadline <= now]
        for number in late:
            self._expire(number)
        for _ in range(len(self._owed)):
            self._give_back(self._owed.popleft())

    def _expire(self, number: int) -> None:
        pending = self._under_way.remove(number)
        if pending is None:
            return
        if pending.ending:  # what is delivered from now on goes back
            self._put(Cancel(number))
            self._settle(number, pending, Delivered([]))
            return
        self._timeouts += 1
        if self._kept.pop(number, None) is None and pending.sent:
            self._put(Cancel(number))
            self._settle(number, pending, Refused(Reason.UNKNOWN, f"shard {self.shard} did not answer in time (request_seconds_max)"))
        else:
            self._settle(number, pending, Refused(Reason.BUSY, f"shard {self.shard} takes no requests at the moment"))
