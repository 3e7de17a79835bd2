"""What the OpenAPI document says of the calls of relay's two APIs. Their errors are plain text, and those of a `next` have no body."""

from __future__ import annotations

from proteus_shards.front.openapi_words import JSON, NOTHING, Body, Described

TEXT = {"text/plain": "Text"}
_SAYS = {
    400: "The body, the query or a name is malformed.",
    404: "There is no such job, or it is not in flight.",
    409: "A job with this id is in the queue already.",
    413: "The body is over a limit.",
    422: "The body is JSON, but not what is asked for here.",
    429: "Not now, and surely without effect.",
    500: "A fault inside. The log has the details.",
    503: "Not now. Where 429 is another answer of the call, it may have had an effect.",
}
_V1, _V2 = "relay v1", "relay v2"
_ALWAYS = {_V1: (400, 429, 500, 503), _V2: (400, 500, 503)}
_ACCEPTED = Body(NOTHING, "Accepted.")
_HELP = "A name in the path is percent-encoded, `%2F` is a slash in it, and `+` a plus."


def _call(
    tag: str,
    summary: str,
    answers: dict[int, Body],
    *wrong: int,
    body: Body | None = None,
    parameters: tuple[str, ...] = (),
    silent: bool = False,
    help_: str = _HELP,
) -> Described:
    """Describe a call: `answers` are the good ones, `wrong` the statuses of its errors beside those of all, without a body where it is `silent`."""
    statuses = {*_ALWAYS[tag], *wrong, *((413,) if body is not None else ())}
    errors = {status: Body(NOTHING if silent or (status == 404 and "Look" in summary) else TEXT, _SAYS[status]) for status in statuses}
    return Described(
        tag=tag, summary=summary, help=help_, parameters=parameters, body=body, answers=answers | errors, asks_shards=False, native=False
    )


def _look(tag: str, job: str) -> dict[tuple[str, str], Described]:
    path = f"/{tag[-2:]}/queues/{{queue}}/jobs/{{job_id}}"
    names = ("/queue!", "/job_id!")
    return {
        ("GET", path): _call(tag, "Look at a job", {200: Body({JSON: job}, "The job.")}, 404, parameters=names),
        ("HEAD", path): _call(tag, "Ask whether there is a job", {200: Body(NOTHING, "There is.")}, 404, parameters=names, silent=True),
    }


def _next(tag: str, jobs: str) -> dict[tuple[str, str], Described]:
    return {
        ("GET", f"/{tag[-2:]}/queues/{{queue}}/jobs"): _call(
            tag,
            "Fetch the next jobs",
            {200: Body({JSON: jobs}, "Up to `num_jobs` jobs, oldest first."), 204: Body(NOTHING, "There is none.")},
            parameters=("/queue!", "relay_num_jobs", "relay_wait"),
            silent=True,
        )
    }


_RUN = "/v2/queues/{queue}/jobs/{job_id}/run-id/{run_id}"
_RUN_NAMES = ("/queue!", "/job_id!", "/run_id!")
_STATE = Body({JSON: "Any"}, "Any JSON is the new state, null clears it. Without a body the state stays.", required=False)

RELAY_CALLS: dict[tuple[str, str], Described] = {
    ("POST", "/v1/queues/jobs"): _call(
        _V1,
        "Enqueue jobs",
        {202: _ACCEPTED},
        409,
        422,
        body=Body({JSON: "RelayV1Jobs"}),
        help_="One job whose id is in its queue already is refused. Among several such jobs are skipped.",
    ),
    ("PUT", "/v1/queues/jobs"): _call(
        _V1,
        "Reschedule the job that is in flight",
        {202: _ACCEPTED},
        404,
        422,
        body=Body({JSON: "RelayV1NewJob"}),
        help_="It takes the place of the job in flight with its id.",
    ),
    **_next(_V1, "RelayV1Delivered"),
    **_look(_V1, "RelayV1Job"),
    ("PATCH", "/v1/queues/{queue}/jobs/{job_id}"): _call(
        _V1, "Say that a job is still worked on", {202: _ACCEPTED}, 404, body=_STATE, parameters=("/queue!", "/job_id!")
    ),
    ("DELETE", "/v1/queues/{queue}/jobs/{job_id}"): _call(
        _V1, "Remove a job", {200: Body(NOTHING, "Removed.")}, 404, parameters=("/queue!", "/job_id!")
    ),
    ("POST", "/v2/queues/jobs"): _call(
        _V2,
        "Enqueue jobs",
        {202: _ACCEPTED},
        409,
        422,
        body=Body({JSON: "RelayV2Jobs"}),
        parameters=("mode",),
        help_="`unique`: where one is there already, none is enqueued.",
    ),
    **_next(_V2, "RelayV2Delivered"),
    **_look(_V2, "RelayV2Job"),
    ("DELETE", "/v2/queues/{queue}/jobs/{job_id}"): _call(
        _V2, "Remove a job", {200: Body(NOTHING, "There is no such job any more.")}, parameters=("/queue!", "/job_id!")
    ),
    ("PATCH", _RUN): _call(_V2, "Say that a run goes on", {202: _ACCEPTED}, 404, body=_STATE, parameters=_RUN_NAMES),
    ("PUT", _RUN): _call(
        _V2,
        "End a run and enqueue jobs",
        {202: Body(NOTHING, "Done; or the run was over, and nothing changed: then `Relay-Matched` is `false`.")},
        409,
        422,
        body=Body({JSON: "RelayV2Requeued"}),
        parameters=(*_RUN_NAMES, "mode"),
        help_=f"In one step, or not at all. {_HELP}",
    ),
    ("DELETE", _RUN): _call(
        _V2, "Complete a run", {200: Body(NOTHING, "Completed; or the run was over, and nothing changed.")}, parameters=_RUN_NAMES
    ),
}
