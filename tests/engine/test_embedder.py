"""Embeddings of tiny F32 models, where a batch gives the same vectors as a text alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge_runtime.engine.embedder import Embedder, EmbedderConfig
from edge_runtime.engine.request import Embedded, Event, Failed
from edge_runtime.errors import (
    Cancelled,
    ContextLengthExceeded,
    EngineClosed,
    InvalidModel,
    InvalidRequest,
)
from tests import tiny_gguf

CTX = 256
TEXTS = [
    "Fever in an infant",
    "a",
    "chest pain 123",
    "x" * 150,
    "A rash that does not fade",
    "chest pain 124",
]


def open_embedder(path: Path, **given: Any) -> Embedder:
    # Flash attention rounds to f16, and rounds otherwise in another batch.
    fixed = {"n_ctx": CTX, "n_threads": 2, "flash_attention": False}
    return Embedder.open(EmbedderConfig(path, **{**fixed, **given}))


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("poolings")
    kinds = gguf.PoolingType
    return {
        "mean": tiny_gguf.write(folder / "mean.gguf", pooling=kinds.MEAN),
        "last": tiny_gguf.write(folder / "last.gguf", pooling=kinds.LAST),
        "cls": tiny_gguf.write(folder / "cls.gguf", pooling=kinds.CLS),
        "both ways": tiny_gguf.write(folder / "both.gguf", pooling=kinds.MEAN, causal=False),
        "rank": tiny_gguf.write(folder / "rank.gguf", pooling=kinds.RANK),
        "none": tiny_gguf.write(folder / "none.gguf"),
        "bert": tiny_bert,
        "bert mean": tiny_gguf.write_bert(folder / "bert.gguf", n_ctx=256, pooling=kinds.MEAN),
    }


@pytest.fixture(scope="module")
def embedder(paths: dict[str, Path]) -> Iterator[Embedder]:
    with open_embedder(paths["mean"], n_slots=3, n_batch=64, whole=False) as embedder:
        yield embedder
        assert not embedder.busy, "a test left a text behind"


def prompt(embedder: Embedder, text: str) -> list[int]:
    return embedder.model.tokenize(text, special=False, add_bos=True)[: embedder.limit]


def steps(embedder: Embedder) -> list[Event]:
    events: list[Event] = []
    while embedder.busy:
        events += embedder.step()
    return events


@pytest.mark.parametrize(
    ("kind", "setting"),
    [
        ("mean", {}),
        ("mean", {"whole": False}),
        ("mean", {"whole": False, "n_batch": 16}),
        ("mean", {"n_slots": 1, "whole": False, "n_batch": 16}),
        ("mean", {"n_slots": 7, "n_ctx": 251}),
        ("mean", {"n_slots": 3, "whole": False}),
        ("last", {}),
        ("last", {"whole": False, "n_batch": 16}),
        ("cls", {"whole": False, "n_batch": 16}),
        ("both ways", {}),
        ("bert", {}),
        ("bert", {"n_slots": 3}),
        ("bert mean", {"n_batch": 64}),
    ],
    ids=str,
)
def test_a_batch_gives_what_each_text_gives_alone(
    paths: dict[str, Path], kind: str, setting: dict[str, Any]
) -> None:
    """Nor do the size of a step and the pieces of a text change its vector."""
    with open_embedder(paths[kind]) as embedder:
        prompts = [prompt(embedder, text) for text in TEXTS]
        alone = np.concatenate([embedder.embed([tokens]) for tokens in prompts])
    with open_embedder(paths[kind], **setting) as embedder:
        batch = embedder.embed(prompts)
        again = embedder.embed(prompts[::-1])[::-1]
    assert batch.shape == (len(TEXTS), 64) and batch.dtype == np.float32
    np.testing.assert_allclose(batch, alone, atol=1e-5)
    np.testing.assert_allclose(batch, again, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(batch, axis=1), 1, atol=1e-6)
    if kind != "cls":  # there the first token, which all have, knows of no others
        likeness = batch @ batch.T - np.eye(len(TEXTS))
        assert likeness.max() < 0.9999, "different texts have different vectors"


@pytest.mark.parametrize("kind", ["mean", "bert"])
def test_flash_attention_rounds_a_little(paths: dict[str, Path], kind: str) -> None:
    with open_embedder(paths[kind]) as exact, open_embedder(paths[kind], flash_attention=True) as flash:
        assert flash.model.flash_attention and not exact.model.flash_attention
        prompts = [prompt(exact, text) for text in TEXTS]
        likeness = (exact.embed(prompts) * flash.embed(prompts)).sum(axis=1)
    assert likeness.min() > 1 - 1e-5


def test_mean_is_the_mean_of_what_last_gives_for_each_beginning(paths: dict[str, Path]) -> None:
    """The model ends in a norm without weights, so that its vectors before pooling have one length."""
    with open_embedder(paths["mean"]) as mean, open_embedder(paths["last"]) as last:
        tokens = prompt(mean, "Fever")
        tops = last.embed([tokens[: n + 1] for n in range(len(tokens))])
        np.testing.assert_allclose(mean.embed([tokens])[0], unit(tops.sum(axis=0)), atol=1e-5)
        with open_embedder(paths["cls"]) as cls:
            np.testing.assert_allclose(cls.embed([tokens])[0], tops[0], atol=1e-5)
        assert mean.embed([tokens])[0] @ tops[-1] < 0.99


def test_an_encoder_looks_ahead(paths: dict[str, Path]) -> None:
    """The first token's vector changes with the last letter; with a causal model it does not."""
    for kind, ahead in (("bert", True), ("cls", False)):
        with open_embedder(paths[kind]) as embedder:
            one, other = embedder.embed([prompt(embedder, text) for text in ("fever a", "fever b")])
        assert (one @ other < 0.9999) == ahead


