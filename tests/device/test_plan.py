"""What does not fit is refused before it is loaded, with something that would make it fit."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from edge_runtime.device.plan import RESERVE_BYTES, Plan, make_embedding_plan, make_plan, require_room
from edge_runtime.errors import NotEnoughMemory

MB = 1 << 20

sizes = st.fixed_dictionaries(
    {
        "weights_bytes": st.integers(0, 1 << 36),
        "kv_bytes_per_token": st.floats(1, 1 << 20),
        "n_slots": st.integers(1, 64),
        "n_ctx": st.integers(64, 1 << 20),
        "prefix_tokens": st.integers(0, 1 << 20),
        "n_batch": st.integers(1, 2048),
        "n_vocab": st.integers(1, 300_000),
        "n_embd": st.integers(1, 16_384),
    }
)


def plan(**changed: Any) -> Plan:
    usual: dict[str, Any] = {
        "weights_bytes": 400 * MB,
        "kv_bytes_per_token": 24_576,
        "n_slots": 4,
        "n_ctx": 2048,
        "prefix_tokens": 1024,
        "n_batch": 256,
        "n_vocab": 50_000,
        "n_embd": 1024,
    }
    return make_plan(**{**usual, **changed})


def refusal(plan: Plan, available: int) -> str:
    with pytest.raises(NotEnoughMemory) as refused:
        require_room(plan, available)
    return refused.value.message


@given(
    sizes,
    st.sampled_from(["n_slots", "n_ctx", "prefix_tokens", "weights_bytes", "n_vocab"]),
    st.integers(1, 100),
)
def test_more_of_anything_never_needs_less(size: dict[str, Any], name: str, more: int) -> None:
    assert make_plan(**size).total_bytes <= make_plan(**{**size, name: size[name] + more}).total_bytes


@given(sizes)
def test_the_parts_are_the_whole(size: dict[str, Any]) -> None:
    made = make_plan(**size)
    parts = [value for name, value in vars(made).items() if name.endswith("_bytes")]
    assert min(parts) >= 0
    assert sum(parts) == made.total_bytes


@given(sizes, st.integers(0, 1 << 40))
def test_what_fits_is_taken_and_what_does_not_is_refused(size: dict[str, Any], available: int) -> None:
    made = make_plan(**size)
    if made.total_bytes + RESERVE_BYTES <= available:
        require_room(made, available)
    else:
        refusal(made, available)


def test_the_boundary() -> None:
    made = plan()
    require_room(made, made.total_bytes + RESERVE_BYTES)
    refusal(made, made.total_bytes + RESERVE_BYTES - 1)


def test_the_refusal_has_the_parts_and_what_is_free() -> None:
    made = plan()
    text = refusal(made, RESERVE_BYTES + 123 * MB)
    assert f"needs {made.total_bytes / MB:,.0f} MiB" in text
    assert "weights 400 MiB" in text and f"KV memory {made.kv_bytes / MB:,.0f} MiB" in text
    assert "123 MiB are free" in text
    assert "0 MiB are free" in refusal(made, 0), "never a negative number"


def test_weights_that_are_too_large_need_a_smaller_model() -> None:
    assert "smaller model" in refusal(plan(weights_bytes=10_000 * MB), 2_000 * MB)


def test_q8_0_is_named_where_it_is_enough_and_not_in_use() -> None:
    half = plan(n_ctx=65_536)
    room = half.total_bytes - half.kv_bytes // 4 + RESERVE_BYTES
    assert "With --kv q8_0 it fits" in refusal(half, room)
    assert "q8_0" not in refusal(plan(n_ctx=65_536, kv="q8_0"), room)


def test_a_small_model_with_a_huge_context_is_not_called_too_large() -> None:
    text = refusal(plan(weights_bytes=MB, n_slots=64, n_ctx=1 << 20), 16_000 * MB)
    assert "smaller model" not in text and "--slots times --ctx" in text


@given(sizes, st.floats(0.01, 0.99))
def test_what_the_refusal_advises_makes_it_fit(size: dict[str, Any], share: float) -> None:
    made = make_plan(**{**size, "kv": "q8_0"})
    available = int(made.total_bytes * share) + RESERVE_BYTES
    text = refusal(made, available)
    advised = re.search(r"at least ([\d,.]+) times smaller", text)
    assume(advised)
    assert advised
    factor = float(advised[1].replace(",", ""))
    grows = made.kv_bytes + made.prefix_bytes + made.mask_bytes
    assert made.total_bytes - grows + grows / factor <= available - RESERVE_BYTES


embedding_sizes = st.fixed_dictionaries(
    {
        "weights_bytes": st.integers(0, 1 << 36),
        "kv_bytes_per_token": st.integers(0, 1 << 20),
        "n_ctx": st.integers(64, 1 << 20),
        "n_batch": st.integers(1, 2048),
        "n_vocab": st.integers(1, 300_000),
        "n_embd": st.integers(1, 16_384),
        "n_head": st.integers(1, 128),
        "flash_attention": st.booleans(),
        "whole": st.booleans(),
    }
)


@given(embedding_sizes, st.sampled_from(["n_ctx", "weights_bytes", "n_vocab", "n_embd"]), st.integers(1, 100))
def test_more_of_anything_never_needs_less_for_embeddings(size: dict[str, Any], name: str, more: int) -> None:
    made = make_embedding_plan(**size)
    assert made.total_bytes <= make_embedding_plan(**{**size, name: size[name] + more}).total_bytes


@given(embedding_sizes, st.floats(0.01, 0.99))
def test_a_smaller_context_as_advised_makes_embeddings_fit(size: dict[str, Any], share: float) -> None:
    made = make_embedding_plan(**size, kv="q8_0")
    available = int(made.total_bytes * share) + RESERVE_BYTES
    text = refusal(made, available)
    assert "--slots" not in text and "q8_0" not in text
    advised = re.search(r"--ctx at least ([\d,.]+) times smaller", text)
    assume(advised)
    assert advised
    n_ctx = int(size["n_ctx"] / float(advised[1].replace(",", "")))
    assert make_embedding_plan(**{**size, "n_ctx": n_ctx}).total_bytes <= available - RESERVE_BYTES


def test_an_encoder_is_not_told_of_kv_memory_it_has_not() -> None:
    size = {"weights_bytes": MB, "n_ctx": 1 << 19, "n_batch": 256, "n_vocab": 30_000, "n_embd": 384}
    made = make_embedding_plan(**size, kv_bytes_per_token=0, n_head=12, flash_attention=True, whole=True)
    assert made.kv_bytes == 0 and "q8_0" not in refusal(made, 4_000 * MB)


def test_texts_in_pieces_need_no_more_for_long_ones_but_kv() -> None:
    size = {"weights_bytes": 400 * MB, "n_batch": 256, "n_vocab": 150_000, "n_embd": 1024, "n_head": 16}
    pieces = make_embedding_plan(
        **size, kv_bytes_per_token=10_000, n_ctx=8192, flash_attention=True, whole=False
    )
    whole = make_embedding_plan(
        **size, kv_bytes_per_token=10_000, n_ctx=8192, flash_attention=True, whole=True
    )
    assert whole.compute_bytes > 30 * pieces.compute_bytes and pieces.compute_bytes < 400 * MB
    assert whole.kv_bytes == pieces.kv_bytes
