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


def let_die(client: Client, queue: str, count: int) -> None:
    """Leave dead letters in a queue."""
    for number in range(count):
        client.enqueue(queue, number, id=str(number), timeout=0)
        assert client.next(queue, wait=20) is not None
    while client.get_queue(queue).dead < count:
        assert client.next(queue, wait=0.05) is None


def test_dead_letters_are_redriven_in_their_order_and_removed(client: Client, queue: str) -> None:
    """Some by their ids, the others too."""
    let_die(client, queue, 4)

    assert 2 == client.redrive(queue, ids=["1", "3"])
    assert ["0", "2"] == [letter.id for letter in client.each_dead(queue)]
    assert 2 == client.purge(queue, state="dead")
    assert [] == client.dead(queue).items
    assert ["1", "3"] == [job.id for job in client.next_many(queue, 10)]


def test_what_waits_is_purged(client: Client, queue: str) -> None:
    """And nothing else, where nothing else is asked for."""
    client.enqueue_many(NewJob(id=str(number), queue=queue, timeout=30) for number in range(5))
    running = client.next(queue)

    assert running is not None
    assert 4 == client.purge(queue)
    client.complete(running)


def test_a_job_is_changed_and_removed(client: Client, queue: str) -> None:
    """One that was scheduled is promoted; one that is removed is gone."""
    client.enqueue(queue, id="1", timeout=30, run_at="2099-01-01T00:00:00Z")
    assert "scheduled" == client.get_job(queue, "1").state_name
    client.change_job(queue, "1", run_at=None)
    assert "ready" == client.get_job(queue, "1").state_name
    client.delete_job(queue, "1")

    with pytest.raises(NotFound):
        client.get_job(queue, "1")


def test_recurring_jobs_are_made_listed_and_removed(client: Client, queue: str) -> None:
    """By cron or by interval."""
    made = client.put_schedule(queue, "nightly", {"timeout": 30}, cron="0 3 * * *", timezone="Europe/Berlin")
    client.put_schedule(queue, "often", {"timeout": 30, "payload": [1]}, every=3600, overlap="skip")

    assert ("0 3 * * *", "Europe/Berlin", {"timeout": 30}) == (made.cron, made.timezone, made.job)
    assert made.next_at is not None
    assert ["nightly", "often"] == [schedule.name for schedule in client.each_schedule(queue, limit=1)]
    assert (3600, "skip") == (client.get_schedule(queue, "often").every, client.get_schedule(queue, "often").overlap)
    client.delete_schedule(queue, "often")
    with pytest.raises(NotFound):
        client.get_schedule(queue, "often")