def unit(vector: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    return vector / np.linalg.norm(vector)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.integers(1, CTX), min_size=1, max_size=9),
    st.lists(st.tuples(st.integers(0, 8), st.booleans()), max_size=6),
)
def test_each_text_has_one_last_event(
    embedder: Embedder, lengths: list[int], cancels: list[tuple[int, bool]]
) -> None:
    """Whatever is cancelled, and when; and nothing of it stays in the sequences."""
    expected = embedder.embed([[5] * n for n in lengths])
    events: list[Event] = []
    for i, n in enumerate(lengths):
        embedder.submit(str(i), [5] * n)
    for i, step_first in cancels:
        events += embedder.step() if step_first else []
        embedder.cancel(str(i))
    events += steps(embedder)
    assert sorted(event.id for event in events) == sorted(str(i) for i in range(len(lengths)))
    for event in events:
        if isinstance(event, Embedded):
            vector = np.frombuffer(event.vector, dtype="<f4")
            np.testing.assert_allclose(vector, expected[int(event.id)], atol=1e-5)
            assert event.timing.n_prompt == lengths[int(event.id)]
        else:
            assert isinstance(event, Failed) and isinstance(event.error, Cancelled)
            assert int(event.id) in dict(cancels)


def test_a_step_takes_whole_texts_or_fills_up(paths: dict[str, Path]) -> None:
    lengths = [40, 30, 100, 1, 1, 1]

    def ends(**setting: Any) -> list[list[str]]:
        started: list[str] = []
        config = EmbedderConfig(paths["mean"], n_ctx=CTX, n_batch=64, **setting)
        with Embedder.open(config, on_start=started.append) as embedder:
            for i, n in enumerate(lengths):
                embedder.submit(str(i), [7] * n)
            assert [slot.n_tokens for slot in embedder.snapshot().slots] == [0] * config.n_slots
            found = []
            while embedder.busy:
                found.append([event.id for event in embedder.step()])
            assert started == list("012345") and embedder.snapshot().n_prompt == sum(lengths)
        return found

    assert ends(whole=True) == [["0"], ["1"], ["2"], ["3", "4", "5"]]
    assert ends(whole=False) == [["0"], ["1"], ["2", "3", "4", "5"]]
    assert ends(whole=False, n_slots=2) == [["0"], ["1"], ["2", "3"], ["4", "5"]]


@pytest.mark.parametrize(("kind", "whole"), [("bert", True), ("mean", True), ("mean", False)])
def test_a_short_context_makes_small_steps(paths: dict[str, Path], kind: str, whole: bool) -> None:
    with open_embedder(paths[kind], n_ctx=64, n_slots=8, whole=whole) as embedder:
        vectors = embedder.embed([[7] * n for n in (64, 20, 20, 20, 20, 20, 64, 3)])
    np.testing.assert_allclose(vectors[1:6], np.tile(vectors[1], (5, 1)), atol=1e-5)
    np.testing.assert_allclose(vectors[0], vectors[6], atol=1e-5)


def test_what_is_too_long_or_empty_is_refused_at_once(embedder: Embedder, paths: dict[str, Path]) -> None:
    with pytest.raises(ContextLengthExceeded, match=f"{CTX + 1} tokens.* {CTX} .*--ctx"):
        embedder.submit("a", [5] * (CTX + 1))
    with pytest.raises(InvalidRequest, match="no tokens"):
        embedder.embed([[5], []])
    with pytest.raises(InvalidRequest, match="-1 is not in"):
        embedder.submit("a", [-1])
    with pytest.raises(InvalidRequest, match="not in this model's vocabulary"):
        embedder.submit("a", [embedder.model.n_vocab])
    assert not embedder.busy
    with open_embedder(paths["bert"]) as bert:
        assert bert.limit == 128 and bert.embed([[7] * 128]).shape == (1, 64)
        with pytest.raises(ContextLengthExceeded) as refused:
            bert.embed([[7] * 129])
        assert "takes 128" in refused.value.message and "--ctx" not in refused.value.message


def test_an_id_is_used_once(embedder: Embedder) -> None:
    embedder.submit("a", [5])
    with pytest.raises(InvalidRequest, match="'a'"):
        embedder.submit("a", [5])
    embedder.cancel("nobody")
    assert [type(event) for event in steps(embedder)] == [Embedded]
    embedder.submit("a", [5])
    steps(embedder)


def test_models_that_give_no_vectors_are_refused(paths: dict[str, Path]) -> None:
    for kind in ("rank", "none"):
        with pytest.raises(InvalidModel, match="no pooling"):
            open_embedder(paths[kind])
    for kind in ("bert", "both ways"):
        with pytest.raises(InvalidModel, match="whole=True"):
            open_embedder(paths[kind], whole=False)


def test_close_ends_what_waits(paths: dict[str, Path]) -> None:
    embedder = open_embedder(paths["last"], n_batch=16, whole=False)
    for i in range(3):
        embedder.submit(str(i), [5] * 20)
    embedder.step()
    events = embedder.close()
    assert [event.id for event in events] == ["0", "1", "2"]
    assert all(isinstance(e, Failed) and isinstance(e.error, EngineClosed) for e in events)
    assert embedder.close() == []
    with pytest.raises(EngineClosed):
        embedder.submit("a", [5])
