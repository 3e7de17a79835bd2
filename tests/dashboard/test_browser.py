"""The dashboard in a real Chromium: it follows what happens, does what it offers, and is broken by no name and no payload."""

from __future__ import annotations

import hashlib
import json
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import pytest
from playwright.sync_api import Browser, Page, ViewportSize, expect

from tests.conftest import Server, eventually
from tests.dashboard.chromium import DESKTOP, PATIENCE_MS, PHONE, Watched, find_chromium, launched, watched

CHROMIUM = find_chromium()
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed (apt-get install chromium)")
expect.set_options(timeout=PATIENCE_MS)

HOSTILE = [
    "<img src=x onerror=window.hit=1>",
    '"><script>window.hit=1</script>',
    "javascript:window.hit=1",
    "{{ 7*7 }}${7*7}`",
    "' onfocus='window.hit=1' autofocus='",
    "../../etc/passwd",
    "a/b//c?d=e&f#g%2F%00+ h",
    "\u202egnp.exe\u200b",
    "العربية – mixed – עברית",
    "x" * 1024,
    "\N{GRINNING FACE}" * 256,
    "__proto__",
    "..",
]
OPEN = Callable[..., Watched]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Return the browser of this file."""
    assert CHROMIUM is not None
    with launched(CHROMIUM) as browser:
        yield browser


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Return the server of this file: two shards, in memory."""
    server = Server("--port", "0", "--shards", "2", "--store", "memory:", cwd=tmp_path_factory.mktemp("site"), environ={})
    yield server
    server.stop()


def enqueue(server: Server, *jobs: dict[str, Any]) -> None:
    """Enqueue jobs, whole."""
    for at in range(0, len(jobs), 1000):
        answer = server.request("POST", "/enqueue", [{"timeout": 600, **job} for job in jobs[at : at + 1000]])
        assert answer.status == 202, answer.body


def take(server: Server, queue: str) -> dict[str, Any]:
    """Take the next job of a queue."""
    answer = server.request("GET", f"/next?queue={quote(queue, safe='')}")
    assert answer.status == 200
    taken: dict[str, Any] = answer.json()
    return taken


def queue_of(server: Server, queue: str) -> dict[str, Any]:
    """Return a queue as the API shows it."""
    shown: dict[str, Any] = server.request("GET", "/queue?" + urlencode({"queue": queue})).json()
    return shown


def at(**page: str) -> str:
    """Return the path of a page."""
    return "/?" + urlencode(page)


def confirm(page: Page, button: str) -> None:
    """Confirm the dialog that is open, and wait until it is gone."""
    page.locator("dialog").get_by_role("button", name=button, exact=True).click()
    expect(page.locator("dialog")).to_have_count(0)


def overflow(page: Page) -> int:
    """Return by how many pixels a page is wider than its window."""
    width: int = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    return width


def test_the_overview_follows_what_happens(browser: Browser, site: Server) -> None:
    """Without a reload: numbers, plots, shards and the deepest queue."""
    with watched(browser, site.url) as tab:
        page = tab.open("/")
        expect(page.locator("#live")).to_have_text("Live")
        expect(page.locator("table.plain tbody tr")).to_have_count(2)
        expect(page.locator("table.plain .badge.good")).to_have_count(2)
        enqueue(site, *({"id": str(number), "queue": "followed"} for number in range(300)))
        tile = page.locator(".tile", has=page.get_by_text("Waiting", exact=True)).locator("b")
        expect(tile).to_have_text(re.compile(r"^[3-9]\d\d$"))
        expect(page.locator(".deepest li").first).to_contain_text("followed")
        expect(page.locator(".deepest li").first).to_contain_text("300 waiting")
        expect(page.locator(".chart .line.enqueued").first).to_have_attribute("d", re.compile("L"))
        assert site.request("POST", "/pause?queue=followed").status == 202
        expect(page.locator(".deepest li").first).to_contain_text("paused")
        expect(page.locator(".deepest li .badge:visible")).to_have_count(1)
        assert site.request("DELETE", "/complete?queue=followed&job_id=0").status == 200
        expect(page.locator(".deepest li").first).to_contain_text("299 waiting")


