"""What the OpenAPI document says of each call, parameter and field: three tables.

A test walks the routes, and fails where one is not in `CALLS` or a field has no meaning here. What can be taken from the code is not repeated (types, bounds,
defaults, settings).
"""

from __future__ import annotations

from typing import Any

import msgspec

from proteus_shards.core.commands_control import State
from proteus_shards.core.model import NAME_LENGTH_MAX
from proteus_shards.core.queue_settings import SECONDS_MAX
from proteus_shards.core.schedules import NAME_LENGTH_MAX as SCHEDULE_NAME_MAX
from proteus_shards.core.views import CURSOR
from proteus_shards.front.cluster_calls import HOST_LENGTH_MAX
from proteus_shards.front.once import LENGTH_MAX as IDEMPOTENCY_LENGTH_MAX

NAME: dict[str, Any] = {"type": "string", "minLength": 1, "maxLength": NAME_LENGTH_MAX, "pattern": "^[^\\u0000-\\u001f\\u007f-\\u009f]+$"}
ANY_NAME = {**NAME, "minLength": 0, "pattern": NAME["pattern"].replace("+$", "*$")}
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
    "started_at": INSTANT,
    "ended_at": INSTANT,
    "expires_at": INSTANT,
    "due_at": INSTANT,
    "held_until": INSTANT,
    "next_at": INSTANT,
    "last_at": INSTANT,
    "held_by": UUID,
    "key": NAME,
    "host": {"type": "string", "minLength": 1, "maxLength": HOST_LENGTH_MAX},
}

