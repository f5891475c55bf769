"""/v1/embeddings over a real socket: the official client, bad input, long lists, clients that go away."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import gguf
import httpx
import numpy as np
import openai
import pytest

from tests import tiny_gguf
from tests.server.test_server import error_of
from tests.serving import RunningServer, chat, idle, live, serving

SLOTS, CTX = 2, 256
TEXTS = ["Fever in an infant", "a", "chest pain", "x" * 200, "Ärztin 🤒", "a rash"]


@pytest.fixture(scope="module")
def server(tiny_mean: Path) -> Iterator[RunningServer]:
    flags = ["--slots", str(SLOTS), "--ctx", str(CTX), "--queue", "3", "--no-flash-attention"]
    with serving(tiny_mean, *flags) as server:
        yield server


@pytest.fixture
def official(server: RunningServer) -> openai.OpenAI:
    return openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0)


def ask(client: httpx.Client, text: Any, **fields: Any) -> httpx.Response:
    return client.post("/v1/embeddings", json={"model": "default", "input": text, **fields})


def vectors(response: httpx.Response) -> Any:
    assert response.status_code == 200, response.text
    data = response.json()["data"]
    assert [entry["index"] for entry in data] == list(range(len(data)))
    return np.array([entry["embedding"] for entry in data])


def test_the_official_client(official: openai.OpenAI) -> None:
    """It asks for base64 unless told otherwise, and decodes it."""
    model = official.models.list().data[0].id
    packed = official.embeddings.create(model=model, input=TEXTS)
    plain = official.embeddings.create(model=model, input=TEXTS, encoding_format="float", dimensions=64)
    assert packed.model == model and packed.object == "list"
    one, other = (np.array([entry.embedding for entry in found.data]) for found in (packed, plain))
    assert one.shape == (len(TEXTS), 64)
    np.testing.assert_allclose(one, other, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(one, axis=1), 1, atol=1e-5)
    assert packed.usage.prompt_tokens == packed.usage.total_tokens == plain.usage.prompt_tokens > 200
    with pytest.raises(openai.BadRequestError) as refused:
        official.embeddings.create(model=model, input="x", dimensions=32)
    assert refused.value.param == "dimensions" and "64" in refused.value.message
    with pytest.raises(openai.BadRequestError) as refused:
        official.embeddings.create(model=model, input="x", user="me")
    assert refused.value.param == "user"


def test_a_list_has_the_vectors_of_its_texts_in_order(client: httpx.Client) -> None:
    together = vectors(ask(client, TEXTS))
    for text, vector in zip(TEXTS, together):
        response = ask(client, text)
        np.testing.assert_allclose(vectors(response)[0], vector, atol=1e-5)
    usage = ask(client, [[1, 2, 3], [4]]).json()["usage"]
    assert usage == {"prompt_tokens": 4, "total_tokens": 4}
    pair = vectors(ask(client, [[1, 2], [7]]))
    np.testing.assert_allclose(pair[:1], vectors(ask(client, [1, 2])), atol=1e-5)
    np.testing.assert_allclose(pair[1:], vectors(ask(client, [[7]])), atol=1e-5)


def test_a_list_longer_than_the_queue(client: httpx.Client) -> None:
    """It takes a few places at a time: another text, or another list, is served meanwhile."""
    texts = [f"text {i}" for i in range(300)]
    with ThreadPoolExecutor(2) as pool:
        pending = pool.submit(ask, client, texts * 4)
        assert [ask(client, "short").status_code for _ in range(5)] == [200] * 5
        assert not pending.done()
        vectors(pending.result())
        found = list(pool.map(vectors, pool.map(lambda _: ask(client, texts), range(2))))
    np.testing.assert_allclose(found[0], found[1], atol=1e-5)
    np.testing.assert_allclose(found[0][[0, 299]], vectors(ask(client, [texts[0], texts[299]])), atol=1e-5)


def test_a_full_queue_is_429(client: httpx.Client, server: RunningServer) -> None:
    os.kill(server.child.pid, signal.SIGSTOP)
    try:
        with ThreadPoolExecutor(SLOTS + 3) as pool:
            waiting = [pool.submit(ask, client, "x") for _ in range(SLOTS + 3)]
            server.wait_until("full", lambda: live(server)["waiting"] == SLOTS + 3)
            refused = ask(client, ["y"] * 100)
            os.kill(server.child.pid, signal.SIGCONT)
            assert [future.result().status_code for future in waiting] == [200] * (SLOTS + 3)
    finally:
        os.kill(server.child.pid, signal.SIGCONT)
    assert refused.status_code == 429 and error_of(refused)["code"] == "queue_full"
    assert int(refused.headers["retry-after"]) >= 1


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"input": "x" * 300}, f"301 tokens; this model takes {CTX} at once.*--ctx"),
        ({"input": ["a", "x" * 300, "b"]}, "301 tokens"),
        ({"input": [5] * (CTX + 1)}, f"{CTX + 1} tokens"),
        ({"input": "x" * 1_500_000}, "1500001 tokens"),
        ({"input": [100_000]}, "Token id 100000 is not in this model's vocabulary"),
        ({"input": [[1], [100_000]]}, "Token id 100000"),
        ({"input": ""}, "input is empty"),
        ({"input": []}, "input is an empty list"),
        ({"input": "x", "dimensions": 10}, "dimensions is 10"),
        ({"input": "x", "stream": True}, "Unknown field 'stream'"),
        ({}, "input: "),
    ],
    ids=lambda value: str(value)[:40],
)
def test_bad_input(client: httpx.Client, fields: dict[str, Any], words: str) -> None:
    response = client.post("/v1/embeddings", json={"model": "default", **fields})
    assert response.status_code == 400, response.text[:200]
    message = error_of(response)["message"]
    assert len(message) < 400
    with pytest.raises(AssertionError, match=words):
        raise AssertionError(message)


def test_other_bad_bodies(client: httpx.Client) -> None:
    lone = client.post("/v1/embeddings", content=b'{"model":"default","input":["a","\\ud83d"]}')
    assert lone.status_code == 400 and "surrogate" in error_of(lone)["message"]
    assert ask(client, "x" * 10_000_000).status_code == 413
    other = client.post("/v1/embeddings", json={"model": "gpt-4", "input": "x"})
    assert other.status_code == 404 and error_of(other)["code"] == "model_not_found"


def test_an_embedding_model_writes_no_text(client: httpx.Client) -> None:
    prompts = {"model": "default", "prompt": "Hi"}
    for path, body in (
        ("/v1/chat/completions", chat("Hi")),
        ("/v1/chat/completions", chat("Hi", stream=True)),
        ("/v1/completions", prompts),
    ):
        response = client.post(path, json=body)
        assert response.status_code == 400
        error = error_of(response)
        assert error["param"] == "model" and error["code"] == "unsupported_parameter"
        assert "tiny-mean is an embedding model" in error["message"] and "/v1/embeddings" in error["message"]
    assert client.delete("/v1/conversations/c").status_code == 204


def test_health_and_metrics(client: httpx.Client) -> None:
    def value(name: str) -> float:
        lines = client.get("/metrics").text.splitlines()
        return float(next(line.split()[-1] for line in lines if line.startswith(name)))

    health = client.get("/health").json()
    assert health["status"] == "ok" and health["model"]["embeddings"] is True
    assert (health["slots"], health["ctx_per_slot"]) == (SLOTS, CTX)
    ask(client, "x")
    before = value('medge_tokens_total{kind="prompt"}')
    ask(client, [[1, 2], [3]])
    assert value('medge_tokens_total{kind="prompt"}') == before + 3


def test_a_client_that_goes_away_ends_its_list(client: httpx.Client, server: RunningServer) -> None:
    texts = ["x" * 250] * 2048
    with pytest.raises(httpx.ReadTimeout):
        client.post("/v1/embeddings", json={"model": "default", "input": texts}, timeout=0.5)
    server.wait_until("free", lambda: idle(server), 3)
    line = next(
        line
        for line in client.get("/metrics").text.splitlines()
        if line.startswith('medge_requests_total{end="stop"}')
    )
    assert float(line.split()[-1]) < 2048, "most of the list was never read"


def test_deadline(tiny_mean: Path) -> None:
    with serving(tiny_mean, "--deadline-s", "0.3", "--ctx", "512") as server, server.client() as client:
        response = ask(client, ["x" * 500] * 2048)
        assert response.status_code == 504 and error_of(response)["code"] == "deadline_exceeded"
        server.wait_until("free", lambda: idle(server), 3)
        assert ask(client, "x").status_code == 200


def test_the_death_of_the_engine_is_no_riddle(tiny_mean: Path) -> None:
    with serving(tiny_mean, "--ctx", "512") as server, server.client() as client:
        with ThreadPoolExecutor(1) as pool:
            pending = pool.submit(ask, client, ["x" * 500] * 2048)
            server.wait_until("reading", lambda: not idle(server))
            os.kill(server.child.pid, signal.SIGKILL)
            response = pending.result()
        assert response.status_code == 503 and error_of(response)["code"] == "engine_died"
        assert ask(client, "x").status_code == 200 and server.health()["restarts"] == 1


def test_an_encoder(tiny_bert: Path) -> None:
    """The limit is that of its training, whatever --ctx says; words from outside its vocabulary are taken."""
    with serving(tiny_bert, "--kv", "q8_0") as server, server.client() as client:
        assert server.health()["ctx_per_slot"] == 128
        found = vectors(ask(client, ["fever in an infant", "fever in an infant?", "发烧 🤒"]))
        assert found.shape == (3, 64)
        long = ask(client, "a " * 127)
        message = error_of(long)["message"]
        assert long.status_code == 400 and "129 tokens" in message and "128" in message
        assert "--ctx" not in message
        assert ask(client, "a " * 126).json()["usage"]["prompt_tokens"] == 128


def test_a_reranker_is_named(tmp_path: Path) -> None:
    path = tiny_gguf.write(tmp_path / "ranks.gguf", pooling=gguf.PoolingType.RANK)
    with serving(path, "--ctx", "256") as server, server.client() as client:
        response = ask(client, "x")
        assert response.status_code == 400 and "ranks is a reranker" in error_of(response)["message"]
        assert server.health()["model"]["embeddings"] is False


def test_a_text_model_has_none(tiny: Path) -> None:
    with serving(tiny, "--ctx", "256") as server, server.client() as client:
        response = ask(client, "x")
        assert response.status_code == 400 and "has no embeddings" in error_of(response)["message"]
