"""The official OpenAI client and the embedded model: what a user's program does."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest

from tests.serving import RunningServer, serving

pytestmark = pytest.mark.slow

SYSTEM = "You are a careful medical assistant. Answer in plain words, and say when to see a doctor. " * 6


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    with serving(None, "--slots", "8", "--ctx", "1024") as server:
        yield server


@pytest.fixture
def client(server: RunningServer) -> openai.OpenAI:
    return openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0)


def test_chat(client: openai.OpenAI) -> None:
    model = client.models.list().data[0].id
    answer = client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": "What is the capital of France? One word."}],
        temperature=0,
        max_completion_tokens=20,
    )
    assert "Paris" in (answer.choices[0].message.content or "")
    assert answer.choices[0].finish_reason in ("stop", "length")
    assert answer.usage and 0 < answer.usage.completion_tokens <= 20


def test_stream_with_usage(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model="default",
        messages=[
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "Count from one to five."}]},
        ],
        stream=True,
        stream_options={"include_usage": True},
        max_tokens=30,
        seed=1,
    )
    chunks = list(stream)
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text and chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens <= 30


def test_logprobs(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="default",
        messages=[{"role": "user", "content": "Is water wet?"}],
        logprobs=True,
        top_logprobs=3,
        max_tokens=5,
        temperature=0,
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs and logprobs.content
    assert "".join(t.token for t in logprobs.content) == answer.choices[0].message.content
    assert all(len(t.top_logprobs) == 3 and t.top_logprobs[0].token == t.token for t in logprobs.content)


def test_structured_output(client: openai.OpenAI) -> None:
    schema = {
        "type": "object",
        "properties": {"urgent": {"type": "boolean"}, "reason": {"type": "string", "maxLength": 80}},
        "required": ["urgent", "reason"],
        "additionalProperties": False,
    }
    answer = client.chat.completions.create(
        model="default",
        messages=[{"role": "user", "content": "Chest pain and sweating: is it urgent?"}],
        response_format={
            "type": "json_schema",
            "json_schema": {"name": "t", "schema": schema, "strict": True},
        },
        max_tokens=200,
    )
    value = json.loads(answer.choices[0].message.content or "")
    assert isinstance(value["urgent"], bool) and len(value["reason"]) <= 80


def test_errors_are_the_clients_own(client: openai.OpenAI) -> None:
    messages: list[openai.types.chat.ChatCompletionMessageParam] = [{"role": "user", "content": "Hi"}]
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="gpt-4o", messages=messages)
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model="default", messages=messages, user="me")
    assert refused.value.param == "user" and refused.value.code == "unsupported_parameter"
    with pytest.raises(openai.BadRequestError) as refused:
        client.embeddings.create(model="default", input="x", encoding_format="float")
    assert "embeddings" in refused.value.message


def ask(client: openai.OpenAI, i: int) -> str:
    answer = client.chat.completions.create(
        model="default",
        messages=[
            {"role": "system", "content": SYSTEM},
            {"role": "user", "content": f"Question {i}: what is fever?"},
        ],
        max_tokens=24,
        temperature=0,
    )
    assert answer.usage and answer.usage.completion_tokens > 0
    return answer.choices[0].message.content or ""


def test_sixteen_clients_at_once(client: openai.OpenAI) -> None:
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda i: ask(client, i), range(32)))
    assert len(answers) == 32 and all(answers)


def test_kill_under_load(server: RunningServer, client: openai.OpenAI) -> None:
    """Nobody waits for ever: some answers are lost with a clear error, and the next ones come."""
    with ThreadPoolExecutor(16) as pool:
        pending = [pool.submit(ask, client, i) for i in range(24)]
        time.sleep(1.0)
        os.kill(server.child.pid, signal.SIGKILL)
        lost = 0
        for answer in pending:
            try:
                assert answer.result(timeout=120)
            except openai.InternalServerError as error:
                assert error.code == "engine_died"
                lost += 1
    assert 1 <= lost <= 8
    assert ask(client, 99)
    assert server.health()["restarts"] == 1
