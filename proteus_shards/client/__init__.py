"""The Python client and worker: `Client` for threads, `AsyncClient` for trio and asyncio, `Worker` for handlers of either kind.

Needs the extra `client`. It imports nothing of the server.
"""

from __future__ import annotations

from proteus_shards.client.aio import AsyncClient
from proteus_shards.client.calls import KEEP, Outcome
from proteus_shards.client.errors import (
    BadAnswer,
    BadRequest,
    Busy,
    ClientError,
    Conflict,
    Forbidden,
    Invalid,
    NotFound,
    NotReached,
    Problem,
    Refusal,
    ServerFault,
    TooLarge,
    Unanswered,
    Unauthorized,
    Unavailable,
)
from proteus_shards.client.handlers import AsyncRunningJob, GiveBack, RetryLater, RunLost, RunningJob
from proteus_shards.client.retries import NO_RETRIES, Retries
from proteus_shards.client.sync import Client
from proteus_shards.client.words import (
    Attempt,
    Backoff,
    Cluster,
    ClusterHost,
    ClusterShard,
    DeadLetter,
    Job,
    JobInfo,
    NewJob,
    Page,
    Queue,
    Run,
    Schedule,
    Summary,
)
from proteus_shards.client.worker import Worker, WorkerStatistics, run_worker

__all__ = [
    "KEEP",
    "NO_RETRIES",
    "AsyncClient",
    "AsyncRunningJob",
    "Attempt",
    "Backoff",
    "BadAnswer",
    "BadRequest",
    "Busy",
    "Client",
    "ClientError",
    "Cluster",
    "ClusterHost",
    "ClusterShard",
    "Conflict",
    "DeadLetter",
    "Forbidden",
    "GiveBack",
    "Invalid",
    "Job",
    "JobInfo",
    "NewJob",
    "NotFound",
    "NotReached",
    "Outcome",
    "Page",
    "Problem",
    "Queue",
    "Refusal",
    "Retries",
    "RetryLater",
    "Run",
    "RunLost",
    "RunningJob",
    "Schedule",
    "ServerFault",
    "Summary",
    "TooLarge",
    "Unanswered",
    "Unauthorized",
    "Unavailable",
    "Worker",
    "WorkerStatistics",
    "run_worker",
]
