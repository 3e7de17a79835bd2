"""What the OpenAPI document says of each call, parameter and field: three tables.

A call that is not in `CALLS` cannot be served: `openapi` refuses to make a document that leaves out a route. What can be taken from the code is not repeated here (types,
bounds, defaults, settings).
"""

from __future__ import annotations

from typing import Any

import msgspec

from proteus_shards.core.model import NAME_LENGTH_MAX

NAME: dict[str, Any] = {"type": "string", "minLength": 1, "maxLength": NAME_LENGTH_MAX, "pattern": "^[^\\u0000-\\u001f\\u007f-\\u009f]+$"}
UUID: dict[str, Any] = {
    "type": "string",
    "format": "uuid",
    "pattern": "^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$",
}
INSTANT: dict[str, Any] = {"type": "string", "format": "date-time"}

RULES: dict[str, dict[str, Any]] = {
    "id": NAME,
    "queue": NAME,
    "job_id": NAME,
    "run_id": UUID,
    "run_at": INSTANT,
    "created_at": INSTANT,
    "updated_at": INSTANT,
    "died_at": INSTANT,
}

TYPE_NAMES = {
    "JobBody": "NewJob",
    "JobView": "Job",
    "DeadView": "DeadLetter",
    "DeadPage": "DeadLetters",
    "ProblemView": "Problem",
    "JobsPart": "NextAnswer",
}

MEANINGS: dict[str, str] = {
    "id": "The job's id. A queue has at most one live job of an id.",
    "queue": "The queue's name. A queue is there as soon as it is named.",
    "timeout": "Whole seconds. A run that is neither completed nor heard of for so long is over, and its job goes to another runner.",
    "persist_data": "Whether the store keeps the job. Else it lives in memory, and is lost when its shard ends.",
    "max_retries": "How often the job is delivered after the first time. Negative: without end.",
    "payload": "Any JSON. It comes back byte for byte.",
    "state": "Any JSON: what the run before saved last. It comes back byte for byte. In a request null means none.",
    "run_at": "The job is not delivered before this time.",
    "run_id": "Names this delivery. Whoever names it later can change nothing once the run is over.",
    "attempt": "1 for the first delivery.",
    "created_at": "When the job was enqueued.",
    "updated_at": "When the job last changed.",
    "died_at": "When the job used up its last retry.",
    "reason": "Why the job is dead.",
    "title": "The phrase of the status.",
    "status": "The HTTP status.",
    "detail": "What is wrong, in one sentence.",
    "retryable": "Whether the same request may do better later.",
    "field": "The part of the request at fault.",
    "job_id": "The job's id.",
    "request_id": "Under this id the server's log has the details of a fault.",
    "shards_away": "Shards that could not be asked.",
    "completed": "What became of the completion of a complete-and-next, where that is known.",
    "line": "The number of the line at fault, of NDJSON.",
    "jobs": "The jobs, in order.",
    "next": "What `after` must be for the page behind this one; null where this one is empty.",
    "op": "Which operation this is.",
    "job": "The job, as in an enqueue.",
    "num_jobs": "At most so many jobs.",
    "accepted": "How many jobs were accepted.",
    "refused": "How many jobs were refused.",
    "failures": "The refused jobs, the first thousand of them: problems with their `line`.",
    "failures_left_out": "How many further jobs were refused.",
    "stopped": "Why nothing was looked at from its `line` on.",
    "version": "The server's version.",
    "store": "Which kind of store it has.",
    "durability": "What an acknowledged job with persist_data survives.",
    "terms": "The same in words.",
    "shards": "How many shard processes it has.",
    "crash_loops": "Processes that end again and again.",
}

PARAMETERS: dict[str, tuple[dict[str, Any], str]] = {
    "queue": (NAME, "The queue."),
    "queue*": (NAME, "The queue. Several are asked in this order."),
    "next_queue*": (NAME, "The queue of the next job, `queue` where it is left out. Several are asked in this order."),
    "job_id": (NAME, "The job's id."),
    "run_id": (UUID, "The run. Without it whichever run is in flight is meant."),
    "num_jobs": ({"type": "integer", "minimum": 1}, "Answer with an array of at most so many jobs."),
    "num_dead": ({"type": "integer", "minimum": 1}, "At most so many dead letters."),
    "wait": ({"type": "number", "minimum": 0}, "Wait so many seconds for a job."),
    "after_seq": ({"type": "integer", "minimum": 0, "maximum": 2**63 - 1}, "The `next` of the page before."),
}


class Body(msgspec.Struct, frozen=True):
    """The body of a request or an answer: what it is by media type, and what a reader should know. An empty media type stands for no body at all."""

    contents: dict[str, str]  # media type → name of a shape in `openapi.SHAPES`
    help: str = ""
    required: bool = True


