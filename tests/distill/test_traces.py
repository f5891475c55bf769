from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from aiohttp import web

from distill import traces
from distill.config import Traces
from distill.data import Row, read_rows
from distill.errors import DistillError, TeacherFailed
from distill.traces import Teacher, accepted, read_traces
from distill.verify import judge, loops
from tests import tiny_checkpoint
from tests.distill import rows
from tests.distill.endpoint import Endpoint, completion

RULES = Traces(endpoint="http://127.0.0.1:1/v1", model="m")
CHOICE = Row(
    "c", "Which comes first?", "B", {"A": "rest", "B": "a test", "C": "surgery"}, "", "", "en", "", "", ""
)
OPEN = Row("o", "What is done about fever?", "Much.", {}, "", "", "en", "", "", "")
LONG = "Drink enough, rest, and measure the fever again after six hours."


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[Endpoint]:
    monkeypatch.setattr(traces, "FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(traces, "LONGEST_PAUSE_S", 0.05)
    server = Endpoint()
    yield server
    server.close()


@pytest.mark.parametrize(
    ("row", "content", "finish", "rejected"),
    [
        (CHOICE, "<think>Hm.</think>The answer is B.", "stop", None),
        (CHOICE, "<think>A? No.</think>**B**", "stop", None),
        (CHOICE, "Hm.\n</think>\n\nB. a test", "stop", None),
        (CHOICE, "<think>Hm.</think>A test.", "stop", None),
        (CHOICE, "<think>Hm.</think>\\boxed{B}", "stop", None),
        (CHOICE, "<think>Hm.</think>A would be late. Answer: (B)", "stop", None),
        (CHOICE, "<think>The answer is B.</think>The answer is C.", "stop", "wrong option"),
        (CHOICE, "<think>Hm.</think>It depends.", "stop", "no option named"),
        (CHOICE, "<think>The answer is B", "stop", "no answer after the thought"),
        (CHOICE, "<think>Hm.</think>The answer is B", "length", "not finished (length)"),
        (CHOICE, "", "stop", "empty"),
        (OPEN, LONG, "stop", None),
        (OPEN, "Rest.", "stop", "too short"),
        (OPEN, "word other " * 800, "stop", "loops"),
        (OPEN, " ".join(f"w{i}" for i in range(1600)), "stop", "too long"),
        (OPEN, "喝水休息，六小时后再测体温。" + LONG[:20] + " a b c", "stop", "other language"),
        (OPEN, f"<think>{'wait, look again at it ' * 40}</think>{LONG}", "stop", "loops"),
    ],
)
def test_answers_are_judged(row: Row, content: str, finish: str, rejected: str | None) -> None:
    assert judge(row, content, None, finish, RULES).rejected == rejected


def test_a_thought_in_a_field_of_its_own() -> None:
    found = judge(CHOICE, "The answer is B.", "Hm.", "stop", RULES)
    assert (found.reasoning, found.answer, found.letter, found.rejected) == (
        "Hm.",
        "The answer is B.",
        "B",
        None,
    )


def test_a_list_is_no_loop() -> None:
    assert not loops(
        "\n".join(f"{i}. Give {i * 5} mg of it with the meal in the morning." for i in range(30))
    )
    assert loops("再测一次体温。" * 20)


def questions(folder: Path, n: int) -> list[Row]:
    made = [rows.choice(i, f"fever {i}") for i in range(n)]
    return read_rows(rows.write(folder / "q.jsonl", made))


def ask(endpoint: Endpoint, path: Path, given: list[Row], **changes: Any) -> Teacher:
    teacher = Teacher(RULES.model_copy(update={"endpoint": endpoint.url, "samples": 2} | changes), path)
    teacher.ask(given)
    return teacher


def test_faults_that_pass_are_tried_again(endpoint: Endpoint, tmp_path: Path) -> None:
    def fault(body: dict[str, Any], n: int) -> web.Response | None:
        kind = body["seed"] % 6
        if n > 2 or kind > 4:
            return None
        return (
            web.Response(status=429, headers={"Retry-After": "0.02"}),
            web.Response(status=503, text="busy"),
            web.Response(text="<html>garbage"),
            web.json_response({"choices": []}),
            web.Response(status=599),
        )[kind]

    endpoint.fault = fault
    teacher = ask(endpoint, tmp_path / "t.jsonl", questions(tmp_path, 60), in_flight=16)
    found = [(t["id"], t["sample"]) for t in read_traces(tmp_path / "t.jsonl")]
    assert len(found) == 120 == len(set(found)) == teacher.tally.accepted
    assert teacher.tally.retries > 100 and 8 < endpoint.most_at_once <= 16


def test_rejected_answers_are_kept_and_counted(endpoint: Endpoint, tmp_path: Path) -> None:
    endpoint.fault = lambda body, n: completion("The answer is C.") if body["seed"] % 2 else None
    teacher = ask(endpoint, tmp_path / "t.jsonl", questions(tmp_path, 40))
    wrong = teacher.tally.rejected["wrong option"]
    assert 0 < wrong == 80 - teacher.tally.accepted
    kept = list(read_traces(tmp_path / "t.jsonl"))
    assert len(kept) == 80 and {t["model"] for t in kept} == {"m"} and all("seed" in t for t in kept)
    assert all(len(of) == 1 for of in accepted(tmp_path / "t.jsonl", 1).values())


@pytest.mark.parametrize(
    ("response", "said"),
    [
        (web.Response(status=401, text="bad key"), "refuses with status 401: 'bad key'"),
        (web.Response(status=500), "status 500"),
        (web.Response(text="hello"), "no chat completion: 'hello'"),
    ],
)
def test_an_endpoint_that_does_not_work_is_named(
    endpoint: Endpoint, tmp_path: Path, response: web.Response, said: str
) -> None:
    endpoint.fault = lambda body, n: web.Response(status=response.status, text=response.text)
    with pytest.raises(TeacherFailed, match=said):
        ask(endpoint, tmp_path / "t.jsonl", questions(tmp_path, 40), retries=1)


def test_an_endpoint_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(traces, "FIRST_PAUSE_S", 0.01)
    teacher = Teacher(RULES.model_copy(update={"retries": 1}), tmp_path / "t.jsonl")
    with pytest.raises(
        TeacherFailed, match=r"The last 20 questions got no answer from http://127.0.0.1:1/v1"
    ):
        teacher.ask(questions(tmp_path, 50))


def test_a_slow_endpoint_is_not_waited_for(endpoint: Endpoint, tmp_path: Path) -> None:
    with pytest.raises(TeacherFailed, match=r"no answer within 0.001 s"):
        ask(endpoint, tmp_path / "t.jsonl", questions(tmp_path, 40), timeout_s=0.001, retries=0)


MODEL = '[models.student]\nbase = "BASE"\ntraces = true\n'


def table(endpoint: Endpoint, **more: Any) -> str:
    settings = {"endpoint": endpoint.url, "model": "m"} | more
    return "[traces]\n" + "".join(f"{name} = {json.dumps(value)}\n" for name, value in settings.items())


@pytest.mark.slow
def test_twenty_thousand_killed_and_resumed(tmp_path: Path) -> None:
    endpoint = Endpoint(
        lambda body, n: web.Response(status=503) if n == 1 and body["seed"] % 50 == 0 else None
    )
    path = rows.config(tmp_path, Path("nowhere"), table(endpoint, samples=4, in_flight=1000) + MODEL)
    rows.write(tmp_path / "train.jsonl", [rows.choice(i, f"fever {i}") for i in range(5000)])
    written = tmp_path / "out/traces.jsonl"
    command = [sys.executable, "-m", "distill", "traces", str(path)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    while process.poll() is None and (not written.exists() or written.stat().st_size < 2_000_000):
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = written.read_bytes().count(b"\n")
    assert 1000 < before < 19_000
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    seen = []
    while process.poll() is None:
        try:
            seen.append((written.read_bytes().count(b"\n"), psutil.Process(process.pid).memory_info().rss))
        except psutil.Error:
            break
        time.sleep(0.2)
    said = process.communicate()[1]
    assert process.returncode == 0, said
    found = [(t["id"], t["sample"]) for t in read_traces(written)]
    assert len(found) == 20_000 == len(set(found))
    assert endpoint.most_at_once > 500
    working = [rss for n, rss in seen if n > before + 1500]
    assert max(working) - working[0] < 30e6, "memory grows with what was asked"
    endpoint.close()


def test_a_student_learns_from_traces(endpoint: Endpoint, tmp_path: Path) -> None:
    base = tiny_checkpoint.write(tmp_path / "base", "smollm")
    path = rows.config(tmp_path, base, table(endpoint) + MODEL)
    rows.write(tmp_path / "train.jsonl", [rows.choice(i, f"fever {i}") for i in range(6)])
    run = rows.run(path)
    with pytest.raises(DistillError, match="run the stage traces first"):
        run.train("student")
    run.traces()
    examples, _ = run.examples(run.config.models["student"])
    tokenizer = run.chat(str(base)).tokenizer
    assert len(examples) == 6
    learned = tokenizer.decode(examples[0].tokens[examples[0].n_prompt :])
    assert (
        learned
        == "<think>\nIt is asked for a test.\n</think>\n\nThe answer is B. A test comes first here.<|im_end|>"
    )
    run.train("student")
    assert (tmp_path / "out/student/adapter/adapter_model.safetensors").exists()