TYPE_NAMES = {
    "JobBody": "NewJob",
    "JobView": "Job",
    "DeadView": "DeadLetter",
    "DeadPage": "DeadLetters",
    "ProblemView": "Problem",
    "JobsPart": "NextAnswer",
    "JobShown": "JobInfo",
    "QueueShown": "Queue",
    "AttemptShown": "Attempt",
    "BackoffShown": "Backoff",
    "_Changed": "JobPatch",
    "ClusterShown": "Cluster",
    "HostShown": "ClusterHost",
    "OwnerShown": "ClusterShard",
    "_Chosen": "JobChoice",
    "Definition": "ScheduleDefinition",
    "ScheduleShown": "Schedule",
    "SchedulePage": "Schedules",
    "relay_v1._Job": "RelayV1NewJob",
    "relay_v1._View": "RelayV1Job",
    "relay_v2._Job": "RelayV2NewJob",
    "relay_v2._View": "RelayV2Job",
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
    "next": "What `after` must be for the page behind this one; null where there is none.",
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
    "key": "Ordering key: at most one job of a key is in flight, and none passes another.",
    "priority": "Of two jobs that are ready the one with the higher priority goes first.",
    "ttl": "Seconds. A job that still waits after so long is dead.",
    "backoff": "How long the job waits after a run that failed or timed out.",
    "seconds": "Seconds: the first delay, or the time in which a rate counts.",
    "factor": "By how much each delay is longer than the one before.",
    "seconds_max": "No delay is longer than so many seconds.",
    "jitter": "The share of a delay, from 0 to 1, that is drawn at random and taken off.",
    "burst": "How many may come at once; `jobs` where it is left out.",
    "expires_at": "When the job dies if it still waits.",
    "schedule": "The recurring job that made it.",
    "trace": "W3C trace context of its producer, who sent it as `traceparent`.",
    "traceparent": "W3C trace context of its producer.",
    "timeout_in": "Seconds until the run times out.",
    "history": "Runs that did not complete the job: the first, and the latest.",
    "outcome": "How the run ended.",
    "error": "What its runner said of it.",
    "delay": "Seconds until the job is ready again. Left out: as its backoff says.",
    "started_at": "When the run began.",
    "ended_at": "When the run ended.",
    "state_name": "Where the job stands.",
    "waits_for": "Why the job is not running: all that it waits for.",
    "blocked_by": "The id of the job of its key that is in the way.",
    "due_at": "When what it waits for is over, where that is known.",
    "held_by": "The run that has the job instead.",
    "held_until": "When that run times out.",
    "queues": "The queues, by name.",
    "scheduled": "Jobs that wait for their time.",
    "ready": "Jobs that may be delivered now.",
    "blocked": "Jobs that wait for another of their key.",
    "in_flight": "Jobs that are being run.",
    "dead": "Dead letters.",
    "pollers": "Requests that wait for a job of the queue.",
    "oldest_ready_seconds": "How long the oldest ready job has waited since it could have started.",
    "bytes": "Bytes of payloads and states in memory.",
    "paused": "Whether nothing is delivered.",
    "settings": "What is set of the queue's settings.",
    "max_in_flight": "At most so many jobs are run at once.",
    "rate": "At most so many jobs are delivered in so many seconds.",
    "on_retry": "Whether a job that is tried again holds back those behind it of its key, or they may pass.",
    "delayed_head": "Whether a job that waits for its time holds back those behind it of its key, or they pass.",
    "jobs_max": "At most so many live jobs; beyond it 429.",
    "bytes_max": "At most so many bytes of payload and state; beyond it 429.",
    "dead_letters_max": "At most so many dead letters; the oldest beyond it are dropped.",
    "dead_letters_seconds_max": "Dead letters are dropped after so many seconds.",
    "name": "The name of the recurring job.",
    "cron": "When it runs, in the five fields of cron.",
    "every": "It runs every so many seconds.",
    "timezone": "The zone of its cron fields.",
    "missed": "What becomes of times at which the server was not running.",
    "overlap": "Whether it runs while its job before is still there.",
    "next_at": "When it runs next.",
    "last_at": "When it ran last.",
    "retries_remaining": "How often the job may be delivered again; null: without end.",
    "fired": "How often it ran.",
    "missed_times": "How many of its times were missed.",
    "schedules": "The recurring jobs.",
    "ids": "Only the jobs with these ids.",
    "crash_loops": "Processes that end again and again.",
    "shard": "The number of a shard.",
    "host": "The address of a host of the cluster, as its node_address says. Null, of a shard: nobody has it, or whoever wants it may.",
    "draining": "True: it gives its shards away and gets no more. False: it takes shards again.",
    "host_state": "How it is: alive, draining or dead.",
    "shards_held": "How many shards it has.",
    "turn": "Goes up with every change of host.",
    "epoch": "The number of the fence under which the shard's process commits.",
    "shards_here": "In a cluster: the shards of this host.",
    "here": "Whether the host that answers runs the shard.",
    "seen_from": "The host that answers.",
    "wanted": "The host that an operator wants it on.",
    "store_away": "Whether all this may be old, as the store cannot be asked.",
    "hosts": "The hosts.",
    "owners": "Who has each shard, in the order of their numbers.",
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
    "limit": ({"type": "integer", "minimum": 1}, "At most so many on this page."),
    "after_queue": (ANY_NAME, "The `next` of the page before."),
    "after_job": ({"type": "string", "maxLength": 64, "pattern": f"^{CURSOR.pattern}$"}, "The `next` of the page before."),
    "contains": (ANY_NAME, "Only queues whose name contains this."),
    "state": ({"enum": list(State)}, "Only jobs that stand there. Without it all that are not dead."),
    "purge_state": (
        {"enum": [*State, "all"]},
        "Which jobs. Without it all that wait.",
    ),
    "key": (NAME, "Only jobs of this ordering key."),
    "older_than": ({"type": "number", "minimum": 0, "maximum": SECONDS_MAX}, "Only jobs that were enqueued more than so many seconds ago."),
    "bodies": ({"enum": ["true", "false"]}, "Whether payloads and states are shown."),
    "to": (NAME, "The queue that gets them."),
    "queue_or_all": (NAME, "Only those of this queue."),
    "after_schedule": ({"type": "string", "maxLength": 2048}, "The `next` of the page before."),
    "schedule_name": ({**NAME, "maxLength": SCHEDULE_NAME_MAX}, "The name of the recurring job."),
    "^Idempotency-Key": (
        {"type": "string", "minLength": 1, "maxLength": IDEMPOTENCY_LENGTH_MAX, "pattern": "^[!-~]+$"},
        "A request with the same key is answered the same for a while, and enqueues nothing more. Not for lines.",
    ),
    "^traceparent": ({"type": "string"}, "W3C trace context, which goes along with the job. One that is malformed is passed over."),
    "mode": ({"enum": ["unique", "ignore", "replace"], "default": "unique"}, "What becomes of jobs whose id is in their queue already."),
    "relay_num_jobs": ({"type": "integer", "minimum": 1, "maximum": 2**32 - 1, "default": 1}, "At most so many jobs."),
    "relay_wait": ({"type": "number", "minimum": 0}, "Wait so many seconds for a job."),
    "after_seq": ({"type": "integer", "minimum": 0, "maximum": 2**63 - 1}, "The `next` of the page before."),
}


