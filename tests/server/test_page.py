"""The page in a real browser, with the embedded model: ask, stream, stop, start anew."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import uvicorn
from fastapi import FastAPI
from playwright.sync_api import Browser, ConsoleMessage, Page, Request, Route, expect, sync_playwright

from tests import tiny_gguf
from tests.device import boards
from tests.server.machines import app_on
from tests.serving import RunningServer, serving

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium: install it, or name it in $CHROMIUM"),
]

SIZES = {"kiosk": (1024, 600), "phone": (390, 844), "desk": (1440, 900)}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    state = {"MEDGE_STATE": str(tmp_path_factory.mktemp("state"))}
    with serving(None, "--slots", "2", "--ctx", "1024", env=state) as server:
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
    if page.locator("#panel-toggle").is_visible():
        page.click("#panel-toggle")
    expect(page.locator("#plan dd").last).to_contain_text("MiB", timeout=15_000)
    page.screenshot(path=folder / f"{size}-{scheme}-panel.png")
    assert page.evaluate(CUT) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width, "scrolls sideways"
    assert page.evaluate("document.documentElement.scrollHeight") <= height, "scrolls as a whole"
    page.locator("#facts").scroll_into_view_if_needed()
    expect(page.locator("#facts")).to_be_in_viewport()
    page.close()


# Texts of the panel that are wider than their room, or stand beside the window.
CUT = """() => Array.from(document.querySelectorAll("#panel :is(h2, p, dt, dd, li, span, b)"))
    .filter((node) => node.getClientRects().length)
    .filter((node) => {
        const range = document.createRange();
        range.selectNodeContents(node);
        const { left, right } = range.getBoundingClientRect();
        const room = node.closest(".figure, #facts, #panel-toggle").getBoundingClientRect();
        return left < room.left - 1 || right > room.right + 1 || right > innerWidth;
    })
    .map((node) => node.outerHTML)"""


@pytest.mark.parametrize("size", SIZES)
def test_a_long_name_leaves_room(browser: Browser, tmp_path: Path, size: str) -> None:
    name = "An-Instruct-model-of-a-maker-with-a-long-name-with-its-medical-adapter-of-November-Q4_K_M"
    with serving(tiny_gguf.write(tmp_path / f"{name}.gguf"), "--ctx", "256") as server:
        page = browser.new_page(viewport=dict(zip(("width", "height"), SIZES[size])))  # type: ignore[arg-type]
        page.goto(server.url)
        model = page.locator("#model")
        expect(model).to_have_attribute("title", name)
        height, room = model.evaluate("node => [node.clientHeight, node.closest('.brand').clientHeight]")
        assert height < room < 80, "the top stays slim"
        boxes = [
            box
            for part in ("#model", "#panel-toggle", "#new-conversation")
            if (box := page.locator(part).bounding_box())
        ]
        for i, a in enumerate(boxes):
            assert a["x"] >= 0 and a["x"] + a["width"] <= SIZES[size][0]
            for b in boxes[:i]:
                apart = a["x"] >= b["x"] + b["width"] or b["x"] >= a["x"] + a["width"]
                assert apart or a["y"] >= b["y"] + b["height"] or b["y"] >= a["y"] + a["height"]
        page.close()


def test_the_box_has_the_focus_at_load(watched: Watched) -> None:
    expect(watched.page.locator("#question")).to_be_focused()


def test_plan_and_percentiles_by_keyboard(watched: Watched, server: RunningServer) -> None:
    page = watched.page
    watched.ask("Fever in three words?")
    expect(page.locator('[data-role="cost"]').last).to_be_visible(timeout=60_000)
    page.locator("#question").focus()
    for _ in range(5):
        page.keyboard.press("Shift+Tab")
        if page.evaluate("document.activeElement.id") == "panel-toggle":
            break
    page.keyboard.press("Enter")
    rows = page.locator("#plan dl > div")
    expect(rows.last).to_contain_text(re.compile(r"used now\s*\d+"), timeout=15_000)
    with server.client() as client:
        plan, stats = client.get("/plan").json(), client.get("/stats").json()
    for (name, n_bytes), row in zip(plan["parts"].items(), rows.all()):
        shown = re.fullmatch(rf"{name}\s+(\d+)\sMiB", row.inner_text())
        assert shown and abs(int(shown[1]) - n_bytes / 2**20) <= 0.5, row.inner_text()
    widths = page.locator("#plan .stack i").evaluate_all(
        "all => all.map(i => i.getBoundingClientRect().width)"
    )
    share = widths[0] / sum(widths)
    assert share == pytest.approx(plan["parts"]["weights"] / plan["total_bytes"], abs=0.01)
    expect(page.locator("#recorded p")).to_contain_text(re.compile(rf"{stats['n']} requests? since \d"))
    first = re.match(
        r"p50\s([\d.]+)\s(m?)s, p95\s[\d.]+\sm?s$", page.locator("#recorded dd").first.inner_text()
    )
    assert first, page.locator("#recorded dd").first.inner_text()
    ttft_s = float(first[1]) * (0.001 if first[2] else 1)
    assert ttft_s == pytest.approx(
        stats["percentiles"]["ttft_s"]["p50"], abs=0.051 if ttft_s >= 1 else 0.00051
    )
    expect(page.locator("#facts")).not_to_be_in_viewport(ratio=1)
    page.keyboard.press("Tab")
    page.keyboard.press("End")
    expect(page.locator("#facts")).to_be_in_viewport(ratio=1)  # reached without a mouse
    assert watched.problems == []


def test_without_records_it_says_so(browser: Browser, tiny: Path) -> None:
    with serving(tiny, "--ctx", "256", "--no-records") as server:
        page = browser.new_page(viewport={"width": 1024, "height": 600})
        page.goto(server.url)
        page.click("#panel-toggle")
        expect(page.locator("#recorded p")).to_contain_text("not recorded", timeout=15_000)
        expect(page.locator("#recorded dl > div")).to_have_count(0)
        page.close()


@contextmanager
def running(app: FastAPI) -> Iterator[str]:
    """The address of an application that runs in this process."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        server = uvicorn.Server(uvicorn.Config(app, log_level="error"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{sock.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(30)


