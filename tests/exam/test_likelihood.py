"""Where an answer's tokens begin, and what they are worth: against the engine, token by token."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.engine.engine import Engine, EngineConfig
from edge_runtime.engine.request import Delta, Request, TokenLogprob
from edge_runtime.exam.likelihood import (
    Score,
    best,
    best_per_byte,
    border,
    common,
    continuation,
    prompt,
    score,
)
from edge_runtime.exam.rows import Row

ROWS = [
    Row("1", "Which vitamin is lacking in beriberi?", options={"A": "Thiamine", "B": "vitamin B12"}),
    Row("2", "¿Qué fármaco?", "es", options={"A": "ácido acetilsalicílico", "B": "2,5 mg de ramipril\n"}),
    Row("3", "最常见的病原体是？", "zh", "一名患者。", options={"A": "肺炎链球菌", "B": "Klebsiella (β)"}),
]


def tokens_of(text: str, sizes: list[int]) -> list[TokenLogprob]:
    """`text` in tokens of so many bytes; what is left over is one."""
    data, found = text.encode(), [TokenLogprob(1, b"", None)]
    for size in [*sizes, len(data)]:
        piece, data = data[:size], data[size:]
        if piece:
            found.append(TokenLogprob(hash(piece), piece, -1.0))
    return found


def test_the_prompt_is_plain_text() -> None:
    assert prompt(ROWS[0]) == "Question: Which vitamin is lacking in beriberi?\nAnswer:"
    assert prompt(ROWS[2]).startswith("Context: 一名患者。\nQuestion: ")
    assert continuation("x") == " x"


@given(st.text(max_size=20), st.text(min_size=1, max_size=20), st.lists(st.integers(1, 9), max_size=20))
def test_a_border_is_found_where_a_token_begins_there(before: str, own: str, sizes: list[int]) -> None:
    tokens = tokens_of(before + own, sizes)
    ends, n = [], 0
    for token in tokens:
        ends.append(n)
        n += len(token.piece)
    found, at = border(tokens, own), len(before.encode())
    if at in ends[1:]:
        assert found is not None and b"".join(t.piece for t in tokens[found:]) == own.encode()
        assert found == common(tokens, [*tokens[:found], TokenLogprob(-1, b"other", -1.0)])
    elif at:
        assert found is None


def test_the_first_token_counts_for_nothing() -> None:
    tokens = [TokenLogprob(1, b"a", None), TokenLogprob(2, b"b", -2.0), TokenLogprob(3, b"c", -3.0)]
    assert score(tokens, 0) == score(tokens, 1) == Score(-5.0, 2)
    assert score(tokens, 2) == Score(-3.0, 1)


def test_long_options_are_not_at_a_loss_by_the_byte() -> None:
    scores, options = {"A": Score(-3, 1), "B": Score(-6, 9)}, {"A": "no", "B": "no evidence"}
    assert best(scores) == "A" and best_per_byte(scores, options) == "B"
    assert best({"A": Score(-1, 1), "B": Score(-1, 1)}) == "A"


def read(engine: Engine, text: str, special: bool = True) -> list[TokenLogprob]:
    tokens = engine.model.tokenize(text, special=special, add_bos=engine.model.add_bos)
    request = Request(text, tokens, max_tokens=0, n_top_logprobs=0, echo=True)
    return [
        t
        for e in engine.generate(request)
        if isinstance(e, Delta) and e.id == text
        for t in e.prompt_logprobs
    ]


@pytest.fixture(scope="module", params=["tiny", pytest.param("embedded", marks=pytest.mark.slow)])
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    path: Path = request.getfixturevalue(request.param)
    with Engine.open(EngineConfig(path, n_slots=1, n_ctx=512)) as opened:
        yield opened


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.id)
def test_what_is_before_the_border_are_the_tokens_of_the_prompt_alone(engine: Engine, row: Row) -> None:
    alone = read(engine, prompt(row))
    assert alone[0].logprob is None or engine.model.add_bos
    for text in row.options.values():
        own = continuation(text)
        tokens = read(engine, prompt(row) + own)
        begin = border(tokens, own)
        assert begin is not None and begin == common(tokens, alone) == len(alone)
        assert [t.token for t in tokens[:begin]] == [t.token for t in alone]
        assert score(tokens, begin).n_tokens == len(tokens) - begin