def test_updates_can_be_paused(browser: Browser, site: Server) -> None:
    """And the server is asked for nothing while they are."""
    with watched(browser, site.url) as tab:
        page = tab.open("/")
        expect(page.locator("#live")).to_have_text("Live")
        page.click("#live")
        expect(page.locator("#live")).to_have_text("Paused")
        page.click("#live")
        expect(page.locator("#live")).to_have_text("Live")


def test_a_page_finds_the_successor_of_its_front(browser: Browser, site: Server) -> None:
    """SIGHUP ends the stream, and the page asks again."""
    with watched(browser, site.url) as tab:
        tab.expected = {"/"}
        page = tab.open("/")
        expect(page.locator("#live")).to_have_text("Live")
        page.evaluate("window.seen = []; new MutationObserver(() => seen.push(live.dataset.state)).observe(live, {attributes: true})")
        site.process.send_signal(signal.SIGHUP)
        eventually(lambda: page.evaluate("seen.includes('lost') && seen.at(-1) === 'live'"))


def test_a_queue_is_paused_and_resumed(browser: Browser, site: Server) -> None:
    """Each after a question that can be answered with no."""
    enqueue(site, {"id": "1", "queue": "stopped"})
    with watched(browser, site.url) as tab:
        page = tab.open(at(view="queue", queue="stopped"))
        pause = page.get_by_role("button", name="Pause…")
        pause.click()
        page.keyboard.press("Escape")
        expect(page.locator("dialog")).to_have_count(0)
        expect(pause).to_be_focused()
        assert not queue_of(site, "stopped")["paused"]
        pause.click()
        confirm(page, "Pause")
        expect(page.locator(".title .badge")).to_be_visible()
        assert queue_of(site, "stopped")["paused"]
        page.get_by_role("link", name="1", exact=True).click()
        expect(page.locator(".why")).to_contain_text("Its queue is paused.")
        page.locator(".why").get_by_role("button", name="Resume…").click()
        confirm(page, "Resume")
        expect(page.locator(".why")).not_to_contain_text("paused")
        assert not queue_of(site, "stopped")["paused"]


def test_a_test_job_is_enqueued(browser: Browser, site: Server) -> None:
    """With its payload to the byte; what is no JSON is told, and the dialog stays."""
    payload = '{"big": 12345678901234567890, "pi": 3.140, "again": 1, "again": 2}'
    with watched(browser, site.url) as tab:
        page = tab.open(at(view="queue", queue="tried"))
        page.get_by_role("button", name="Enqueue a test job…").click()
        dialog = page.locator("dialog")
        dialog.get_by_label("Id").fill("mine")
        dialog.get_by_label("Payload, any JSON").fill("{")
        dialog.get_by_role("button", name="Enqueue").click()
        expect(dialog.get_by_role("alert")).to_be_visible()
        dialog.get_by_label("Payload, any JSON").fill(payload)
        confirm(page, "Enqueue")
        page.get_by_role("link", name="mine").click()
        shown = page.get_by_role("region", name="Payload")
        expect(shown).to_have_text('{\n  "big": 12345678901234567890,\n  "pi": 3.140,\n  "again": 1,\n  "again": 2\n}', use_inner_text=True)
    assert payload.encode() in site.request("GET", "/next?queue=tried").body


