"""Pictures of the dashboard, to be looked at: `python -m tests.screenshots FOLDER [--seconds 20]`.

Each page at desktop and phone width, light and dark, with 0, 10 and 5,000 queues, after some seconds of jobs that are enqueued, run, retried and given
up by runners of all sorts. With `--readme` only the pictures that the README shows are made, where it shows them.
"""

from __future__ import annotations

import argparse
import http.client
import json
import math
import random
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from playwright.sync_api import Browser, ViewportSize

from tests.conftest import Server
from tests.dashboard.chromium import DESKTOP, PHONE, find_chromium, launched

FOLDER = Path(__file__).resolve().parent.parent / "deploy" / "screenshots"
QUEUES = {"mail": 8, "invoices": 4, "thumbnails": 6, "search-index": 5, "webhooks": 3, "reports/daily": 1, "billing:eu": 2, "exports": 2}
QUEUES |= {"transcode": 1, "cleanup": 1}
MANY = 5000
VARIANTS: dict[str, tuple[ViewportSize, str]] = {
    "desktop-light": (DESKTOP, "light"),
    "desktop-dark": (DESKTOP, "dark"),
    "phone-light": (PHONE, "light"),
    "phone-dark": (PHONE, "dark"),
}
SMALL: dict[str, tuple[ViewportSize, str]] = {  # for the README
    "small-light": ({"width": 1240, "height": 775}, "light"),
    "small-dark": ({"width": 1240, "height": 775}, "dark"),
}
SETTLE_MS = 2500


def at(**page: str) -> str:
    """Return the path of a page."""
    return "/?" + urlencode(page) if page else "/"


PAGES = {
    "overview": at(),
    "queues": at(view="queues"),
    "queue": at(view="queue", queue="mail"),
    "in-flight": at(view="queue", queue="thumbnails", state="in_flight"),
    "dead": at(view="queue", queue="webhooks", state="dead"),
    "job": at(view="job", queue="webhooks", job_id="broken"),
    "schedules": at(view="schedules"),
}
README = {
    "overview": (PAGES["overview"], "small-light"),
    "job": (PAGES["job"], "small-dark"),
    "phone": (PAGES["queues"], "phone-light"),
}


class Traffic:
    """Producers and runners, until the end of a `with`."""

    def __init__(self, server: Server, queues: dict[str, int]) -> None:
        self._server = server
        self._queues = queues
        self._ended = threading.Event()
        self._threads = [threading.Thread(target=self._keep(work)) for work in (self._produce, *[self._run] * 6)]

    def __enter__(self) -> None:
        for thread in self._threads:
            thread.start()

    def __exit__(self, *exc: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join()

    def _keep(self, work: Callable[[http.client.HTTPConnection], None]) -> Callable[[], None]:
        def loop() -> None:
            connection = http.client.HTTPConnection(self._server.host, self._server.port, timeout=20)
            while not self._ended.is_set():
                work(connection)
            connection.close()

        return loop

    def _queue(self) -> str:
        return random.choices(list(self._queues), list(self._queues.values()))[0]

    def _produce(self, connection: http.client.HTTPConnection) -> None:
        jobs = []
        for _ in range(int(3 + 2.4 * math.sin(time.monotonic() / 8) + random.random())):
            number = random.randrange(10**9)
            job = {
                "id": f"{number:x}",
                "queue": self._queue(),
                "timeout": random.choice([1, 30, 60]),
                "max_retries": 1,
                "payload": {"n": number},
            }
            job["persist_data"] = random.random() < 0.4
            if random.random() < 0.01:
                job["run_at"] = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + random.randrange(30, 400)))
            jobs.append(job)
        ask(connection, "POST", "/enqueue", jobs)
        self._ended.wait(0.06)

    def _run(self, connection: http.client.HTTPConnection) -> None:
        queue = self._queue()
        job = ask(connection, "GET", "/next?" + urlencode({"queue": queue, "wait": 1}))
        if job is None:
            return
        named = urlencode({"queue": queue, "job_id": job["id"], "run_id": job["run_id"]})
        fate = random.random()
        if fate < 0.02:
            ask(connection, "PATCH", f"/heartbeat?{named}", {"done": random.randrange(100), "of": 100})
            return  # and is never heard of again
        self._ended.wait(random.lognormvariate(-4, 1))
        if fate < 0.05:
            ask(connection, "POST", f"/fail?{named}", {"error": "connect: connection refused"})
        else:
            ask(connection, "DELETE", f"/complete?{named}")


