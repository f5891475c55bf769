"""The parts of an export that need no model."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from export import budget, imatrix, recipe
from export.budget import Group, choose
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
        (("Q4_K", "Q4_9"), "Q4_9"),
        (("matrix", "matricks"), "matricks|matrix"),
        (("max_mean_kl", "max_kl"), "max_kl|max_mean_kl"),
        (("\"Q8_0\"]  # the", "\"Q8\"]  # the"), "matrix is"),
        (("\"*\" = [", "\"*\" = [5, "), "take a weight type"),
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


def test_no_type_fits_or_is_given() -> None:
    cpu = recipe.load("cpu")
    assert cpu.types({"blk.0.ffn_up.weight": (8, 576)}) == {"blk.0.ffn_up.weight": "IQ4_NL"}
    assert cpu.types({"blk.0.ffn_up.weight": (8, 512)}) == {"blk.0.ffn_up.weight": "Q4_K"}
    with pytest.raises(InvalidRecipe, match=r"ffn_up.weight has rows of 40"):
        cpu.types({"blk.0.ffn_up.weight": (8, 40)})
    with pytest.raises(InvalidRecipe, match="no types for"):
        dataclasses.replace(cpu, ladders={}).ladder("blk.0.ffn_up.weight", (8, 512))


def test_what_was_chosen_is_a_recipe(tmp_path: Path) -> None:
    types = {"token_embd.weight": "Q5_1", "blk.0.ffn_up.weight": "Q8_0"}
    recipe.write(recipe.load("cpu"), types, tmp_path / "recipe.toml")
    loaded = recipe.load(str(tmp_path / "recipe.toml"))
    assert loaded.types(dict.fromkeys(types, (8, 64))) == types
    assert loaded.gates == recipe.load("cpu").gates


KINDS = ("Q4_0", "Q5_0", "Q8_0")


@st.composite
def groups(draw: st.DrawFn) -> tuple[list[Group], dict[str, tuple[int, ...]]]:
    found, shapes = [], {}
    for i in range(draw(st.integers(1, 6))):
        errors = sorted(draw(st.lists(st.floats(0, 1), min_size=2, max_size=2)), reverse=True)
        found.append(Group(str(i), (f"m{i}",), KINDS, draw(st.floats(0, 1)), (1.0, *errors)))
        shapes[f"m{i}"] = (draw(st.integers(1, 9)), 32)
    return found, shapes


@given(groups(), st.integers(0, 2000))
def test_a_budget_is_kept_and_nothing_that_fits_is_left(made: Any, extra: int) -> None:
    of, shapes = made
    smallest = sum(recipe.n_bytes(shape, "Q4_0") for shape in shapes.values())
    choices = choose(of, shapes, smallest + extra)
    used = sum(choice.n_bytes for choice in choices)
    assert used == sum(recipe.n_bytes(shapes[n], k) for n, k in budget.types(choices).items())
    assert used <= smallest + extra
    for choice in choices:
        for level in range(choice.level + 1, len(KINDS)):
            more = recipe.n_bytes(shapes[choice.group.tensors[0]], KINDS[level]) - choice.n_bytes
            better = choice.group.left(level) < choice.group.left(choice.level)
            assert not better or used + more > smallest + extra
    with pytest.raises(InvalidRecipe, match="more than the budget"):
        choose(of, shapes, smallest - 1)


def test_the_sensitive_matrix_gets_the_bits() -> None:
    dull = Group("dull", ("a",), KINDS, 0.001, (1.0, 0.25, 0.004))
    tender = Group("tender", ("b",), KINDS, 0.1, (1.0, 0.25, 0.004))
    shapes = {"a": (64, 64), "b": (64, 64)}
    room = 2 * recipe.n_bytes((64, 64), "Q4_0") + 64 * 64 // 2  # Q8_0 for one
    chosen = {c.group.name: c.kind for c in choose([dull, tender], shapes, room)}
    assert chosen == {"dull": "Q4_0", "tender": "Q8_0"}


def test_matrices_are_split_by_kind_and_depth() -> None:
    depth = 3 * budget.DEPTHS - 1
    names = [f"blk.{i}.{k}.weight" for i in range(depth) for k in ("ffn_up", "attn_v")]
    names.append("token_embd.weight")
    found = budget.split(dict.fromkeys(names, (4, 4)) | {"output_norm.weight": (4,)}, depth)
    assert sorted(n for group in found.values() for n in group) == sorted(names)
    assert len(found) == 2 * budget.DEPTHS + 1 and found["token_embd"] == ["token_embd.weight"]
    for group, members in found.items():
        if group != "token_embd":
            first, last = map(int, group.split()[1].split("-"))
            assert {int(n.split(".")[1]) for n in members} == set(range(first, last + 1))


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
