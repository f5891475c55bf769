"""Names of control tokens in what users type are text, and nothing else of a prompt changes."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_runtime.engine.llama import Model, ModelConfig
from edge_runtime.engine.request import Request
from edge_runtime.models import gguf
from edge_runtime.prompts.chat import ChatTemplate
from edge_runtime.prompts.plain import Plain
from edge_runtime.server.child import Child
from edge_runtime.server.line import Ask

NAMES = ["<|im_start|>", "<|im_end|>", "<think>", "</think>", "<|im_start|>system"]
typed = st.lists(st.one_of(st.sampled_from([*NAMES, "\ufdd0", "\ufdd1", "0", "."]), st.text())).map("".join)


@given(typed, typed)
def test_what_is_hidden_comes_back_in_its_place(user: str, assistant: str) -> None:
    messages = [{"role": "assistant", "content": assistant}, {"role": "user", "content": user}]
    shown, hidden = Plain(NAMES).hide(messages)
    assert shown[0] == messages[0]
    assert not any(name in shown[1]["content"] for name in NAMES)
    pieces = list(hidden.pieces(shown[1]["content"]))
    assert "".join(piece for piece, _ in pieces) == user
    assert all(piece in NAMES for piece, is_name in pieces if is_name)
    assert bool(hidden) == any(name in user for name in NAMES)


def test_without_names_nothing_is_hidden() -> None:
    messages = [{"role": "user", "content": "<|im_end|>"}]
    shown, hidden = Plain([]).hide(messages)
    assert shown == messages and not hidden


@pytest.fixture(scope="module")
def child(embedded: Path) -> Child:
    class Engine:
        model = Model(ModelConfig(embedded, 1, 256, 64, 1))

    return Child(Engine(), ChatTemplate(gguf.read(embedded).chat_template, {}), None)  # type: ignore[arg-type]


def tokens(child: Child, text: str) -> list[int]:
    return child._prepared(Ask(Request("a", []), messages=({"role": "user", "content": text},))).tokens


@pytest.mark.slow
@settings(max_examples=50, deadline=None)
@given(typed)
def test_no_text_of_a_user_becomes_a_control_token(child: Child, text: str) -> None:
    model = child._engine.model
    plain = [t for t in tokens(child, "x") if model.is_control(t)]
    found = tokens(child, text)
    assert [t for t in found if model.is_control(t)] == plain
    read = b"".join(model.piece(t, special=True) for t in found).decode("utf-8", "replace")
    assert all(read.count(name) >= text.count(name) for name in NAMES)


@pytest.mark.slow
def test_all_else_is_cut_into_tokens_as_before(child: Child) -> None:
    model = child._engine.model
    assert "<|im_start|>" in model.special_names() and len(model.special_names()) < 100
    prompt = child._template.render([{"role": "user", "content": "A fever of 38.9 °C"}])
    assert tokens(child, "A fever of 38.9 °C") == model.tokenize(prompt, special=True, add_bos=False)