def ask(connection: http.client.HTTPConnection, method: str, path: str, body: object = None) -> Any:
    """Send a request, and return what the answer's JSON says, if there is any."""
    connection.request(method, path, json.dumps(body) if body is not None else None)
    data = connection.getresponse().read()
    return json.loads(data) if data else None


def prepare(server: Server, queues: int) -> None:
    """Put some jobs in that stay, and give some queues something to show."""
    for begin in range(0, queues, 1000):
        jobs = [{"id": "1", "queue": f"tenant-{number:04}/events", "timeout": 60} for number in range(begin, begin + 1000)]
        server.request("POST", "/enqueue", jobs)
    server.request("PATCH", "/queue?queue=webhooks", {"max_in_flight": 20, "rate": {"jobs": 50}, "backoff": {"seconds": 1, "factor": 2}})
    server.request("POST", "/pause?queue=cleanup")
    server.request(
        "PUT", "/schedule?queue=reports%2Fdaily&name=nightly", {"cron": "0 3 * * *", "timezone": "Europe/Berlin", "job": {"timeout": 60}}
    )
    server.request("PUT", "/schedule?queue=cleanup&name=sweep", {"every": 60, "job": {"timeout": 60}, "paused": True})
    payload = {
        "url": "https://shop.example/hooks",
        "event": "order.paid",
        "order": 20481123456789012345,
        "items": [{"sku": "A-1", "n": 2}],
        "retry": True,
    }
    server.request("POST", "/enqueue", {"id": "broken", "queue": "webhooks", "timeout": 30, "max_retries": 2, "payload": payload})
    for number in range(3):
        found = server.request("GET", "/next?queue=webhooks&wait=10")
        if found.status == 200:
            named = urlencode({"queue": "webhooks", "job_id": "broken"})
            server.request("PATCH", f"/heartbeat?{named}", {"sent": number})
            server.request("POST", f"/fail?{named}", {"error": f"POST https://shop.example/hooks: 50{number}"})


@contextmanager
def busy(queues: int, seconds: float) -> Iterator[Server]:
    """Run a server with so many queues, and traffic for some seconds before and all the while."""
    with tempfile.TemporaryDirectory() as folder:
        server = Server("--port", "0", "--shards", "2", cwd=Path(folder), environ={})
        try:
            if not queues:
                yield server
                return
            prepare(server, queues if queues > len(QUEUES) else 0)
            with Traffic(server, QUEUES):
                time.sleep(seconds)
                yield server
        finally:
            server.stop()


def take(browser: Browser, server: Server, path: str, variant: str, file: Path, *, whole: bool = True) -> None:
    """Take one picture."""
    viewport, scheme = (VARIANTS | SMALL)[variant]
    context = browser.new_context(viewport=viewport, color_scheme=scheme)  # type: ignore[arg-type]
    page = context.new_page()
    page.goto(server.url + path)
    page.wait_for_selector("h1")
    page.wait_for_timeout(SETTLE_MS)
    page.screenshot(path=file, full_page=whole)
    context.close()
    sys.stdout.write(f"{file} {file.stat().st_size:,} bytes\n")


def main() -> None:
    """Take all pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=FOLDER)
    parser.add_argument("--seconds", type=float, default=20.0, help="of traffic before the first picture")
    parser.add_argument("--readme", action="store_true", help="only those that the README shows")
    given = parser.parse_args()
    path = find_chromium()
    if path is None:
        sys.exit("no Chromium is installed (apt-get install chromium)")
    given.folder.mkdir(parents=True, exist_ok=True)
    with launched(path) as browser:
        if given.readme:
            with busy(len(QUEUES), given.seconds) as server:
                for name, (page, variant) in README.items():
                    take(browser, server, page, variant, given.folder / f"{name}.png", whole=False)
            return
        for queues in (0, len(QUEUES), MANY):
            with busy(queues, given.seconds) as server:
                for name, page in PAGES.items():
                    for variant in VARIANTS:
                        if queues == len(QUEUES) or name in {"overview", "queues"}:
                            take(browser, server, page, variant, given.folder / f"{queues}-{name}-{variant}.png", whole=queues != MANY)


if __name__ == "__main__":
    main()
