"""What operators ask and change, through a client against a real server."""

from __future__ import annotations

import pytest

from proteus_shards.client import Client, Invalid, NewJob, NotFound


def test_queues_are_gone_through_page_by_page(client: Client, queue: str) -> None:
    """By name, with what is in each."""
    for number in range(5):
        client.enqueue(f"{queue}-{number}", timeout=30)
    first = client.queues(contains=queue, limit=2)

    assert [f"{queue}-0", f"{queue}-1"] == [found.queue for found in first.items]
    assert first.next is not None
    assert [(f"{queue}-{number}", 1) for number in range(5)] == [
        (found.queue, found.ready) for found in client.each_queue(contains=queue, limit=2)
    ]


def test_settings_are_changed_and_taken_back(client: Client, queue: str) -> None:
    """None is the default; a wrong one is named."""
    changed = client.set_queue(queue, max_in_flight=3, backoff={"seconds": 1})
    restored = client.set_queue(queue, max_in_flight=None)

    assert {"max_in_flight": 3, "backoff": {"seconds": 1.0}} == changed.settings
    assert {"backoff": {"seconds": 1.0}} == restored.settings == client.get_queue(queue).settings
    with pytest.raises(Invalid) as caught:
        client.set_queue(queue, max_in_flight=0)
    assert "max_in_flight" == caught.value.problem.field


def test_jobs_are_listed_shown_and_found(client: Client, queue: str) -> None:
    """With all there is to know of them, and payloads only where they are wanted."""
    client.enqueue_many(NewJob(id=f"{queue}-{number}", queue=queue, timeout=30, payload=[number]) for number in range(5))
    running = client.next(queue)
    assert running is not None
    listed = list(client.each_job(queue, state="ready", bodies=False, limit=2))
    shown = client.get_job(queue, running.id)

    assert [f"{queue}-{number}" for number in range(1, 5)] == [job.id for job in listed]
    assert {None} == {job.payload for job in listed}
    assert ("in_flight", [0], running.run_id, 1) == (shown.state_name, shown.payload, shown.run_id, shown.attempt)
    assert [queue] == [job.queue for job in client.find(running.id)]
    assert [] == client.find("no such job")
    with pytest.raises(NotFound):
        client.get_job(queue, "no such job")


def test_a_queue_is_paused_and_resumed(client: Client, queue: str) -> None:
    """It says so itself."""
    client.pause(queue)
    assert client.get_queue(queue).paused
    client.resume(queue)

    assert not client.get_queue(queue).paused


def test_a_server_says_what_it_is(client: Client) -> None:
    """Its health is there without a shard."""
    assert ("ok", "memory") == (client.health()["status"], client.health()["store"])