def test_settings_are_changed_in_a_form(browser: Browser, site: Server) -> None:
    """What is left empty is the default, and what the server refuses is shown with its reason."""
    with watched(browser, site.url) as tab:
        tab.expected = {"/queue?"}
        page = tab.open(at(view="queue", queue="set"))
        page.get_by_role("button", name="Settings…").click()
        dialog = page.locator("dialog")
        dialog.get_by_label("Most in flight").fill("7")
        dialog.get_by_label("Rate: jobs").fill("100")
        dialog.get_by_label("Backoff, seconds").fill("2.5")
        dialog.get_by_label("times, each time").fill("1000")
        dialog.locator("form").evaluate("form => (form.noValidate = true)")
        dialog.get_by_role("button", name="Save").click()
        expect(dialog.get_by_role("alert")).to_contain_text("backoff: must be")
        dialog.get_by_label("times, each time").fill("2")
        confirm(page, "Save")
        expect(page.locator(".facts")).to_contain_text("Most in flight7")
        assert queue_of(site, "set")["settings"] == {"max_in_flight": 7, "rate": {"jobs": 100}, "backoff": {"seconds": 2.5, "factor": 2.0}}
        page.get_by_role("button", name="Settings…").click()
        dialog.get_by_label("Rate: jobs").fill("")
        confirm(page, "Save")
        expect(page.locator(".facts")).not_to_contain_text("Rate")


def test_a_job_in_flight_is_shown_with_its_state(browser: Browser, site: Server) -> None:
    """In the list of its queue and on its own page, as it changes."""
    enqueue(site, {"id": "long", "queue": "running", "payload": [1]})
    take(site, "running")
    with watched(browser, site.url) as tab:
        page = tab.open(at(view="queue", queue="running", state="in_flight"))
        expect(page.get_by_role("row").nth(1)).to_contain_text("long")
        assert site.request("PATCH", "/heartbeat?queue=running&job_id=long", {"done": 40}).status == 202
        expect(page.get_by_role("row").nth(1)).to_contain_text('{"done":40}')
        page.get_by_role("link", name="long").click()
        expect(page.locator(".title .badge")).to_have_text("in flight")
        expect(page.get_by_role("region", name="State")).to_contain_text('"done": 40')
        tab.expected = {"/job?"}
        assert site.request("DELETE", "/complete?queue=running&job_id=long").status == 200
        expect(page.locator(".title .badge")).to_have_text("gone")


def test_a_job_is_found_by_its_id_in_all_queues(browser: Browser, site: Server) -> None:
    """By whoever has only the id."""
    enqueue(site, *({"id": "needle", "queue": f"hay {number}"} for number in range(5)))
    with watched(browser, site.url) as tab:
        page = tab.open("/")
        page.get_by_role("searchbox", name="Find a job by its id").fill("needle")
        page.keyboard.press("Enter")
        expect(page.get_by_role("link", name="needle")).to_have_count(5)


@pytest.mark.parametrize(("viewport", "names"), [(DESKTOP, HOSTILE), (PHONE, HOSTILE[7:11])], ids=["desktop", "phone"])
def test_no_name_and_no_payload_breaks_a_page(viewport: ViewportSize, names: list[str], browser: Browser, site: Server) -> None:
    """Markup stays text, directions stay inside, and what is long is no wider than the window."""
    for name in names:
        site.request("POST", "/enqueue", {"id": name, "queue": name, "timeout": 600, "payload": {name: [name]}})
    with watched(browser, site.url, viewport) as tab:
        page = tab.open("/?view=queues")
        for name in names:
            page.get_by_role("searchbox", name="Filter queues").fill(name)
            first = page.locator(".grid-body .grid-row[aria-rowindex='2'] a")
            expect(first.locator("bdi")).to_have_attribute("data-name", name)
            first.click()
            expect(page.locator("h1 bdi")).to_have_attribute("data-name", name)
            page.locator(".grid-body a").first.click()
            expect(page.locator(".title .badge")).to_have_text("ready")
            expect(page.locator("h1 bdi")).to_have_attribute("data-name", name)
            assert json.loads(page.get_by_role("region", name="Payload").text_content() or "") == {name: [name]}
            assert overflow(page) <= 0
            page.get_by_role("link", name="Queues", exact=True).first.click()
        page.get_by_role("link", name="Overview", exact=True).click()
        expect(page.locator(".deepest li").first).to_be_visible()
        assert overflow(page) <= 0
        assert page.evaluate("window.hit") is None


