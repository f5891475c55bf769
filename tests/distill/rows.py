"""Rows, configs and runs of the tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from distill.config import load
from distill.progress import Progress
from distill.stages import Run

QUESTIONS = (
    "fever", "cough", "pain", "rash", "thirst", "nausea", "fatigue", "vertigo", "bleeding", "swelling",
)  # fmt: skip


def row(i: int, word: str, **more: Any) -> dict[str, Any]:
    answer = f"Look for the cause of the {word}; measure again after {i + 1} hours."
    return {"id": f"r{i}", "question": f"What is done about {word}?", "answer": answer} | more


def choice(i: int, word: str) -> dict[str, Any]:
    options = {"A": "rest", "B": f"a test for {word}", "C": "surgery"}
    return {"id": f"c{i}", "question": f"Which comes first with {word}?", "options": options, "answer": "B"}


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n", "utf-8")
    return path


def config(folder: Path, base: Path, models: str, *, data: str = "", seed: int = 0) -> Path:
    """A folder with rows and a TOML file. In `models`, BASE is the base's folder."""
    write(folder / "train.jsonl", [row(i, word) for i, word in enumerate(QUESTIONS)])
    write(folder / "dev.jsonl", [row(i, f"bad {word}", id=f"d{i}") for i, word in enumerate(QUESTIONS[:4])])
    write(folder / "mcq.jsonl", [choice(i, word) for i, word in enumerate(QUESTIONS[:5])])
    path = folder / "run.toml"
    path.write_text(
        f'out = "out"\nseed = {seed}\n[data]\ntrain = [{{ file = "train.jsonl" }}]\n'
        f'development = [{{ file = "dev.jsonl" }}, {{ file = "mcq.jsonl" }}]\n{data}\n'
        + models.replace("BASE", str(base)),
        "utf-8",
    )
    return path


def run(path: Path) -> Run:
    return Run(load(path), Progress())
