"""The dashboard's view of a cluster in a real Chromium, before a front whose node and shards are doubles."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from playwright.sync_api import Browser, ViewportSize, expect

from proteus_shards.ipc.hosts import Asked, Drain, Forget, Move
from proteus_shards.tokens import new_token
from tests.conftest import Server as RealServer
from tests.conftest import eventually
from tests.dashboard.chromium import DESKTOP, PATIENCE_MS, PHONE, find_chromium, launched, watched
from tests.dashboard.cluster_site import GONE, SETTINGS, Site
from tests.front.fake_node import HERE, THERE, owners_of

CHROMIUM = find_chromium()
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed (apt-get install chromium)")
expect.set_options(timeout=PATIENCE_MS)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Return the browser of this file."""
    assert CHROMIUM is not None
    with launched(CHROMIUM) as browser:
        yield browser


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    """Return a front in a cluster."""
    with Site(tmp_path) as made:
        yield made


def test_hosts_and_shards_are_shown_and_followed(browser: Browser, site: Site) -> None:
    """Without a reload; and what is wrong stands on every page."""
    with watched(browser, site.url) as tab:
        page = tab.open("/")
        page.get_by_role("link", name="Cluster").click()
        hosts, shards = page.locator("table.plain").nth(0), page.locator("table.plain").nth(1)
        expect(hosts.locator("tbody tr")).to_have_count(3)
        expect(hosts.locator("tbody tr").nth(0)).to_contain_text(re.compile("this host.*alive.*3"))
        expect(hosts.locator("tbody tr").nth(2)).to_contain_text("dead")
        expect(shards.locator("tbody tr").nth(5)).to_contain_text("nobody")
        expect(shards.locator("tbody tr").nth(3)).to_contain_text("moves to " + HERE)
        expect(shards.locator("tbody tr").nth(0)).to_contain_text("7")
        expect(page.locator("#banner")).to_contain_text(f"Dead: {GONE}. 1 shard with nobody.")
        site.say(owners_of(HERE, THERE, HERE, THERE, THERE, THERE, turn=2))
        expect(hosts.locator("tbody tr")).to_have_count(2)
        expect(shards.locator("tbody tr").nth(5)).to_contain_text(THERE)
        expect(page.locator("#banner")).to_be_hidden()
        page.get_by_role("link", name="Overview", exact=True).click()
        expect(page.locator("table.plain tbody tr")).to_have_count(2)
        expect(page.locator(".whose")).to_have_text("of the host " + HERE)


def test_shards_are_moved_and_hosts_drained_and_forgotten(browser: Browser, site: Site) -> None:
    """Each after a question; a refusal is told in the dialog."""
    with watched(browser, site.url) as tab:
        tab.expected = {"/cluster/forget"}
        page = tab.open("/?view=cluster")
        rows = page.locator("table.plain").nth(0).locator("tbody tr")
        page.locator("table.plain").nth(1).locator("tbody tr").nth(2).get_by_role("button", name="Move…").click()
        expect(page.locator("dialog option")).to_have_text([THERE])
        page.locator("dialog").get_by_role("button", name="Move", exact=True).click()
        expect(page.locator("dialog")).to_have_count(0)
        rows.nth(0).get_by_role("button", name="Drain…").click()
        page.keyboard.press("Escape")
        expect(page.locator("dialog")).to_have_count(0)
        rows.nth(1).get_by_role("button", name="Drain…").click()
        page.locator("dialog").get_by_role("button", name="Drain", exact=True).click()
        expect(page.locator("dialog")).to_have_count(0)
        site.node.answer = lambda wish: Asked(getattr(wish, "number", 0), "it has beaten again")
        rows.nth(2).get_by_role("button", name="Forget…").click()
        page.locator("dialog").get_by_role("button", name="Forget", exact=True).click()
        expect(page.locator("dialog .wrong")).to_have_text("it has beaten again")
        eventually(lambda: len(site.wishes) == 3)

    assert [Move(1, 2, THERE), Drain(2, THERE, draining=True), Forget(3, GONE)] == site.wishes


def test_who_may_only_read_is_offered_nothing(browser: Browser, tmp_path: Path) -> None:
    """And sees the same."""
    token, line = new_token("reader", ["read"], ["*"], None)
    (tmp_path / "tokens").write_text(line + "\n")
    with Site(tmp_path, msgspec.structs.replace(SETTINGS, tokens_file=str(tmp_path / "tokens"))) as site, watched(browser, site.url) as tab:
        tab.page.add_init_script(f"sessionStorage.setItem('proteus-token', {json.dumps(token)})")
        page = tab.open("/?view=cluster")
        expect(page.locator("table.plain").nth(1).locator("tbody tr")).to_have_count(6)
        expect(page.locator("main button")).to_have_count(0)


@pytest.mark.parametrize("viewport", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_it_fits_its_window(viewport: ViewportSize, browser: Browser, site: Site) -> None:
    """Long names scroll in their table."""
    with watched(browser, site.url, viewport) as tab:
        page = tab.open("/?view=cluster")
        expect(page.locator("table.plain").nth(1).locator("tbody tr")).to_have_count(6)
        width = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")

    assert 0 == width


def test_without_a_cluster_there_is_no_tab(browser: Browser, server: RealServer) -> None:
    """And the page says that there is none."""
    with watched(browser, server.url) as tab:
        page = tab.open("/?view=cluster")
        expect(page.get_by_text("This server is in no cluster.")).to_be_visible()
        expect(page.locator("#cluster-tab")).to_be_hidden()
