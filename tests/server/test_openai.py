"""OpenAI's JSON in and out, without a server."""

from __future__ import annotations

import base64
import inspect
import json
import struct
from typing import Any, get_type_hints

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.chat.completion_create_params import CompletionCreateParamsBase as ChatParams
from openai.types.completion_create_params import CompletionCreateParamsBase as CompletionParams
from openai.types.embedding_create_params import EmbeddingCreateParams as EmbeddingParams

from edge_runtime.engine.request import Delta, Done, Embedded, Timing
from edge_runtime.errors import InvalidRequest, MedgeError, Unsupported
from edge_runtime.server.openai import REFUSED, Answer, ChatBody, CompletionBody, EmbeddingBody, parse

MESSAGES = [{"role": "user", "content": "Hi"}]


def chat(**fields: Any) -> ChatBody:
    body = parse(ChatBody, json.dumps({"model": "m", "messages": MESSAGES, **fields}).encode())
    assert isinstance(body, ChatBody)
    return body


def completion(**fields: Any) -> CompletionBody:
    body = parse(CompletionBody, json.dumps({"model": "m", "prompt": "Hi", **fields}).encode())
    assert isinstance(body, CompletionBody)
    return body


def embedding(**fields: Any) -> EmbeddingBody:
    return parse(EmbeddingBody, json.dumps({"model": "m", "input": "Hi", **fields}).encode())


@pytest.mark.parametrize(
    "params, body",
    [(ChatParams, ChatBody), (CompletionParams, CompletionBody), (EmbeddingParams, EmbeddingBody)],
)
def test_every_field_of_the_official_client_is_known(params: type, body: type[ChatBody]) -> None:
    names = set(get_type_hints(params)) | set(inspect.get_annotations(params))
    unknown = names - set(body.model_fields) - set(REFUSED)
    assert not unknown, f"neither honoured nor refused by name: {unknown}"


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_refused_fields_name_themselves(name: str) -> None:
    with pytest.raises(Unsupported) as refused:
        chat(**{name: "something that means something"})
    assert refused.value.param == name and refused.value.status == 400
    chat(**{name: None})
    for neutral in REFUSED[name][1]:
        chat(**{name: neutral})


@pytest.mark.parametrize(
    "fields, param",
    [
        ({"temperature": "warm"}, "temperature"),
        ({"temperature": 3}, "temperature"),
        ({"temperature": -1}, "temperature"),
        ({"top_p": 1.01}, "top_p"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 10**30}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"max_tokens": 1, "max_completion_tokens": 2}, "max_tokens"),
        ({"n": 0}, "n"),
        ({"n": 1000}, "n"),
        ({"seed": 2**70}, "seed"),
        ({"stop": [""]}, "stop"),
        ({"stop": ["a"] * 17}, "stop"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"logit_bias": {"5": 200}}, "logit_bias.5"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.role"),
        ({"messages": [{"role": "user"}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": "x", "name": "y"}]}, "messages.0.name"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, None),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"response_format": {"type": "json_object"}, "grammar": "root ::= []"}, "grammar"),
        ({"stream_options": {"include_obfuscation": True}}, "stream_options.include_obfuscation"),
        ({"temprature": 1}, "temprature"),
        ({"model": 5}, "model"),
    ],
    ids=str,
)
def test_wrong_values_are_refused_with_their_field(fields: dict[str, Any], param: str | None) -> None:
    with pytest.raises(InvalidRequest) as refused:
        chat(**fields).asks(10)
    if param:
        assert refused.value.param == param
    assert refused.value.message.endswith(".") and "\n" not in refused.value.message


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"[]", b"null", b"1", b'"x"', b"\xff\xfe", b"[" * 100_000, b'{"a":' * 50_000],
    ids=repr,
)
def test_what_is_no_json_object_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidRequest):
        parse(ChatBody, data)


def test_lone_surrogate_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="surrogate"):
        parse(ChatBody, b'{"model":"m","messages":[{"role":"user","content":"\\ud83d"}]}')
    body = parse(ChatBody, b'{"model":"m","messages":[{"role":"user","content":"\\ud83e\\udd12"}]}')
    assert isinstance(body, ChatBody) and body.messages[0].plain()["content"] == "🤒"


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@given(st.sampled_from([*ChatBody.model_fields, *REFUSED, "other"]), json_values)
def test_any_value_is_taken_or_refused_in_one_sentence(name: str, value: Any) -> None:
    try:
        chat(**{name: value}).asks(10)
    except MedgeError as error:
        assert error.status == 400 and len(error.message) < 1000