@pytest.mark.parametrize("tells", [True, False])
def test_heat_and_power_of_a_machine(browser: Browser, tiny: Path, tmp_path: Path, tells: bool) -> None:
    root = boards.build(tmp_path, boards.orin_nano() if tells else {})
    with running(app_on(root, tiny)) as url:
        page = browser.new_page(viewport={"width": 1440, "height": 900})
        page.goto(url)
        rows = page.locator("#machine dl > div")
        expect(rows).to_have_count(5)
        told = ["50 °C", "yes, by heat or a limit", "5.26 W", "0 J (INA rails)", "MAXN_SUPER"]
        names = ["Temperature", "Slowed", "Power", "Energy", "Power mode"]
        expect(rows).to_have_text(
            [f"{name}{value if tells else 'not available'}" for name, value in zip(names, told)]
        )
        expect(page.locator('[data-chart="temperature"]')).to_be_visible(visible=tells)
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


def test_an_emergency_stands_above_the_answer_and_the_kind_can_be_chosen(watched: Watched) -> None:
    page = watched.page
    watched.ask("My father has crushing chest pain and is sweating")
    alert = watched.answer.get_by_role("alert")
    expect(alert).to_contain_text("Call your local emergency number now", timeout=30_000)
    expect(watched.answer.locator(".kind")).to_contain_text("Emergency, in English, for patients")
    expect(page.locator('[data-role="cost"]').last).to_be_visible(timeout=60_000)
    said = watched.answer.locator(".answer").inner_text()
    assert said.count("It is not a diagnosis.") == 1 and "This may be an emergency" not in said
    page.get_by_label("Kind of question").select_option("Medicines")
    watched.ask("¿Qué es la gota?")
    expect(watched.answer.locator(".kind")).to_contain_text("Medicines, in Spanish", timeout=30_000)
    expect(watched.answer.get_by_role("alert")).to_be_hidden()
    expect(watched.answer).to_contain_text("No es un diagnóstico.", timeout=60_000)
    assert watched.problems == []


def test_an_answer_in_json_is_read_by_people(watched: Watched) -> None:
    answer = json.dumps({"reasoning": "Scurvy is a lack of *ascorbic* acid.", "answer": "B"})
    facts = {"template": "exam", "language": "en", "audience": "clinician", "why": [], "notice": "",
             "closing": "Written by the program x. It is not a diagnosis."}  # fmt: skip
    chunks: list[dict[str, Any]] = [
        {"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}], "medge": facts},
        {"choices": [{"index": 0, "delta": {"content": answer}}]},
        {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]},
    ]
    events = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + "data: [DONE]\n\n"
    watched.page.route(
        "**/v1/chat/completions", lambda route: route.fulfill(body=events, content_type="text/event-stream")
    )
    watched.ask("Which vitamin is missing in scurvy?")
    shown = watched.answer.locator(".answer")
    expect(shown).to_contain_text("answer: B")
    expect(shown).to_contain_text("not a diagnosis")
    expect(shown).not_to_contain_text("{")
    expect(shown.locator("em")).to_have_text("ascorbic")


def test_thoughts_are_folded_away_and_counted(browser: Browser, tmp_path: Path) -> None:
    model = tiny_gguf.write(tmp_path / "thinker.gguf", chat_template=tiny_gguf.R1_CHAT_TEMPLATE, n_ctx=8192)
    with serving(model, "--slots", "1", "--ctx", "8192") as server:
        page = browser.new_page(viewport={"width": 1024, "height": 600})
        watched = Watched(page)
        page.goto(server.url)
        watched.ask("What is a fever?")
        thoughts, answer = watched.answer.locator(".thoughts"), watched.answer.locator(".answer")
        expect(thoughts.locator("summary")).to_contain_text(re.compile(r"Thoughts\s+\d+"), timeout=30_000)
        expect(thoughts).not_to_have_attribute("open", "")
        expect(page.locator('[data-role="cost"]').last).to_be_visible(timeout=60_000)
        expect(thoughts.locator("div")).to_be_hidden()
        thoughts.locator("summary").click()
        expect(thoughts.locator("div")).not_to_be_empty()
        assert thoughts.locator("div").inner_text() not in answer.inner_text()
        expect(answer).to_contain_text("not a diagnosis")
        assert watched.problems == []
        page.close()
