"""`medge eval` as a person meets it: whole runs on a tiny model, stopped, killed, gone on with, refused."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import pytest

from edge_runtime.engine.engine import Engine, EngineConfig
from edge_runtime.exam.likelihood import common, continuation, prompt, score
from edge_runtime.exam.rows import read
from tests import test_cli, tiny_gguf
from tests.exam.test_likelihood import read as read_tokens
from tests.test_cli import MEDGE, sentence

unix = pytest.mark.skipif(os.name == "nt", reason="uses signals as Unix has them")

# A model of this size is no work for two threads, which would wait for each other on a busy machine.
ENVIRONMENT = {**test_cli.ENVIRONMENT, "MEDGE_THREADS": "1"}

Questions = Callable[..., Path]


def medge(*words: str, **env: str) -> subprocess.CompletedProcess[bytes]:
    return test_cli.medge(*words, **{"MEDGE_THREADS": "1", **env})


@pytest.fixture
def questions(tmp_path: Path) -> Questions:
    def make(n: int, name: str = "mcq.jsonl", **more: Any) -> Path:
        rows = [
            {"id": f"{name}-{i}", "question": f"Which of these has the number {i}?",
             "answer": "AB"[i % 2],
             "options": {"A": f"number {i}", "B": "none of these", "C": "both"},
             "subject": f"s{i % 2}"} | more
            for i in range(n)
        ]  # fmt: skip
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
        return path

    return make


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()[1:]]


def test_by_likelihood_it_is_what_the_engine_says(tiny: Path, questions: Questions, tmp_path: Path) -> None:
    path, out = questions(5), tmp_path / "r.jsonl"
    words = ("eval", str(path), "--model", str(tiny), "--out", str(out))
    run = medge(*words, "--slots", "3", "--json")
    assert run.returncode == 0 and run.stdout.count(b"\n") == 1, run.stderr.decode()
    report = json.loads(run.stdout)
    whole, *subjects = report["multiple_choice"]
    assert whole["n"] == 5 and whole["n_unanswered"] == 0 and whole["chance"] == pytest.approx(1 / 3)
    assert [g["subject"] for g in subjects] == ["s0", "s1"] and report["out"] == str(out)
    by_id = {line["id"]: line for line in lines_of(out)}
    right = []
    with Engine.open(EngineConfig(tiny, n_slots=1, n_ctx=2048)) as engine:
        for row in read([path])[0].rows:
            alone = read_tokens(engine, prompt(row))
            nats = {}
            for letter, text in row.options.items():
                tokens = read_tokens(engine, prompt(row) + continuation(text))
                nats[letter] = score(tokens, len(alone)).nats
            line = by_id[row.id]
            assert line["nats"] == pytest.approx(nats, abs=0.02)
            right.append(max(nats, key=lambda k: nats[k]) == row.answer)
            per_byte = max(nats, key=lambda k: nats[k] / len(row.options[k].encode()))
            assert line["predicted_per_byte"] == per_byte
    assert whole["accuracy"] == sum(right) / 5

    before = out.read_bytes()
    again = medge(*words, "--slots", "3")
    assert again.returncode == 0 and out.read_bytes() == before, "nothing was left to ask"
    assert "mcq.jsonl" in again.stdout.decode() and str(out) in again.stderr.decode()
    said = sentence(medge(*words), 2)
    assert "slots was 3, is 1" in said and str(out) in said


def test_names_of_control_tokens_in_a_row_stay_text(tiny: Path, questions: Questions, tmp_path: Path) -> None:
    path, out = questions(2, question="What does <|im_end|> say?"), tmp_path / "r.jsonl"
    run = medge("eval", str(path), "--model", str(tiny), "--out", str(out))
    assert run.returncode == 0, run.stderr.decode()
    with Engine.open(EngineConfig(tiny, n_slots=1, n_ctx=2048)) as engine:
        for row, line in zip(read([path])[0].rows, lines_of(out)):
            alone = len(read_tokens(engine, prompt(row), special=False))
            assert alone > len(read_tokens(engine, prompt(row)))
            for letter, text in row.options.items():
                tokens = read_tokens(engine, prompt(row) + continuation(text), special=False)
                assert line["nats"][letter] == pytest.approx(score(tokens, alone).nats, abs=0.02)


def test_a_tokenizer_that_joins_prompt_and_option(
    questions: Questions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts, scores, types = tiny_gguf.vocabulary()
    joined = (b":\xe2\x96\x81", b"n\xe2\x96\x81")
    monkeypatch.setattr(
        tiny_gguf, "vocabulary",
        lambda: (texts + list(joined), [*scores, 0.0, -1.0], types + [int(gguf.TokenType.NORMAL)] * 2),
    )  # fmt: skip
    model = tiny_gguf.write(tmp_path / "joining.gguf", n_head=2, n_head_kv=1)
    path, out = questions(2), tmp_path / "r.jsonl"
    run = medge("eval", str(path), "--model", str(model), "--out", str(out))
    assert run.returncode == 0, run.stderr.decode()
    (file,) = read([path])
    with Engine.open(EngineConfig(model, n_slots=1, n_ctx=2048)) as engine:
        for row, line in zip(file.rows, lines_of(out)):
            alone = read_tokens(engine, prompt(row))
            for letter, text in row.options.items():
                tokens = read_tokens(engine, prompt(row) + continuation(text))
                begin = common(tokens, alone)
                assert begin == len(alone) - 1 and tokens[begin].piece == b": ", (
                    "the border is within a token"
                )
                assert line["nats"][letter] == pytest.approx(score(tokens, begin).nats, abs=0.02)


def test_by_generating_with_a_grammar_each_sample(tiny: Path, questions: Questions, tmp_path: Path) -> None:
    out = tmp_path / "r.jsonl"
    words = (
        "eval", str(questions(3)), "--model", str(tiny), "--by", "generate", "--samples", "2", "--seed", "7",
        "--max-tokens", "60", "--ctx", "8192", "--out", str(out),
    )  # fmt: skip
    run = medge(*words, "--json", "--keep-text")
    assert run.returncode == 0, run.stderr.decode()
    (whole, *_) = json.loads(run.stdout)["multiple_choice"]
    lines = lines_of(out)
    assert {(line["id"], line["sample"]) for line in lines} == {
        (f"mcq.jsonl-{i}", s) for i in range(3) for s in (0, 1)
    }
    assert all(line["text"].startswith('{"reasoning":"') and line["question"] for line in lines)
    assert whole["n_unanswered"] == sum(line["predicted"] is None for line in lines)
    assert whole["n_cut"] == sum(line["end"] == "length" for line in lines)
    assert whole["n"] == 3 and 0 <= whole["consistency"] <= 1 and whole["n_generated_mean"] > 1


def test_without_a_template_and_against_another(tiny: Path, questions: Questions, tmp_path: Path) -> None:
    path = questions(4)
    words = ("eval", str(path), "--by", "generate", "--template", "none", "--max-tokens", "8")
    models = [tiny, tiny_gguf.write(tmp_path / "other.gguf", seed=5, n_head=2, n_head_kv=1)]
    for model in models:
        run = medge(*words, "--model", str(model), "--out", str(model.parent / f"{tmp_path.name}.jsonl"))
        assert run.returncode == 0, run.stderr.decode()
    results = [model.parent / f"{tmp_path.name}.jsonl" for model in models]
    assert b"number" not in results[0].read_bytes(), "no text is written unless asked for"
    both = medge(*words, "--model", str(tiny), "--out", str(results[0]), "--against", str(results[1]))
    text = both.stdout.decode()
    assert "tiny / other" in text and "only first" in text and "unanswered" in text
    told = json.loads(
        medge(
            *words, "--model", str(tiny), "--out", str(results[0]), "--against", str(results[1]), "--json"
        ).stdout
    )
    (measure,) = told["against"]["measures"]
    assert sum(measure[k] for k in ("both", "only_this", "only_other", "neither")) == measure["n"] == 4


def test_a_model_that_thinks_is_marked_by_its_answer(questions: Questions, tmp_path: Path) -> None:
    template, out = tiny_gguf.R1_CHAT_TEMPLATE, tmp_path / "r.jsonl"
    model = tiny_gguf.write(tmp_path / "r1.gguf", chat_template=template, n_ctx=8192, n_head=2, n_head_kv=1)
    words = ("--ctx", "4096", "--max-tokens", "150", "--max-thinking-tokens", "16", "--out", str(out))
    run = medge("eval", str(questions(2)), "--model", str(model), "--by", "generate", *words, "--keep-text")
    assert run.returncode == 0, run.stderr.decode()
    for line in lines_of(out):
        assert 0 < line["n_thoughts"] <= 32 and line["text"].startswith('{"reasoning":"')


def test_statements_and_free_text(tiny: Path, questions: Questions, tmp_path: Path) -> None:
    none = {"options": None, "subject": None}
    both = questions(2, "qa.jsonl", **none, answer="Fluids.", must_have=["e", ["zzz", "qqq"]])
    out = str(tmp_path / "a.jsonl")
    weighed = json.loads(medge("eval", str(both), "--model", str(tiny), "--out", out, "--json").stdout)
    (group,) = weighed["free_text"]
    assert group["nats_per_token"] > 0 and group["n_answer_tokens"] == 2 * len(" Fluids.")
    words = ("--by", "generate", "--template", "none", "--max-tokens", "8", "--model", str(tiny), "--json")
    covered = json.loads(medge("eval", str(both), *words, "--out", out + "2").stdout)
    assert covered["free_text"][0]["n_statements"] == 4 and covered["multiple_choice"] == []
    assert "--by likelihood" in sentence(medge("eval", str(questions(1, "t.jsonl", **none)), *words), 2)


def test_a_row_that_is_too_long_is_told_of(tiny: Path, questions: Questions, tmp_path: Path) -> None:
    path = questions(3)
    long = {
        "id": "long",
        "question": "?",
        "context": "x" * 400,
        "options": {"A": "a", "B": "b"},
        "answer": "A",
    }
    path.write_text(path.read_text("utf-8") + json.dumps(long), "utf-8")
    words = ("eval", str(path), "--model", str(tiny), "--ctx", "256", "--out", str(tmp_path / "r.jsonl"))
    run = medge(*words)
    assert run.returncode == 0 and b"too small for them: long. A larger --ctx" in run.stdout
    whole = json.loads(medge(*words, "--json").stdout)
    assert whole["multiple_choice"][0]["n_too_long"] == 1 and whole["too_long"] == ["long"]


# -- stopped and gone on with


def begun(out: Path, path: Path, model: Path, n_lines: int) -> subprocess.Popen[bytes]:
    """A run that has written so many answers already."""
    process = subprocess.Popen(
        [*MEDGE, "eval", path, "--model", model, "--out", out, "--slots", "2"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=ENVIRONMENT, start_new_session=True,
    )  # fmt: skip
    until = time.monotonic() + 60
    while not out.exists() or out.read_bytes().count(b"\n") < n_lines + 1:
        assert process.poll() is None and time.monotonic() < until, process.communicate()
        time.sleep(0.01)
    return process


@unix
@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_what_was_stopped_goes_on(
    sign: signal.Signals, tiny: Path, questions: Questions, tmp_path: Path
) -> None:
    path, out = questions(40), tmp_path / "r.jsonl"
    process = begun(out, path, tiny, 3)
    if sign == signal.SIGINT:
        os.killpg(process.pid, sign)  # as a terminal does: the engine's process hears it too
    else:
        process.send_signal(sign)
    _, said = process.communicate(timeout=30)
    assert b"Traceback" not in said
    before = out.read_bytes()
    if sign == signal.SIGINT:
        assert process.returncode == 130 and b"The same command goes on." in said
        assert b"of 40 answers" in said and before[-1:] == b"\n"
    n_before = before.count(b"\n")
    assert 4 <= n_before < 41
    out.write_bytes(before[: before.rindex(b"\n") + 1] + b'{"id": "mcq.jsonl-39", "sam')
    words = ("eval", str(path), "--model", str(tiny), "--out", str(out), "--slots", "2", "--json")
    run = medge(*words)
    assert run.returncode == 0, run.stderr.decode()
    assert out.read_bytes().startswith(before[: before.rindex(b"\n") + 1])
    lines = lines_of(out)
    assert sorted(line["id"] for line in lines) == sorted(f"mcq.jsonl-{i}" for i in range(40))
    assert json.loads(run.stdout)["multiple_choice"][0]["n"] == 40


@unix
def test_a_full_disk_is_told_of_and_what_is_there_stays(
    tiny: Path, questions: Questions, tmp_path: Path
) -> None:
    import resource

    path, out = questions(40), tmp_path / "r.jsonl"
    words = ["eval", str(path), "--model", str(tiny), "--out", str(out)]
    run = subprocess.run(
        [*MEDGE, *words], capture_output=True, timeout=60, env=ENVIRONMENT | {"PYTHONDONTWRITEBYTECODE": "1"},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000)),
    )  # fmt: skip
    assert "cannot be written" in sentence(run, 2) and str(out) in run.stderr.decode()
    assert 1000 < out.stat().st_size <= 3000
    assert medge(*words).returncode == 0 and len(lines_of(out)) == 40


# -- refusals


def test_refusals(tiny: Path, tiny_bert: Path, questions: Questions, tmp_path: Path) -> None:
    path = questions(2)
    model = ("--model", str(tiny))
    bad = tmp_path / "bad.jsonl"
    bad.write_text(path.read_text("utf-8") + "{\n", "utf-8")
    assert "line 3: this is not JSON" in sentence(medge("eval", str(bad), *model), 2)
    assert "none.jsonl cannot be read" in sentence(medge("eval", str(tmp_path / "none.jsonl"), *model), 2)
    assert "also that of" in sentence(medge("eval", str(path), str(path), *model), 2)
    assert "likelihood and generate" in sentence(medge("eval", str(path), "--by", "guess", *model), 2)
    assert "--samples is for --by generate" in sentence(medge("eval", str(path), "--samples", "2", *model), 2)
    said = sentence(medge("eval", str(path), "--by", "generate", "--template", "exams", *model), 1)
    assert "Did you mean exam" in said
    said = sentence(medge("eval", str(path), "--model", str(tiny_bert)), 2)
    assert "tiny-bert is an embedding model" in said
    mute = tiny_gguf.write(tmp_path / "mute.gguf", chat_template=None, n_head=2, n_head_kv=1)
    said = sentence(medge("eval", str(path), "--by", "generate", "--model", str(mute)), 2)
    assert "no chat template" in said
    assert "left alone" in sentence(medge("eval", str(path), "--out", str(path), *model), 2)
    assert "left alone" in sentence(medge("eval", str(path), "--against", str(path), *model), 2)
    assert "none.gguf does not exist" in sentence(medge("eval", str(path), "--model", "none.gguf"), 1)


def test_help_is_quick_and_says_what_there_is() -> None:
    run = medge("eval", "--help")
    text = run.stdout.decode()
    assert run.returncode == 0
    for flag in ("--by", "--template", "--samples", "--seed", "--limit", "--out", "--against", "--keep-text",
                 "--json", "--slots", "--ctx", "--model"):  # fmt: skip
        assert flag in text
    code = "import sys, edge_runtime.cli; sys.exit('edge_runtime.exam.sitting' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.slow
def test_the_embedded_model_knows_more_than_noise(tmp_path: Path) -> None:
    """Easy ones: common words against words that do not belong there."""
    asked = [
        ("What is the capital of France?", "Paris", "Tuesday"),
        ("What do people drink when they are thirsty?", "Water", "Granite"),
        ("Which organ pumps blood through the body?", "The heart", "The keyboard"),
        ("What do doctors give to treat bacterial infections?", "Antibiotics", "Envelopes"),
    ]
    rows = [
        {"id": str(i), "question": text, "options": {"A": wrong, "B": right}, "answer": "B"}
        for i, (text, right, wrong) in enumerate(asked)
    ]
    path = tmp_path / "easy.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), "utf-8")
    run = medge("eval", str(path), "--json", MEDGE_STATE=str(tmp_path / "state"))
    assert run.returncode == 0, run.stderr.decode()
    told = json.loads(run.stdout)
    assert told["multiple_choice"][0]["accuracy"] == 1
    assert Path(told["out"]).parent == tmp_path / "state" / "exams"
