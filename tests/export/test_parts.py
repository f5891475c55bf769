"""The parts of an export that need no model."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from export import imatrix, recipe
from export.compare import Difference
from export.errors import ExportError, InvalidRecipe, InvalidText
from export.pipeline import spread
from export.retention import sign_test
from export.text import Row, read_rows


def test_importance_survives_its_file(tmp_path: Path) -> None:
    sums = {f"blk.{i}.attn_q.weight": np.random.default_rng(i).random(64, np.float32) for i in range(3)}
    imatrix.save(imatrix.Importance(sums, 1000, ("rows.jsonl",)), tmp_path / "imatrix.gguf")
    loaded = imatrix.load(tmp_path / "imatrix.gguf")
    assert loaded.n_tokens == 1000 and loaded.sources == ("rows.jsonl",)
    assert loaded.sums.keys() == sums.keys()
    assert all(np.array_equal(loaded.sums[name], sums[name]) for name in sums)


def test_a_stranger_is_no_importance_file(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"no GGUF at all, but long enough for a header of one")
    with pytest.raises(ExportError, match="no imatrix file"):
        imatrix.load(tmp_path / "x")


def test_difference_in_closed_form() -> None:
    """Two tokens, probabilities 3/4 and 1/4 against 1/2 and 1/2."""
    reference = np.log(np.array([[0.75, 0.25]] * 2, dtype=np.float32))
    other = np.log(np.array([[0.5, 0.5]] * 2, dtype=np.float32))
    found = Difference()
    found.add([0, 1], reference, other)
    assert found.mean_kl == pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(0.5), abs=1e-6)
    assert found.perplexity_reference == pytest.approx(4, rel=1e-5)
    assert found.perplexity == pytest.approx(2, rel=1e-5)
    assert found.n_positions == 2


def test_sign_test_in_closed_form() -> None:
    assert sign_test(0, 0) == 1
    assert sign_test(0, 5) == pytest.approx(2 / 32)
    assert sign_test(2, 3) == 1
    assert sign_test(1, 9) == pytest.approx(2 * 11 / 1024)


@given(st.integers(0, 60))
def test_spreading_keeps_every_row_once(n: int) -> None:
    rows = [Row("", str(i), {}) for i in range(n)]
    assert sorted(int(row.answer) for row in spread(rows)) == list(range(n))


@pytest.mark.parametrize("name", ["cpu", "cuda", "jetson"])
def test_our_recipes(name: str) -> None:
    types = recipe.load(name).types({"blk.0.attn_q.weight": (64, 96), "blk.0.attn_norm.weight": (64,)})
    assert list(types) == ["blk.0.attn_q.weight"]
    assert recipe.n_bytes((64, 96), types["blk.0.attn_q.weight"]) < 64 * 96


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("Q4_0", "Q4_9"), "Q4_9"),
        (("matrix", "matricks"), "matricks|matrix"),
        (("max_mean_kl", "max_kl"), "max_kl|max_mean_kl"),
        (("fallback = \"Q8_0\"", "fallback = \"Q4_K\""), "fallback"),
        (("[gates]", "[gates"), "TOML"),
        (("max_mean_kl = ", "max_mean_kl = -"), "max_mean_kl"),
    ],
)  # fmt: skip
def test_a_wrong_recipe_is_refused_by_name(tmp_path: Path, change: tuple[str, str], words: str) -> None:
    text = (recipe.FOLDER / "cpu.toml").read_text("utf-8")
    assert change[0] in text
    (tmp_path / "own.toml").write_text(text.replace(*change), "utf-8")
    with pytest.raises(InvalidRecipe, match=words):
        recipe.load(str(tmp_path / "own.toml"))


def test_an_unknown_target_names_those_there_are() -> None:
    with pytest.raises(InvalidRecipe, match="cpu, cuda, jetson"):
        recipe.load("tpu")


def test_rows_in_their_forms(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(
        json.dumps({"question": "Q?", "answer": "B", "options": {"A": "one", "B": "two"}, "context": ["c"]})
    )
    (tmp_path / "b.txt").write_text("First.\n\nSecond\nline.\n")
    assert [row.text for row in read_rows(tmp_path)] == ["c\n\nQ?\n\ntwo", "First.", "Second\nline."]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no rows"),
        ('{"question": "Q?"}', "line 1"),
        ('{"question": "Q?", "answer": "A"}\nnot JSON', "line 2"),
        ('{"question": "Q?", "answer": "C", "options": {"A": "one"}}', "none of its options"),
        ("[1]", "line 1"),
    ],
)
def test_wrong_rows_are_refused_with_their_line(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "rows.jsonl").write_text(text)
    with pytest.raises(InvalidText, match=words):
        read_rows(tmp_path / "rows.jsonl")


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(InvalidText, match="does not exist"):
        read_rows(tmp_path / "nowhere.jsonl")
