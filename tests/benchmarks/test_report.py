"""The page of all results: complete, self-contained, and not disturbed by lines of other versions."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("matplotlib", reason="matplotlib is not installed: pip install -e .[benchmarks]")

from benchmarks import report

MACHINE = {"cpu": "A <b>CPU</b>", "n_cores": 2, "ram_bytes": 8 << 30}
PARTS = {"weights": 400 << 20, "the programs": 100 << 20}


def line(side: str, round_: int, peak: int, seconds: float) -> dict[str, object]:
    return {
        "machine": MACHINE, "commit": "abc", "time": "2026-01-02T03:04:05", "session": "s", "case": "8+2",
        "side": side, "round": round_, "model": "m", "synthetic": True, "parts": PARTS, "quiet": round_ > 0,
        "peak_pss_bytes": peak << 20, "prompt_s": seconds, "token_s": seconds / 10, "total_s": 2 * seconds,
    }  # fmt: skip


@pytest.fixture
def results(tmp_path: Path) -> Path:
    lines = [
        line(side, n, peak, s) for n in (0, 1) for side, peak, s in (("first", 1000, 8), ("medge", 250, 2))
    ]
    folder = tmp_path / "results"
    folder.mkdir()
    text = "\n".join(["not json", json.dumps({"old": 1}), *map(json.dumps, lines), "[]", ""])
    (folder / "paper.jsonl").write_text(text, "utf-8")
    return folder


def test_numbers_pictures_and_what_was_left_out(results: Path, tmp_path: Path) -> None:
    page, pictures = tmp_path / "page.html", tmp_path / "docs"
    command = [sys.executable, "-m", "benchmarks.report", "--results", results, "--out", page,
               "--pictures", pictures]  # fmt: skip
    run = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    text = page.read_text("utf-8")
    assert "0.250 (0.25 to 0.25)" in text and "3 lines of paper.jsonl" in text
    assert "Weights are random" in text and "2 of 4 measurements" in text
    assert "A &lt;b&gt;CPU&lt;/b&gt;" in text and "<svg" in text
    assert "src=" not in text and "<script" not in text and "@import" not in text
    (picture,) = pictures.iterdir()
    assert picture.name == "paper-m-8-2.png" and picture.read_bytes().startswith(b"\x89PNG")
    found, left_out = report.sections(results)
    assert left_out == {"paper.jsonl": 3}
    assert "| medge | 250 | 0.250 (0.25 to 0.25) |" in report.markdown(found)


def test_without_results_it_says_so(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "benchmarks.report",
        "--results",
        tmp_path,
        "--out",
        tmp_path / "page.html",
    ]
    run = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert run.returncode == 1 and "no results" in run.stderr and not (tmp_path / "page.html").exists()


def test_the_results_of_this_repository_can_all_be_shown() -> None:
    found, left_out = report.sections(report.RESULTS)
    assert not left_out and {"frontier", "serving-shared"} <= {section.name for section in found}


@pytest.mark.slow
def test_the_page_opens_offline(results: Path, tmp_path: Path) -> None:
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if not chromium:
        pytest.skip("chromium is not installed")
    found, left_out = report.sections(results)
    page = tmp_path / "page.html"
    page.write_text(report.page(found, left_out), "utf-8")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        tab = browser.new_page(viewport={"width": 390, "height": 844})
        asked: list[str] = []
        tab.on("request", lambda request: asked.append(request.url))
        tab.goto(page.as_uri())
        assert tab.locator("svg").count() == 1 and tab.locator("td", has_text="medge").count() >= 1
        assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth"), "nothing is cut on a phone"
        assert asked == [page.as_uri()]
        browser.close()
