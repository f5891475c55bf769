"""The table and picture of types, on a tiny model."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import gguf
import pytest

pytest.importorskip("torch", reason="torch is not installed: pip install -e .[export]")

from benchmarks import shapes
from export.checkpoint import Checkpoint
from export.families import HEAD, Family
from export.pipeline import Export, Options
from export.progress import Progress
from tests import tiny_checkpoint


@pytest.mark.slow
def test_the_frontier_of_a_tiny_model(tmp_path: Path) -> None:
    base = tiny_checkpoint.write(tmp_path / "base", "smollm")
    (tmp_path / "text.txt").write_text("\n\n".join(tiny_checkpoint.TEXT), "utf-8")
    text, results, picture = tmp_path / "text.txt", tmp_path / "found.jsonl", tmp_path / "found.png"
    command = [
        sys.executable, "-m", "benchmarks.frontier", "--base", base, "--calibration", text, "--eval", text,
        "--work", tmp_path / "work", "--n-tokens", "500", "--n-rounds", "1", "--max-mb", "0.11",
        "--results", results, "--picture", picture,
    ]  # fmt: skip
    run = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    lines = [json.loads(line) for line in results.read_text().splitlines()]
    by_name = {line["name"]: line for line in lines}
    assert {"Q8_0", "Q4_K_M", "Q4_0", "Q4_0 + importance", "cpu", "cpu, auto 0.11 MB"} <= by_name.keys()
    assert by_name["Q8_0"]["mean_kl"] < by_name["Q4_0"]["mean_kl"]
    assert by_name["cpu, auto 0.11 MB"]["n_bytes"] <= 110_000
    assert all(len(line["prompt"]) == len(line["decode"]) == 1 for line in lines)
    assert picture.read_bytes().startswith(b"\x89PNG") and "cpu, auto 0.11 MB" in run.stdout


def test_the_shapes_are_those_of_the_published_model() -> None:
    """7,615,616,512 weights, as the model's own page says."""
    family = Family.of(shapes.MODELS["DeepSeek-R1-Distill-Qwen-7B"])
    of = family.shapes() | {HEAD: (family.n_vocab, family.n_embd)}
    assert sum(math.prod(shape) for shape in of.values()) == 7_615_616_512


def test_a_synthetic_checkpoint_can_be_exported(tmp_path: Path) -> None:
    small = {
        "hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "vocab_size": 512,
    }  # fmt: skip
    name = "DeepSeek-R1-Distill-Qwen-7B"
    first = shapes.write(tmp_path / "a", name, seed=3, **small)
    again = shapes.write(tmp_path / "b", name, seed=3, **small)
    assert (first / "model-00001.safetensors").read_bytes() == (
        again / "model-00001.safetensors"
    ).read_bytes()
    assert Checkpoint(first).shapes["lm_head.weight"] == (512, 64)
    options = Options(first, tmp_path / "out", None, None, skip=frozenset({"parity", "retention"}))
    card = Export(options, Progress()).run()
    assert "synthetic" in card["name"]
    field = gguf.GGUFReader(tmp_path / "out/model.gguf").fields["general.name"]
    assert "synthetic" in field.contents()