def test_fields_reach_the_request() -> None:
    body = chat(
        temperature=0.1, top_p=0.5, top_k=7, min_p=0.2, repeat_penalty=1.2, frequency_penalty=0.3,
        presence_penalty=0.4, seed=11, logit_bias={"5": -100, "6": 3}, max_completion_tokens=9, stop="x",
        logprobs=True, top_logprobs=2, n=2, deadline_s=5, conversation="c", ignore_eos=True,
    )  # fmt: skip
    first, second = body.asks(100)
    sampling = first.request.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p) == (0.1, 0.5, 7, 0.2)
    assert (sampling.repeat_penalty, sampling.frequency_penalty, sampling.presence_penalty) == (1.2, 0.3, 0.4)
    assert sampling.logit_bias == ((5, float("-inf")), (6, 3.0))
    assert (sampling.seed, second.request.sampling.seed) == (11, 12)
    request = first.request
    assert (request.max_tokens, request.stop, request.n_top_logprobs) == (9, ("x",), 2)
    assert (request.deadline_s, request.conversation, request.ignore_eos) == (5, "c", True)
    assert chat(deadline_s=500).asks(100)[0].request.deadline_s == 100
    assert request.id != second.request.id


def test_completion_prompts() -> None:
    assert completion(prompt=["a", "b"], n=2).asks(9)[3].text == "b"
    assert completion(prompt=[1, 2]).asks(9)[0].tokens == (1, 2)
    assert completion(prompt=[[1], [2, 3]]).asks(9)[1].tokens == (2, 3)
    assert completion().asks(9)[0].request.max_tokens == 16
    ask = completion(echo=True, logprobs=1, max_tokens=0).asks(9)[0]
    assert ask.request.scores_prompt
    for bad in ([], [""] * 40, [[-1]], 5, [[[1]]]):
        with pytest.raises(InvalidRequest):
            completion(prompt=bad).asks(9)


@pytest.mark.parametrize(
    "fields, param",
    [
        ({"input": ""}, "input"),
        ({"input": []}, "input"),
        ({"input": [""]}, "input"),
        ({"input": ["a", ""]}, "input.1"),
        ({"input": [[1], []]}, "input.1"),
        ({"input": ["a"] * 2049}, "input"),
        ({"input": "x" * 4_000_001}, "input"),
        ({"input": 5}, None),
        ({"input": ["a", 1]}, None),
        ({"input": [[[1]]]}, None),
        ({"input": [-1]}, "input.0"),
        ({"input": [1 << 40]}, "input.0"),
        ({"input": None}, None),
        ({"encoding_format": "hex"}, "encoding_format"),
        ({"dimensions": 63}, "dimensions"),
        ({"dimensions": 0}, "dimensions"),
        ({"dimensions": "small"}, "dimensions"),
        ({"user": "me"}, "user"),
        ({"temperature": 1}, "temperature"),
        ({"inputs": "x"}, "inputs"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_wrong_embedding_requests_are_refused(fields: dict[str, Any], param: str | None) -> None:
    with pytest.raises(InvalidRequest) as refused:
        embedding(**fields).asks(64)
    if param:
        assert refused.value.param == param
    assert refused.value.status == 400
    assert refused.value.message.endswith(".") and "\n" not in refused.value.message


def test_embedding_inputs() -> None:
    asks = embedding(input=["a", "b"], dimensions=64, user=None).asks(64)
    assert [ask.text for ask in asks] == ["a", "b"] and len({ask.request.id for ask in asks}) == 2
    assert [ask.tokens for ask in embedding(input=[1, 2]).asks(64)] == [(1, 2)]
    assert [ask.tokens for ask in embedding(input=[[1], [2, 3]]).asks(64)] == [(1,), (2, 3)]
    assert len(embedding(input=["a"] * 2048).asks(64)) == 2048
    with pytest.raises(InvalidRequest, match="surrogate"):
        parse(EmbeddingBody, b'{"model":"m","input":"\\ud83d"}')


@given(st.lists(st.floats(-1, 1, width=32), min_size=1, max_size=8), st.integers(1, 3))
def test_base64_holds_the_same_numbers(numbers: list[float], n: int) -> None:
    timing = Timing(0.0, None, 0.2, (), 3, 0, 0, None)
    ends = [Embedded("x", "stop", timing, vector=struct.pack(f"<{len(numbers)}f", *numbers))] * n
    plain = embedding(encoding_format="float").answer("a", ends)
    packed = embedding(encoding_format="base64").answer("a", ends)
    assert plain["usage"] == {"prompt_tokens": 3 * n, "total_tokens": 3 * n}
    for i, (one, other) in enumerate(zip(plain["data"], packed["data"])):
        assert one["index"] == other["index"] == i and one["embedding"] == numbers
        assert np.frombuffer(base64.b64decode(other["embedding"]), dtype="<f4").tolist() == numbers


@given(st.text())
def test_chunks_are_json_whatever_the_text(text: str) -> None:
    timing = Timing(0.0, 0.1, 0.2, (0.1, 0.2), 3, 1, 2, None)
    for is_chat in (True, False):
        answer = Answer(is_chat, 'a "model"')
        for line in (
            answer.first(0),
            answer.chunk(0, Delta("x", text)),
            answer.last(0, Done("x", "stop", timing)),
            answer.usage([Done("x", "stop", timing)]),
        ):
            if not line:
                continue
            assert line.startswith("data: ") and line.endswith("\n\n") and "\n" not in line[:-2]
            value = json.loads(line[6:])
            assert value["model"] == 'a "model"'
        chunk = json.loads(answer.chunk(0, Delta("x", text))[6:])["choices"][0]
        assert (chunk["delta"]["content"] if is_chat else chunk["text"]) == text
