"""Two tiny models, examined by both ways: lines, tables, pairs; and what is said where there are no rows."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests import tiny_gguf


def quality(*words: object, state: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "benchmarks.quality", *map(str, words)],
        capture_output=True, text=True, timeout=300,
        env={**os.environ, "MEDGE_STATE": str(state), "MEDGE_THREADS": "1", "COLUMNS": "200"},
    )  # fmt: skip


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    options = {"A": "this", "B": "that", "C": "neither"}
    rows: dict[str, list[dict[str, Any]]] = {
        "mcq_a_dev": [
            {"id": f"a{i}", "question": "Which?", "options": options, "answer": "ABC"[i]} for i in range(3)
        ],
        "qa_b_dev": [{"id": f"b{i}", "question": "Why?", "answer": "So."} for i in range(3)],
        "mcq_a_train": [{"id": "never", "question": "Asked?", "options": options, "answer": "A"}],
    }
    for name, own in rows.items():
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, own)), "utf-8")
    return folder


def test_two_models_by_both_ways(tiny: Path, data: Path, tmp_path: Path) -> None:
    other = tiny_gguf.write(tmp_path / "other.gguf", seed=3, n_head=2, n_head_kv=1)
    out = tmp_path / "quality.jsonl"
    words = (tiny, other, "--data", data, "--limit", "1", "--out", out)
    run = quality(*words, state=tmp_path)
    assert run.returncode == 0, run.stderr
    lines = [json.loads(line) for line in out.read_text("utf-8").splitlines()]
    found = [(line["model"]["name"], line["file"], line["way"]) for line in lines]
    assert found == [
        (model, *rest)
        for model in ("tiny", "other")
        for rest in (
            ("mcq_a_dev.jsonl", "likelihood"),
            ("qa_b_dev.jsonl", "likelihood"),
            ("mcq_a_dev.jsonl", "generate"),
        )
    ]
    for line in lines:
        assert {"time", "machine", "versions", "commit", "session", "settings"} <= line.keys()
        assert len(line["model"]["sha256_16"]) == 16 and line["figures"]["n"] == 1
    assert lines[1]["figures"]["nats_per_token"] > 0
    for text in (
        "**tiny, by likelihood**",
        "| mcq_a_dev.jsonl | 1 |",
        "| free text |",
        "exact test, by generate",
        "| tiny / other | a byte | 1 |",
    ):
        assert text in run.stdout
    again = quality(*words, "--by", "likelihood", state=tmp_path)
    assert again.returncode == 0 and len(out.read_text("utf-8").splitlines()) == len(lines) + 4


def test_without_rows_and_with_a_wrong_way(tiny: Path, data: Path, tmp_path: Path) -> None:
    run = quality(tiny, "--data", tmp_path / "none", state=tmp_path)
    assert run.returncode == 0 and "nothing is asked" in run.stderr and run.stdout == ""
    run = quality(tiny, "--data", data, "--by", "guess", state=tmp_path)
    assert run.returncode == 1 and "likelihood and generate" in run.stderr
    run = quality(tmp_path / "none.gguf", "--data", data, state=tmp_path)
    assert run.returncode == 1 and "none.gguf does not exist" in run.stderr
