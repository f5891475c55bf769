"""The page in a real browser, with the embedded model: ask, stream, stop, start anew."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, Request, Route, expect, sync_playwright

from tests.serving import RunningServer, serving

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium: install it, or name it in $CHROMIUM"),
]

SIZES = {"kiosk": (1024, 600), "phone": (390, 844), "desk": (1440, 900)}


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    with serving(None, "--slots", "2", "--ctx", "1024") as server:
        yield server


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM,
            args=["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"],
        )
        yield browser
        browser.close()


class Watched:
    """A page, what it asked the network for, and what it complained of."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.hosts: set[str] = set()
        self.problems: list[str] = []
        page.on("request", self._on_request)
        page.on("console", self._on_console)
        page.on("pageerror", lambda error: self.problems.append(str(error)))

    def _on_request(self, request: Request) -> None:
        if not request.url.startswith("data:"):
            self.hosts.add(urlsplit(request.url).hostname or "")

    def _on_console(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.problems.append(message.text)

    def ask(self, text: str) -> None:
        self.page.fill("#question", text)
        expect(self.page.locator("#send")).to_be_enabled(timeout=15_000)
        self.page.press("#question", "Enter")

    @property
    def answer(self):  # type: ignore[no-untyped-def]
        return self.page.locator('[data-role="assistant"]').last


@pytest.fixture
def watched(server: RunningServer, browser: Browser) -> Iterator[Watched]:
    page = browser.new_page(viewport={"width": 1024, "height": 600})
    watched = Watched(page)
    page.goto(server.url)
    yield watched
    page.close()
    assert watched.hosts == {"127.0.0.1"}, "a request left the machine"


def test_ask_stream_and_cost(watched: Watched) -> None:
    page = watched.page
    watched.ask("What are the early signs of dehydration in an infant?")
    expect(page.locator("#stop")).to_be_visible()
    expect(watched.answer).to_contain_text(re.compile(r"(\w+\W+){8}"), timeout=60_000)  # whatever it says
    cost = page.locator('[data-role="cost"]').last
    expect(cost).to_be_visible(timeout=60_000)
    expect(cost).to_contain_text("tok/s")
    expect(page.locator("#notice")).to_contain_text("too small for clinical use")
    assert watched.problems == []


def test_stop_keeps_what_came_and_frees_the_slot(watched: Watched, server: RunningServer) -> None:
    page = watched.page
    watched.ask("Write a very long list of all diseases that you know, with two sentences on each.")
    expect(watched.answer).not_to_be_empty(timeout=30_000)
    page.click("#stop")
    expect(page.locator("#send")).to_be_visible()

    def idle() -> bool:
        with server.client() as client:
            return all(slot["state"] == "idle" for slot in client.get("/live").json()["slots"])

    server.wait_until("slots idle", idle, 5)
    assert watched.answer.inner_text().strip()
    watched.ask("And what is fever?")
    expect(page.locator('[data-role="cost"]').last).to_be_visible(timeout=60_000)


def test_new_conversation_clears_the_slot(watched: Watched, server: RunningServer) -> None:
    page = watched.page
    watched.ask("My name is Amina and I have a cough.")
    expect(page.locator('[data-role="cost"]').last).to_be_visible(timeout=60_000)
    with page.expect_request(lambda r: r.method == "DELETE" and "/v1/conversations/" in r.url) as deleted:
        page.click("#new-conversation")
    response = deleted.value.response()
    assert response and response.status == 204
    expect(page.locator('[data-role="user"]')).to_have_count(0)

    def emptied() -> bool:
        with server.client() as client:
            return any(slot["n_tokens"] == 0 for slot in client.get("/live").json()["slots"])

    server.wait_until("the slot is empty", emptied, 5)


def test_markup_in_question_and_answer_stays_text(watched: Watched) -> None:
    page = watched.page
    watched.ask('<img src=x onerror="document.title=1"><script>document.title="owned"</script>')
    expect(page.locator('[data-role="cost"]').last).to_be_visible(timeout=60_000)
    assert page.locator("#messages img, #messages script").count() == 0
    assert page.title() not in ("1", "owned")


def test_server_error_is_shown_in_place(watched: Watched) -> None:
    page = watched.page
    body = '{"error": {"message": "The planted sentence.", "type": "t", "param": null, "code": "c"}}'

    def refuse(route: Route) -> None:
        route.fulfill(status=429, body=body, headers={"retry-after": "1"})

    page.route("**/v1/chat/completions", refuse)
    watched.ask("Hello")
    expect(page.locator("#messages")).to_contain_text("The planted sentence.")


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_is_cut_or_overlaps(
    server: RunningServer, browser: Browser, size: str, scheme: str, tmp_path: Path
) -> None:
    width, height = SIZES[size]
    page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)  # type: ignore[arg-type]
    watched = Watched(page)
    page.goto(server.url)
    watched.ask("Fever in three words?")
    expect(page.locator('[data-role="cost"]').last).to_be_visible(timeout=60_000)
    assert page.evaluate("document.documentElement.scrollWidth") <= width, "scrolls sideways"
    for name in ("#question", "#new-conversation", "#send"):
        box = page.locator(name).bounding_box()
        assert box and box["x"] >= 0 and box["x"] + box["width"] <= width, name
        assert box["y"] >= 0 and box["y"] + box["height"] <= height, name
        if name != "#question":
            assert min(box["width"], box["height"]) >= 40, f"{name} is too small for a finger"
    folder = Path(os.environ.get("SCREENSHOTS") or tmp_path)
    page.screenshot(path=folder / f"{size}-{scheme}.png")
    page.close()


def test_keyboard_alone(watched: Watched) -> None:
    page = watched.page
    page.locator("#question").focus()
    page.keyboard.type("First line")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("second line")
    assert page.input_value("#question") == "First line\nsecond line"
    expect(page.locator("#send")).to_be_enabled(timeout=15_000)
    page.keyboard.press("Enter")
    expect(page.locator("#stop")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator("#send")).to_be_visible()