class Body(msgspec.Struct, frozen=True):
    """The body of a request or an answer: what it is by media type, and what a reader should know. An empty media type stands for no body at all."""

    contents: dict[str, str]  # media type → name of a shape in `openapi.SHAPES`
    help: str = ""
    required: bool = True


class Described(msgspec.Struct, frozen=True, kw_only=True):
    """One call. Answers that every call may give are added.

    A parameter whose name ends in `!` is required, one that begins with `/` stands in the path, one with `^` in the header.
    """

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

NO_SCHEDULE = Body({"application/problem+json": "Problem"}, "There is none of this name in the queue.")

CALLS: dict[tuple[str, str], Described] = {
    ("POST", "/enqueue"): Described(
        tag="Producing",
        summary="Enqueue a job, or many",
        help="The body is one job, an array of jobs, or one job a line (NDJSON). Each job stands for itself: that one is refused leaves the others alone. "
        "The answer to an array is an array in the same order, that to lines a summary.",
        parameters=("^Idempotency-Key", "^traceparent"),
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
    ("POST", "/fail"): Described(
        tag="Running",
        summary="End a run that did not do its job",
        parameters=("queue!", "job_id!", "run_id"),
        help="A retry is spent; with none left the job is dead.",
        body=Body({JSON: "Failed"}, "What went wrong, and how long to wait.", required=False),
        answers={202: ACCEPTED, 404: NOT_FOUND},
    ),
    ("POST", "/release"): Described(
        tag="Running",
        summary="Give a job back that was not begun",
        parameters=("queue!", "job_id!", "run_id"),
        help="No retry is spent.",
        body=Body({JSON: "Released"}, "How long to wait.", required=False),
        answers={202: ACCEPTED, 404: NOT_FOUND},
    ),
    ("GET", "/queues"): Described(
        tag="Looking",
        summary="List queues",
        parameters=("contains", "limit", "after_queue"),
        help="By name, over all shards. A page may be short and yet have a `next`.",
        answers={200: Body({JSON: "Queues"}, "A page of them.")},
    ),
    ("GET", "/queue"): Described(
        tag="Looking",
        summary="Show a queue",
        parameters=("queue!",),
        help="One that has never been used is empty.",
        answers={200: Body({JSON: "Queue"}, "How it is.")},
    ),
    ("PATCH", "/queue"): Described(
        tag="Operating",
        summary="Change settings of a queue",
        parameters=("queue!",),
        body=Body({JSON: "QueuePatch"}, "A merge patch (RFC 7396): what is left out stays, null takes it back to its default."),
        answers={200: Body({JSON: "Queue"}, "How it is then.")},
    ),
    ("POST", "/pause"): Described(
        tag="Operating",
        summary="Deliver no more jobs of a queue",
        parameters=("queue!",),
        help="Those in flight go on.",
        answers={202: ACCEPTED},
    ),
    ("POST", "/resume"): Described(
        tag="Operating", summary="Deliver the jobs of a queue again", parameters=("queue!",), answers={202: ACCEPTED}
    ),
    ("POST", "/purge"): Described(
        tag="Operating",
        summary="Remove jobs of a queue",
        parameters=("queue!", "purge_state", "key"),
        answers={200: Body({JSON: "Count"}, "How many.")},
    ),
    ("GET", "/jobs"): Described(
        tag="Looking",
        summary="List jobs of a queue",
        parameters=("queue!", "state", "key", "older_than", "bodies", "limit", "after_job"),
        answers={200: Body({JSON: "JobInfos"}, "A page of them.")},
    ),
    ("GET", "/job"): Described(
        tag="Looking",
        summary="Show a job",
        parameters=("queue!", "job_id!"),
        help="The live one of that id, else its newest dead letter.",
        answers={200: Body({JSON: "JobInfo"}, "All of it, and why it is not running."), 404: NOT_FOUND},
    ),
    ("DELETE", "/job"): Described(
        tag="Operating",
        summary="Remove a job in any state",
        parameters=("queue!", "job_id!"),
        answers={200: Body(NOTHING, "Removed."), 404: NOT_FOUND},
    ),
    ("PATCH", "/job"): Described(
        tag="Operating",
        summary="Change when a job that waits runs, or its priority",
        parameters=("queue!", "job_id!"),
        body=Body({JSON: "JobPatch"}),
        answers={202: ACCEPTED, 404: NOT_FOUND},
    ),
    ("GET", "/find"): Described(
        tag="Looking",
        summary="Find jobs by their id",
        parameters=("job_id!", "limit"),
        help="In all queues, dead ones included.",
        answers={200: Body({JSON: "Found"}, "Those that there are.")},
    ),
    ("POST", "/redrive"): Described(
        tag="Operating",
        summary="Give dead letters a new life",
        parameters=("queue!", "to"),
        help="In their original order, with all their retries. In portions, each of them all or nothing, also into a queue of another shard. "
        "One whose id is live in its queue stays dead.",
        body=Body({JSON: "Picked"}, "Which of them. Without a body all.", required=False),
        answers={200: Body({JSON: "Count"}, "How many.")},
    ),
    ("GET", "/schedules"): Described(
        tag="Schedules",
        summary="List recurring jobs",
        parameters=("queue_or_all", "limit", "after_schedule"),
        answers={200: Body({JSON: "Schedules"}, "A page of them.")},
    ),
    ("GET", "/schedule"): Described(
        tag="Schedules",
        summary="Show a recurring job",
        parameters=("queue!", "schedule_name!"),
        answers={200: Body({JSON: "Schedule"}, "All of it."), 404: NO_SCHEDULE},
    ),
    ("PUT", "/schedule"): Described(
        tag="Schedules",
        summary="Make or change a recurring job",
        parameters=("queue!", "schedule_name!"),
        help="The id of each job that it makes is its name and the time, with an @ between them.",
        body=Body({JSON: "ScheduleBody"}),
        answers={200: Body({JSON: "Schedule"}, "How it is then.")},
    ),
    ("DELETE", "/schedule"): Described(
        tag="Schedules",
        summary="Remove a recurring job",
        parameters=("queue!", "schedule_name!"),
        help="Jobs that it made stay.",
        answers={200: Body(NOTHING, "Removed."), 404: NO_SCHEDULE},
    ),
    ("GET", "/health"): Described(
        tag="Server", summary="Say that the process can answer", asks_shards=False, answers={200: Body({JSON: "Health"}, "It can.")}
    ),
    ("GET", "/ready"): Described(
        tag="Server",
        summary="Say whether requests for every queue can be served",
        asks_shards=False,
        help="In a cluster: for every queue whose shard is on this host.",
        answers={
            200: Body({JSON: "Ready"}, "They can."),
            503: Body(
                {"application/problem+json": "Problem"},
                "A shard is away, or the server is ending. In a cluster also: the host holds no shard, drains, or its node cannot reach the store.",
            ),
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