class Described(msgspec.Struct, frozen=True, kw_only=True):
    """One call. A parameter whose name ends in `!` is required. Answers that every call may give are added."""

    summary: str
    help: str = ""
    tag: str
    parameters: tuple[str, ...] = ()
    body: Body | None = None
    answers: dict[int, Body]
    asks_shards: bool = True  # so it may be told 429, 500 and 503
    native: bool = True  # so it is there with /v1 before it, too, and a wrong argument is a 422


JSON = "application/json"
NOTHING: dict[str, str] = {}
ACCEPTED = Body(NOTHING, "Accepted.")
NOT_FOUND = Body({"application/problem+json": "Problem"}, "There is no such job, or its run is over.")

CALLS: dict[tuple[str, str], Described] = {
    ("POST", "/enqueue"): Described(
        tag="Producing",
        summary="Enqueue a job, or many",
        help="The body is one job, an array of jobs, or one job a line (NDJSON). Each job stands for itself: that one is refused leaves the others alone. "
        "The answer to an array is an array in the same order, that to lines a summary.",
        body=Body({JSON: "Enqueued", "application/x-ndjson": "Lines", "application/jsonl": "Lines"}),
        answers={
            202: Body({JSON: "EnqueuedAnswer"}, "Accepted, all of them. For one job there is no body."),
            207: Body({JSON: "EnqueuedAnswer"}, "Several jobs, and not all were accepted."),
            409: Body({"application/problem+json": "Problem"}, "A job with this id is in the queue already."),
        },
    ),
    ("GET", "/next"): Described(
        tag="Running",
        summary="Fetch the next job",
        parameters=("queue*!", "num_jobs", "wait"),
        help="Several queues are asked in order. With `num_jobs` the answer is an array.",
        answers={200: Body({JSON: "Delivered"}, "The job, or the jobs."), 204: Body(NOTHING, "There is none.")},
    ),
    ("PATCH", "/heartbeat"): Described(
        tag="Running",
        summary="Say that a job is still worked on",
        parameters=("queue!", "job_id!", "run_id"),
        body=Body({JSON: "Any"}, "Any JSON is the new state, null clears it. Without a body the state stays.", required=False),
        answers={202: ACCEPTED, 404: NOT_FOUND},
    ),
    ("DELETE", "/complete"): Described(
        tag="Running",
        summary="Complete a job",
        parameters=("queue!", "job_id!", "run_id"),
        help="It is removed, whether it is in flight or not.",
        answers={200: Body(NOTHING, "Removed."), 404: NOT_FOUND},
    ),
    ("POST", "/complete-and-next"): Described(
        tag="Running",
        summary="Complete a job and fetch the next",
        parameters=("queue!", "job_id!", "run_id", "next_queue*", "num_jobs", "wait"),
        help="One round trip a job. A problem says in `completed` what became of the completion, where that is known.",
        answers={
            200: Body({JSON: "Delivered"}, "Completed, and the next job or jobs."),
            204: Body(NOTHING, "Completed, and there is no next job."),
            404: NOT_FOUND,
        },
    ),
    ("POST", "/batch"): Described(
        tag="Running",
        summary="Carry out several operations",
        help="Each stands for itself and has its own answer, in order. Those of one queue are carried out in order.",
        body=Body({JSON: "Operations"}),
        answers={200: Body({JSON: "OperationAnswers"}, "All succeeded."), 207: Body({JSON: "OperationAnswers"}, "Not all succeeded.")},
    ),
    ("GET", "/dead"): Described(
        tag="Operating",
        summary="List dead letters",
        parameters=("queue!", "num_dead", "after_seq"),
        help="Those of a queue, oldest death first.",
        answers={200: Body({JSON: "DeadLetters"}, "A page of them.")},
    ),
    ("GET", "/health"): Described(
        tag="Server", summary="Say that the process can answer", asks_shards=False, answers={200: Body({JSON: "Health"}, "It can.")}
    ),
    ("GET", "/ready"): Described(
        tag="Server",
        summary="Say whether requests for every queue can be served",
        asks_shards=False,
        answers={
            200: Body({JSON: "Ready"}, "They can."),
            503: Body({"application/problem+json": "Problem"}, "A shard is away, or the server is ending."),
        },
    ),
    ("GET", "/metrics"): Described(
        tag="Server",
        summary="Show the metrics of all processes",
        asks_shards=False,
        native=False,
        answers={200: Body({"text/plain": "Text"}, "In the text format of Prometheus.")},
    ),
    ("GET", "/openapi.json"): Described(
        tag="Server",
        summary="Show this document",
        asks_shards=False,
        native=False,
        answers={200: Body({JSON: "Any"}, "OpenAPI 3.1.")},
    ),
    ("GET", "/docs"): Described(
        tag="Server",
        summary="Show this document as a page",
        asks_shards=False,
        native=False,
        answers={200: Body({"text/html": "Text"}, "It needs nothing from elsewhere.")},
    ),
}

ALSO_HEAD = frozenset({"/health", "/ready"})