def test_thousands_of_queues_are_no_burden(browser: Browser, tmp_path: Path) -> None:
    """Only the rows near the window are there; sorting and filtering look at all of them."""
    site = Server("--port", "0", "--shards", "2", "--store", "memory:", cwd=tmp_path, environ={})
    try:
        enqueue(site, *({"id": str(job), "queue": f"queue-{number:04}"} for number in range(3000) for job in range(1 + (number == 1234))))
        with watched(browser, site.url) as tab:
            page = tab.open("/?view=queues")
            expect(page.get_by_text("3,000 queues", exact=True)).to_be_visible()
            assert page.locator(".grid-body .grid-row").count() < 80
            page.get_by_role("button", name="Waiting").click()
            expect(page.locator(".grid-body .grid-row a").first).to_be_visible()
            expect(page.locator(".grid-body .grid-row[aria-rowindex='2']")).to_contain_text("queue-1234")
            page.keyboard.press("End")
            expect(page.locator(".grid-body .grid-row[aria-rowindex='3001']")).to_be_visible()
            page.get_by_role("searchbox", name="Filter queues").fill("-299")
            expect(page.get_by_text("10 queues", exact=True)).to_be_visible()
    finally:
        site.stop()


NAMELESS = """() => [...document.querySelectorAll('a[href], button, input, select, textarea, [role=region], [role=img], table, dialog')]
    .filter((node) => node.offsetParent !== null || node.ownerSVGElement !== undefined)
    .filter((node) => node.type !== 'hidden' && !(
        node.getAttribute('aria-label') || node.labels?.length || node.closest('table, section, dialog')?.getAttribute('aria-labelledby') && node.matches('table, dialog, section')
        || node.matches('table') && node.closest('[role=region]') || node.textContent.trim() && node.matches('a, button')))
    .map((node) => node.outerHTML.slice(0, 120))"""


@pytest.mark.parametrize("path", ["/", "/?view=queues", "/?view=queue&queue=named", "/?view=job&queue=named&job_id=1", "/?view=schedules"])
def test_all_that_can_be_used_has_a_name(path: str, browser: Browser, site: Server) -> None:
    """And each page has one heading of the first level, its landmarks, and a title of its own."""
    site.request("POST", "/enqueue", {"id": "1", "queue": "named", "timeout": 600})
    with watched(browser, site.url, PHONE, color_scheme="dark", reduced_motion="reduce") as tab:
        tab.expected = {"/schedules"}
        page = tab.open(path)
        expect(page.locator("#live")).to_have_text("Live")
        assert page.evaluate(NAMELESS) == []
        assert page.locator("h1").count() == 1
        assert [page.get_by_role(role).first.is_visible() for role in ("banner", "main", "navigation", "search", "contentinfo")] == [
            True
        ] * 5
        assert page.title().endswith(" · proteus-shards")
        assert overflow(page) <= 0


def test_a_keyboard_is_enough(browser: Browser, site: Server) -> None:
    """From the first key to a queue that is paused."""
    enqueue(site, {"id": "1", "queue": "by keys"})
    with watched(browser, site.url) as tab:
        page = tab.open(at(view="queues", contains="by keys"))
        page.keyboard.press("Tab")
        expect(page.get_by_role("link", name="Skip to content")).to_be_focused()
        page.keyboard.press("Enter")
        expect(page.locator("main")).to_be_focused()
        anchor = page.get_by_role("link", name="by keys")
        expect(anchor).to_be_visible()
        for _ in range(20):
            page.keyboard.press("Tab")
            if anchor.evaluate("node => node === document.activeElement"):
                break
        page.keyboard.press("Enter")
        pause = page.get_by_role("button", name="Pause…")
        expect(pause).to_be_visible()
        for _ in range(20):
            page.keyboard.press("Tab")
            if pause.evaluate("node => node === document.activeElement"):
                break
        page.keyboard.press("Enter")
        expect(page.get_by_role("dialog")).to_be_visible()
        page.keyboard.press("Enter")
        expect(page.locator(".title .badge")).to_be_visible()
    assert queue_of(site, "by keys")["paused"]


