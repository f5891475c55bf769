"""What a model takes, from numbers alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.device.plan import (
    NOTE_BYTES,
    Budget,
    Buffers,
    Plan,
    bound,
    budget,
    embedding_bound,
    exact,
    on_gpu,
)

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
    return bound(**{**usual, **changed})


@given(
    sizes,
    st.sampled_from(["n_slots", "n_ctx", "prefix_tokens", "weights_bytes", "n_vocab"]),
    st.integers(1, 100),
)
def test_more_of_anything_never_needs_less(size: dict[str, Any], name: str, more: int) -> None:
    assert bound(**size).total_bytes <= bound(**{**size, name: size[name] + more}).total_bytes


@given(sizes, st.integers(0, 1 << 40))
def test_the_parts_are_the_whole_and_decide(size: dict[str, Any], room: int) -> None:
    made = bound(**size)
    assert min(made.parts.values()) >= 0 and sum(made.parts.values()) == made.total_bytes
    assert Budget(room).has_room_for(made) == (made.total_bytes <= room)


def test_the_system_keeps_its_reserve_and_this_process_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edge_runtime.device.plan.pss_bytes", lambda: 60 * MB)
    monkeypatch.setattr("edge_runtime.device.plan.available_bytes", lambda reserve: 300 * MB - reserve)
    assert budget().memory_bytes == 160 * MB


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
    made = embedding_bound(**size)
    assert made.total_bytes <= embedding_bound(**{**size, name: size[name] + more}).total_bytes


def test_texts_in_pieces_need_no_more_for_long_ones_but_kv() -> None:
    size = {"weights_bytes": 400 * MB, "n_batch": 256, "n_vocab": 150_000, "n_embd": 1024, "n_head": 16}
    pieces = embedding_bound(**size, kv_bytes_per_token=10_000, n_ctx=8192, flash_attention=True, whole=False)
    whole = embedding_bound(**size, kv_bytes_per_token=10_000, n_ctx=8192, flash_attention=True, whole=True)
    assert whole.compute_bytes > 30 * pieces.compute_bytes and pieces.compute_bytes < 400 * MB
    assert whole.kv_bytes == pieces.kv_bytes


@dataclass(frozen=True)
class Weight:
    name: str
    n_bytes: int


WEIGHTS = [
    Weight("token_embd.weight", 100), Weight("output.weight", 100), Weight("output_norm.weight", 1),
    *(Weight(f"blk.{i}.{part}.weight", 10) for i in range(12) for part in ("attn_q", "ffn_up")),
]  # fmt: skip


def test_layers_on_a_gpu_begin_with_the_output_and_the_last_layer() -> None:
    whole = sum(weight.n_bytes for weight in WEIGHTS)
    assert on_gpu(WEIGHTS, 12, 0) == (whole, 0)
    assert on_gpu(WEIGHTS, 12, 1) == (whole - 101, 101)
    assert on_gpu(WEIGHTS, 12, 3) == (whole - 141, 141)
    assert on_gpu(WEIGHTS, 12, 13) == (100, whole - 100), "embeddings are looked up by the CPU"
    tied = [weight for weight in WEIGHTS if weight.name != "output.weight"]
    assert on_gpu(tied, 12, 13) == (100, whole - 100), "a head that is the embedding is there twice"


def test_what_llama_cpp_says_is_put_where_it_lies() -> None:
    said = Buffers(kv=1200, compute={"CUDA0": 70, "CUDA_Host": 5, "CPU": 2}, output=9, flash_attention=True,
                   n_layers_gpu=6)  # fmt: skip
    before = Plan(weights_bytes=0, kv_bytes=0, prefix_bytes=3, compute_bytes=0, process_bytes=4)
    made = exact(before, said, WEIGHTS, 12, n_tokens=10)
    assert (
        made.exact
        and made.kv_bytes == 600 + 10 * NOTE_BYTES
        and made.compute_bytes == 16
        and (made.prefix_bytes, made.process_bytes) == (3, 4)
    )
    assert made.gpu_bytes == 101 + 5 * 20 + 600 + 70
    assert Budget(made.total_bytes, made.gpu_bytes).has_room_for(made)
    assert not Budget(made.total_bytes, made.gpu_bytes - 1).has_room_for(made)
    assert Budget(made.total_bytes).has_room_for(made), "no GPU tells"
