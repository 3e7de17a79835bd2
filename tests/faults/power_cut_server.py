"""The other program whose writes are recorded: a whole server with its processes, and in the same record its clients.

    python -m tests.faults.power_cut_server '{"folder": …}'

Each client has a queue of its own and does one thing after the other; together they make the commits of two shards. Told is what each sends, before it
sends it, and what it was answered, once it has that. Which batches the shards commit is not told: here only the clients judge.
"""

from __future__ import annotations

import http.client
import json
import os
import random
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from urllib.parse import quote

import msgspec

from proteus_shards.core.commands import Command, Complete, Delivered, Delivery, Done, Enqueue, Heartbeat, Next, Outcome, Reason, Refused
from proteus_shards.core.commands_control import SetQueue
from tests.conftest import REQUEST_SECONDS_MAX, Server
from tests.faults.power_cut_work import LIVE_MAX, PAYLOAD_BYTES, Answered, Orders, Prepared, Sent, Tell, settings_patch, teller

CLIENTS = 6
TIMEOUT_SECONDS = 3600


class Client:
    """One client: asks, and knows its jobs."""

    def __init__(self, index: int, server: Server, tell: Tell, orders: Orders, numbers: count[int]) -> None:
        self._chance = random.Random(f"{orders.seed} {index}")
        self._queue = f"queue-{index}"
        self._ids = count(orders.first + index, CLIENTS)
        self._operations = orders.operations // CLIENTS
        self._numbers = numbers
        self._tell = tell
        self._live: list[str] = []
        self._connection = http.client.HTTPConnection(server.host, server.port, timeout=REQUEST_SECONDS_MAX)

    def run(self) -> None:
        """Do all operations."""
        for _ in range(self._operations):
            self._do(self._choose())
        self._connection.close()

    def _choose(self) -> Command:
        draw = self._chance.random()
        if not self._live or draw < (0.5 if len(self._live) < LIVE_MAX // CLIENTS else 0.1):
            name = str(next(self._ids))
            payload = b'"%s %s"' % (name.encode(), b"x" * self._chance.choice(PAYLOAD_BYTES))
            return Enqueue(self._queue, name, TIMEOUT_SECONDS, True, -1, payload)
        if draw < 0.54:
            return SetQueue(self._queue, settings_patch(self._chance))
        if draw < 0.65:
            return Next(self._queue, self._chance.choice((1, 1, 3)))
        name = self._chance.choice(self._live)
        return Heartbeat(self._queue, name, None, b'"%d"' % self._chance.getrandbits(30)) if draw < 0.8 else Complete(self._queue, name)

    def _do(self, command: Command) -> None:
        number = next(self._numbers)
        self._tell(Sent([(number, command)]))
        outcome = self._ask(command)
        if isinstance(command, Enqueue) and isinstance(outcome, Done):
            self._live.append(command.id)
        elif isinstance(command, Complete) and isinstance(outcome, Done):
            self._live.remove(command.id)
        self._tell(Answered([(number, outcome)]))

    def _ask(self, command: Command) -> Outcome:
        if isinstance(command, Enqueue):
            rest = {"id": command.id, "queue": command.queue, "timeout": command.timeout, "persist_data": True, "max_retries": -1}
            body = json.dumps(rest).encode()[:-1] + b',"payload":' + command.payload + b"}"
            status, said = self._send("POST", "/enqueue", body)
        elif isinstance(command, Next):
            status, said = self._send("GET", f"/next?queue={self._queue}&num_jobs={command.count}")
        elif isinstance(command, Heartbeat):
            status, said = self._send("PATCH", f"/heartbeat?queue={self._queue}&job_id={quote(command.id)}", command.state)
        elif isinstance(command, SetQueue):
            status, said = self._send("PATCH", f"/queue?queue={self._queue}", command.patch)
        else:
            assert isinstance(command, Complete)
            status, said = self._send("DELETE", f"/complete?queue={self._queue}&job_id={quote(command.id)}")
        assert status in (200, 202, 204, 404), f"{status} {said!r}"  # nothing is wrong until the power goes
        if status == 404:
            return Refused(Reason.NOT_FOUND, "")
        if not isinstance(command, Next):
            return Done()
        jobs = json.loads(said or b"[]")
        found = jobs if isinstance(jobs, list) else [jobs]
        return Delivered([Delivery(self._queue, job["id"], 0, True, 0, b"", None, None, b"", job["attempt"], 0, 0) for job in found])

    def _send(self, method: str, path: str, body: bytes | None = None) -> tuple[int, bytes]:
        self._connection.request(method, path, body)
        response = self._connection.getresponse()
        return response.status, response.read()


def main() -> None:
    """Do what the argument orders."""
    orders = msgspec.json.decode(sys.argv[1], type=Orders)
    tell = teller(orders)
    folder = Path(orders.told).parent
    store = f"sqlite:///{orders.folder}?synchronous={orders.synchronous}"
    server = Server("--port", "0", "--shards", str(orders.shards), "--store", store, cwd=folder, environ=os.environ)
    try:
        tell(Prepared())
        numbers = count()
        clients = [Client(index, server, tell, orders, numbers) for index in range(CLIENTS)]
        with ThreadPoolExecutor(CLIENTS) as pool:
            for done in [pool.submit(client.run) for client in clients]:
                done.result()
    finally:
        status = server.stop()
    assert status == 0, server.log()


if __name__ == "__main__":
    main()