def test_the_theme_is_the_systems_until_another_is_chosen(browser: Browser, site: Server) -> None:
    """And then for good."""
    with watched(browser, site.url, color_scheme="dark") as tab:
        page = tab.open("/")
        background = "getComputedStyle(document.body).backgroundColor"
        dark = page.evaluate(background)
        page.click("#theme")
        light = page.evaluate(background)
        assert dark != light
        page.reload()
        assert page.evaluate(background) == light


def test_jobs_are_purged_by_state(browser: Browser, site: Server) -> None:
    """What the dialog names, and nothing else."""
    enqueue(site, *({"id": str(number), "queue": "purged"} for number in range(5)))
    enqueue(site, {"id": "later", "queue": "purged", "run_at": "2100-01-01T00:00:00Z"})
    take(site, "purged")
    with watched(browser, site.url) as tab:
        page = tab.open(at(view="queue", queue="purged"))
        page.get_by_role("button", name="Purge…").click()
        expect(page.locator("dialog").get_by_label("Which jobs")).to_have_value("ready")
        confirm(page, "Purge")
        expect(page.locator("#toasts")).to_contain_text("4 jobs removed.")
        expect(page.get_by_text("No job is ready.")).to_be_visible()
    shown = queue_of(site, "purged")
    assert (shown["ready"], shown["scheduled"], shown["in_flight"]) == (0, 1, 1)


def test_a_scheduled_job_is_promoted(browser: Browser, site: Server) -> None:
    """From its row and from its page."""
    enqueue(site, *({"id": name, "queue": "soon", "run_at": "2100-01-01T00:00:00Z"} for name in ("first", "second")))
    with watched(browser, site.url) as tab:
        page = tab.open(at(view="queue", queue="soon", state="scheduled"))
        page.get_by_role("row", name="first").get_by_role("button", name="Run this job now").click()
        confirm(page, "Run now")
        expect(page.get_by_role("link", name="first")).to_have_count(0)
        page.get_by_role("link", name="second").click()
        expect(page.locator(".why")).to_contain_text("It is scheduled for")
        page.get_by_role("button", name="Run now…").click()
        confirm(page, "Run now")
        expect(page.locator(".title .badge")).to_have_text("ready")
    assert [take(site, "soon")["id"] for _ in range(2)] == ["first", "second"]


def test_dead_letters_are_redriven_and_deleted(browser: Browser, site: Server) -> None:
    """One, all, or none of them; their history says why they died."""
    for name in ("one", "two", "three"):
        enqueue(site, {"id": name, "queue": "failed"})
        take(site, "failed")
        answer = site.request("POST", f"/fail?queue=failed&job_id={name}", {"error": f"<b>{name}</b> is broken"})
        assert answer.status == 202, answer.body
    with watched(browser, site.url) as tab:
        tab.expected = {"/job?"}
        page = tab.open(at(view="queue", queue="failed", state="dead"))
        page.get_by_role("row", name="one").get_by_role("button", name="Redrive this job").click()
        confirm(page, "Redrive")
        expect(page.get_by_role("link", name="one")).to_have_count(0)
        assert take(site, "failed")["id"] == "one"
        page.get_by_role("link", name="two").click()
        expect(page.locator(".why")).to_contain_text("Its runner said that it failed")
        expect(page.locator(".history")).to_contain_text("<b>two</b> is broken")
        page.get_by_role("button", name="Delete…").click()
        expect(page.get_by_role("button", name="Cancel")).to_be_focused()
        confirm(page, "Delete")
        expect(page.locator(".title .badge")).to_have_text("gone")
        page.goto(site.url + at(view="queue", queue="failed", state="dead"))
        page.get_by_role("button", name="Redrive…").click()
        confirm(page, "Redrive")
        expect(page.get_by_text("No dead letters.")).to_be_visible()
    assert take(site, "failed")["id"] == "three"


