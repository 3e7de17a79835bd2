"""What the jobs of a benchmark look like: numbered families, so that any part of a run knows each job's id, queue and request.

Job `j` of a family has the id `tag` + ten digits and belongs to the queue `slots[j % len(slots)]`. A queue that stands in more slots gets more
jobs. The numbers have a fixed width, so that requests differ in nothing but their digits, and wrk can build one by putting three
strings together.
"""

from __future__ import annotations

import msgspec

from proteus_shards.core.placement import shard_of, slot_of

ID_FIRST = 1_000_000_000  # ten digits, and below 2**31 for LuaJIT's fast way from number to text
TIMEOUT_SECONDS = 86_400  # nothing times out while it is measured
PAYLOAD_BYTES = 24
BATCH_JOBS = 100

_HOST = b" HTTP/1.1\r\nHost: localhost\r\n"
_END = b"\r\n\r\n"


class Family(msgspec.Struct, frozen=True):
    """Jobs 0, 1, 2, … with one shape."""

    tag: str
    slots: list[str]
    persist: bool = False
    payload_bytes: int = PAYLOAD_BYTES
    members: str = ""  # further members of each job, each behind a comma

    def queue(self, number: int) -> str:
        """Return the queue of a job."""
        return self.slots[number % len(self.slots)]

    def id(self, number: int) -> str:
        """Return the id of a job."""
        return f"{self.tag}{ID_FIRST + number}"

    def payload(self) -> bytes:
        """Return the payload that all its jobs have: a JSON string of payload_bytes."""
        return b'"' + b"x" * (self.payload_bytes - 2) + b'"'

    def enqueue_head(self, queue: str) -> bytes:
        """Return an enqueue up to the digits of the id."""
        persist = b"true" if self.persist else b"false"
        body = b'{"queue":"%s","timeout":%d,"persist_data":%s,"payload":%s%s,"id":"%s' % (
            queue.encode(),
            TIMEOUT_SECONDS,
            persist,
            self.payload(),
            self.members.encode(),
            self.tag.encode(),
        )
        length = len(body) + len(str(ID_FIRST)) + len(ENQUEUE_TAIL)
        return b"POST /enqueue%sContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (_HOST, length, body)

    def enqueue(self, number: int) -> bytes:
        """Return the request that enqueues a job."""
        return b"%s%d%s" % (self.enqueue_head(self.queue(number)), ID_FIRST + number, ENQUEUE_TAIL)

    def job(self, queue: str) -> bytes:
        """Return a job as JSON, with a %d for the digits of its id. Nothing else in it is a percent sign."""
        persist = b"true" if self.persist else b"false"
        return b'{"queue":"%s","timeout":%d,"persist_data":%s,"payload":%s,"id":"%s%%d"}' % (
            queue.encode(),
            TIMEOUT_SECONDS,
            persist,
            self.payload(),
            self.tag.encode(),
        )

    def completion(self, queue: str) -> bytes:
        """Return a completion as an operation of a batch, with a %d for the digits of its id."""
        return b'{"op":"complete","queue":"%s","job_id":"%s%%d"}' % (queue.encode(), self.tag.encode())

    def complete_and_next_head(self, queue: str) -> bytes:
        """Return a complete-and-next up to the digits of the id."""
        return b"POST /complete-and-next?queue=%s&job_id=%s" % (queue.encode(), self.tag.encode())

    def complete_and_next(self, number: int, run_id: str) -> bytes:
        """Return a complete-and-next that names its run."""
        head = self.complete_and_next_head(self.queue(number))
        return b"%s%d&run_id=%s%s" % (head, ID_FIRST + number, run_id.encode(), HEARTBEAT_TAIL)

    def heartbeat_head(self, queue: str) -> bytes:
        """Return a heartbeat without a body up to the digits of the id."""
        return b"PATCH /heartbeat?queue=%s&job_id=%s" % (queue.encode(), self.tag.encode())

    def complete_head(self, queue: str) -> bytes:
        """Return a completion up to the digits of the id."""
        return b"DELETE /complete?queue=%s&job_id=%s" % (queue.encode(), self.tag.encode())

    def heartbeat(self, number: int, run_id: str) -> bytes:
        """Return a heartbeat that names its run."""
        return b"%s%d&run_id=%s%s" % (self.heartbeat_head(self.queue(number)), ID_FIRST + number, run_id.encode(), HEARTBEAT_TAIL)

    def complete(self, number: int, run_id: str) -> bytes:
        """Return a completion that names its run."""
        return b"%s%d&run_id=%s%s" % (self.complete_head(self.queue(number)), ID_FIRST + number, run_id.encode(), COMPLETE_TAIL)


ENQUEUE_TAIL = b'"}'
HEARTBEAT_TAIL = _HOST + b"Content-Length: 0" + _END
COMPLETE_TAIL = _HOST[:-2] + _END


def next_job(queue: str, num_jobs: int | None = None, wait_seconds: int | None = None) -> bytes:
    """Return the request for the next job of a queue."""
    query = queue.encode()
    if num_jobs is not None:
        query += b"&num_jobs=%d" % num_jobs
    if wait_seconds is not None:
        query += b"&wait=%d" % wait_seconds
    return b"GET /next?queue=%s%s" % (query, COMPLETE_TAIL)


def post(path: str, body: bytes) -> bytes:
    """Return a request with a body."""
    return b"POST %s%sContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (path.encode(), _HOST, len(body), body)


def balanced(prefix: str, count: int, shards: int) -> list[str]:
    """Return `count` queue names, as many on each shard as on any other (but for a rest), shard after shard in turn."""
    per_shard: list[list[str]] = [[] for _ in range(shards)]
    wanted = -(-count // shards)
    number = 0
    while any(len(names) < wanted for names in per_shard):
        name = f"{prefix}-{number}"
        names = per_shard[shard_of(slot_of(name), shards)]
        if len(names) < wanted:
            names.append(name)
        number += 1
    return [names[i] for i in range(wanted) for names in per_shard][:count]