def test_a_job_that_is_blocked_says_by_which(browser: Browser, site: Server) -> None:
    """With a link to the one in its way."""
    enqueue(site, *({"id": name, "queue": "keyed", "key": "k"} for name in ("in the way", "behind it")))
    take(site, "keyed")
    with watched(browser, site.url) as tab:
        page = tab.open(at(view="queue", queue="keyed", state="blocked"))
        page.get_by_role("link", name="behind it").click()
        page.locator(".why").get_by_role("link", name="in the way").click()
        expect(page.locator(".title .badge")).to_have_text("in flight")


def test_a_page_asks_for_a_token_where_one_is_needed(browser: Browser, tmp_path: Path) -> None:
    """It goes out in a header and nowhere else, is forgotten with the tab, and what it does not allow is not offered."""
    lines = [
        {"name": name, "sha256": hashlib.sha256(f"secret-{name}".encode()).hexdigest(), "scopes": [name]} for name in ("read", "admin")
    ]
    (tmp_path / "tokens").write_text("\n".join(json.dumps(line) for line in lines))
    site = Server("--port", "0", "--shards", "1", "--store", "memory:", "--tokens-file", str(tmp_path / "tokens"), cwd=tmp_path, environ={})
    try:
        with watched(browser, site.url) as tab:
            tab.expected = {"/dashboard/events", "/queue"}
            urls: list[str] = []
            tab.page.on("request", lambda request: urls.append(request.url))
            page = tab.open("/")
            expect(page.get_by_role("alert")).to_contain_text("This server asks for a token.")
            for token, offered in (("read", 0), ("admin", 1)):
                page.click("#token")
                page.get_by_label("Token", exact=True).fill(f"secret-{token}")
                page.get_by_role("button", name="Use it").click()
                expect(page.locator("#live")).to_have_text("Live")
                page.goto(site.url + at(view="queue", queue="guarded"))
                expect(page.locator(".facts")).to_contain_text("Oldest waiting")
                expect(page.get_by_role("button", name="Pause…")).to_have_count(offered)
            assert not [url for url in urls if "secret" in url]
            assert page.evaluate("[localStorage.length, document.cookie]") == [0, ""]
    finally:
        site.stop()


def test_a_schedule_is_made_paused_and_deleted(browser: Browser, site: Server) -> None:
    """Its job goes to the byte through each change."""
    with watched(browser, site.url) as tab:
        page = tab.open("/?view=schedules")
        page.get_by_role("button", name="New schedule…").click()
        dialog = page.locator("dialog")
        dialog.get_by_label("Queue", exact=True).fill("by the clock")
        dialog.get_by_label("Name", exact=True).fill("nightly")
        dialog.get_by_label("Cron", exact=True).fill("0 3 * * *")
        dialog.get_by_label("Time zone", exact=True).fill("Europe/Berlin")
        dialog.get_by_label("Job", exact=True).fill('{"timeout": 60, "payload": {"n": 12345678901234567890}}')
        confirm(page, "Save")
        row = page.get_by_role("row", name="nightly")
        expect(row).to_contain_text("0 3 * * * Europe/Berlin")
        row.get_by_role("button", name="Pause").click()
        confirm(page, "Pause")
        expect(row.locator(".badge")).to_have_text("paused")
        kept = site.request("GET", "/schedule?queue=by+the+clock&name=nightly")
        assert b"12345678901234567890" in kept.body
        assert kept.json()["paused"] is True
        row.get_by_role("button", name="Delete").click()
        confirm(page, "Delete")
        expect(row).to_have_count(0)
    assert site.request("GET", "/schedule?queue=by+the+clock&name=nightly").status == 404
