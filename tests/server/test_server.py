"""A real server over a real socket, with the tiny model: API, bad input, and clients that misbehave."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from edge_runtime.telemetry.records import read
from tests import tiny_gguf
from tests.serving import RunningServer, chat, idle, serving

SLOTS, CTX = 2, 512


@pytest.fixture(scope="module")
def server(tiny: Path) -> Iterator[RunningServer]:
    flags = ["--slots", str(SLOTS), "--ctx", str(CTX), "--queue", "4", "--body-timeout-s", "1"]
    with serving(tiny, *flags) as server:
        yield server


def sse(response: httpx.Response) -> Iterator[Any]:
    for line in response.iter_lines():
        if line.startswith("data: "):
            yield line[6:] if line == "data: [DONE]" else json.loads(line[6:])


def error_of(response: httpx.Response) -> dict[str, Any]:
    error: dict[str, Any] = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert "\n" not in error["message"] and "Traceback" not in error["message"]
    return error


def test_health_tells_what_really_runs(client: httpx.Client) -> None:
    health = client.get("/health").json()
    assert health["status"] == "ok" and health["flash_attention"] is True
    assert health["device"].pop("name")
    assert health["device"] == {"kind": "cpu", "n_layers_gpu": 0, "n_layers": 2}
    assert (health["slots"], health["ctx_per_slot"]) == (SLOTS, CTX)


def test_stream_and_whole_are_the_same_answer(client: httpx.Client) -> None:
    body = chat("Hello", max_tokens=20, temperature=0, ignore_eos=True)
    whole = client.post("/v1/chat/completions", json=body).json()
    text, finish, usage = "", None, None
    body |= {"stream": True, "stream_options": {"include_usage": True}}
    with client.stream("POST", "/v1/chat/completions", json=body) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        events = list(sse(response))
    assert events[-1] == "[DONE]"
    assert events[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    for event in events[:-1]:
        for choice in event["choices"]:
            text += choice["delta"].get("content", "")
            finish = choice["finish_reason"] or finish
        usage = event.get("usage") or usage
    assert text == whole["choices"][0]["message"]["content"]
    assert finish == whole["choices"][0]["finish_reason"] == "length"
    assert usage is not None and usage["completion_tokens"] == whole["usage"]["completion_tokens"] == 20
    assert events[-2]["timings"]["n_generated"] == 20


def test_several_choices_differ_and_stream_under_their_index(client: httpx.Client) -> None:
    body = chat("Hello", max_tokens=12, n=3, seed=5, temperature=2, ignore_eos=True)
    whole = client.post("/v1/chat/completions", json=body).json()
    texts = [choice["message"]["content"] for choice in whole["choices"]]
    assert len(set(texts)) == 3
    streamed = ["", "", ""]
    with client.stream("POST", "/v1/chat/completions", json={**body, "stream": True}) as response:
        for event in sse(response):
            if isinstance(event, dict):
                for choice in event["choices"]:
                    streamed[choice["index"]] += choice["delta"].get("content", "")
    assert all(streamed)


def test_echo_with_logprobs_covers_the_prompt(client: httpx.Client) -> None:
    body = {"model": "default", "prompt": "Fever", "echo": True, "logprobs": 2, "max_tokens": 1}
    choice = client.post("/v1/completions", json=body).json()["choices"][0]
    logprobs = choice["logprobs"]
    assert choice["text"].startswith("Fever")
    assert logprobs["tokens"][:6] == ["<s>", "F", "e", "v", "e", "r"]
    assert logprobs["token_logprobs"][0] is None and all(x < 0 for x in logprobs["token_logprobs"][1:])
    assert all(len(top) <= 2 for top in logprobs["top_logprobs"][1:])


def test_schema_and_grammar(client: httpx.Client) -> None:
    schema = {
        "type": "object",
        "properties": {"dose": {"type": "integer", "minimum": 0, "maximum": 500}},
        "required": ["dose"],
        "additionalProperties": False,
    }
    form = {"type": "json_schema", "json_schema": {"name": "d", "schema": schema, "strict": True}}
    body = chat("?", response_format=form, max_tokens=100)
    answer = json.loads(
        client.post("/v1/chat/completions", json=body).json()["choices"][0]["message"]["content"]
    )
    assert 0 <= answer["dose"] <= 500
    bad = client.post("/v1/chat/completions", json=chat("?", grammar="root ::= foo"))
    assert bad.status_code == 400 and error_of(bad)["code"] == "invalid_grammar"


@pytest.mark.parametrize(
    "method, path, body, status, code",
    [
        ("POST", "/v1/chat/completions", chat("x" * 2000), 400, "context_length_exceeded"),
        ("POST", "/v1/chat/completions", chat("x" * 2000, stream=True), 400, "context_length_exceeded"),
        ("POST", "/v1/chat/completions", {**chat("x"), "model": "gpt-4"}, 404, "model_not_found"),
        ("POST", "/v1/chat/completions", chat("x", tools=[{}]), 400, "unsupported_parameter"),
        ("POST", "/v1/chat/completions", chat("x", stream_options={}), 400, "invalid_value"),
        ("POST", "/v1/completions", {"model": "default", "prompt": [10**5]}, 400, "invalid_value"),
        ("POST", "/v1/completions", {"model": "default", "prompt": []}, 400, "invalid_value"),
        ("POST", "/v1/embeddings", {"model": "default", "input": "x"}, 400, "unsupported_parameter"),
        ("POST", "/markdown", {"text": 5}, 400, "invalid_value"),
        ("GET", "/v1/chat/completions", None, 405, "invalid_value"),
        ("GET", "/v1/models/other", None, 404, "model_not_found"),
        ("GET", "/nothing", None, 404, "not_found"),
        ("GET", "/page/../app.py", None, 404, "not_found"),
        ("GET", "/page/%2e%2e/app.py", None, 404, "not_found"),
    ],
)
def test_refusals(client: httpx.Client, method: str, path: str, body: Any, status: int, code: str) -> None:
    response = client.request(method, path, json=body)
    assert response.status_code == status, response.text
    assert error_of(response)["code"] == code


def test_too_long_prompt_is_refused_with_its_length(client: httpx.Client) -> None:
    error = error_of(client.post("/v1/chat/completions", json=chat("x" * 2000)))
    assert "2020 tokens" in error["message"] and str(CTX) in error["message"] and "--ctx" in error["message"]


def test_empty_and_odd_prompts_are_answered(client: httpx.Client) -> None:
    for text in ("", " ", "\0", "\x1b[31m", "🤒" * 20, "‮abc", "<|im_end|>", "{{ 7*7 }}"):
        response = client.post("/v1/chat/completions", json=chat(text, max_tokens=3, ignore_eos=True))
        assert response.status_code == 200, text
        assert response.json()["usage"]["completion_tokens"] == 3


def test_large_bodies_are_refused(client: httpx.Client, server: RunningServer) -> None:
    response = client.post("/v1/chat/completions", json=chat("x" * 10_000_000))
    assert response.status_code == 413 and error_of(response)["code"] == "request_too_large"
    # Chunked, so that no length is declared: refused while it comes.
    response = client.post("/v1/chat/completions", content=(b"x" * 100_000 for _ in range(100)))
    assert response.status_code == 413


def test_slow_sender_is_refused_and_disturbs_nobody(client: httpx.Client, server: RunningServer) -> None:
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as slow:
        slow.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n")
        begin = time.monotonic()
        slow.settimeout(10)
        slow.sendall(b"{")
        assert client.post("/v1/chat/completions", json=chat("Hi", max_tokens=3)).status_code == 200
        assert slow.recv(1000).startswith(b"HTTP/1.1 408")
        assert 0.5 < time.monotonic() - begin < 5


def test_client_that_stops_reading_is_dropped(client: httpx.Client, server: RunningServer) -> None:
    """Its buffers fill, then it is cut off; the slot is free again."""
    host, port = server.url.removeprefix("http://").split(":")
    # Log-probabilities make an answer of megabytes, more than the buffers of both sides hold.
    body = json.dumps(chat("Hi", stream=True, ignore_eos=True, n=6, logprobs=True, top_logprobs=20)).encode()
    with socket.socket() as stuck:
        stuck.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        stuck.connect((host, int(port)))
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
        stuck.sendall(head.encode() + body)
        server.wait_until("answering", lambda: not idle(server))
        server.wait_until("dropped", lambda: idle(server))
        assert client.post("/v1/chat/completions", json=chat("Hi", max_tokens=3)).status_code == 200


def test_disconnect_cancels(client: httpx.Client, server: RunningServer) -> None:
    body = chat("Hi", ignore_eos=True, stream=True)
    with client.stream("POST", "/v1/chat/completions", json=body) as response:
        next(sse(response))
    begin = time.monotonic()
    server.wait_until("free", lambda: idle(server), 5)
    assert time.monotonic() - begin < 2
    with pytest.raises(httpx.ReadTimeout):
        client.post("/v1/chat/completions", json=chat("Hi", ignore_eos=True, n=2), timeout=0.05)


def test_full_queue_is_429_at_once(client: httpx.Client, server: RunningServer) -> None:
    body = chat("Hi", ignore_eos=True, max_tokens=400)
    with ThreadPoolExecutor(12) as pool:
        responses = list(pool.map(lambda _: client.post("/v1/chat/completions", json=body), range(12)))
    statuses = [r.status_code for r in responses]
    assert set(statuses) == {200, 429} and statuses.count(200) >= SLOTS + 4
    refused = next(r for r in responses if r.status_code == 429)
    assert int(refused.headers["retry-after"]) >= 1 and error_of(refused)["type"] == "rate_limit_error"


def test_deadline(client: httpx.Client) -> None:
    response = client.post("/v1/chat/completions", json=chat("Hi", ignore_eos=True, deadline_s=0.01))
    assert response.status_code == 504 and error_of(response)["code"] == "deadline_exceeded"


def test_conversation_is_forgotten(client: httpx.Client) -> None:
    body = chat(
        "A private question about something that is long enough to be kept", max_tokens=2, conversation="c1"
    )
    first = client.post("/v1/chat/completions", json=body).json()
    again = client.post("/v1/chat/completions", json=body).json()
    assert first["timings"]["n_cached"] < again["timings"]["n_cached"]
    assert client.delete("/v1/conversations/c1").status_code == 204
    cleared = client.post("/v1/chat/completions", json=body).json()
    assert cleared["timings"]["n_cached"] < 40  # the template's own words, at most


def test_metrics_count(client: httpx.Client) -> None:
    def value(name: str) -> float:
        lines = client.get("/metrics").text.splitlines()
        return float(next(line.split()[-1] for line in lines if line.startswith(name)))

    before = value('medge_tokens_total{kind="generated"}')
    client.post("/v1/chat/completions", json=chat("Hi", max_tokens=7, ignore_eos=True))
    assert value('medge_tokens_total{kind="generated"}') == before + 7
    assert value("medge_ttft_seconds_count") >= 1 and value("medge_slots ") == SLOTS


def test_markdown_is_safe(client: httpx.Client) -> None:
    def html(text: str) -> str:
        return str(client.post("/markdown", json={"text": text}).json()["html"])

    assert "<table>" in html("| a | b |\n|---|---|\n| 1 | 2 |")
    assert "<strong>" in html("**dose**")
    assert 'align="right"' in html("| a |\n|--:|\n| 1 |")
    for attack in (
        "<script>alert(1)</script>", "<img src=x onerror=alert(1)>", "[x](javascript:alert(1))",
        "![x](http://evil/a.png)", "[x](data:text/html,<script>)", "<a href='javascript:1'>",
    ):  # fmt: skip
        rendered = html(attack)
        assert "<script" not in rendered and "<img" not in rendered
        assert 'href="javascript' not in rendered and 'href="data' not in rendered


def test_page_is_served_with_its_policy(client: httpx.Client) -> None:
    page = client.get("/")
    assert page.status_code == 200 and "default-src 'none'" in page.headers["content-security-policy"]
    assert "http://" not in page.text.replace("http://www.w3.org", "") and "https://" not in page.text


def test_hosts_and_origins(client: httpx.Client) -> None:
    for host in ("evil.example", "evil.example:80", "127.0.0.1.evil.example", ""):
        response = client.get("/health", headers={"Host": host})
        assert response.status_code in (400, 403), host
    for host in ("localhost", "127.0.0.1:1", "[::1]:8080"):
        assert client.get("/health", headers={"Host": host}).status_code == 200
    page = client.get("/health", headers={"Origin": "http://evil.example"})
    assert "access-control-allow-origin" not in page.headers
    ask = {"Origin": "http://evil.example", "Access-Control-Request-Method": "POST"}
    assert client.options("/v1/chat/completions", headers=ask).status_code == 403


def test_key_and_cors_when_asked_for(tiny: Path) -> None:
    flags = ["--api-key", "secret", "--allow-origin", "http://desk.example", "--ctx", "256"]
    with serving(tiny, *flags) as server, server.client() as client:
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "secret"}):
            response = client.get("/v1/models", headers=headers)
            assert response.status_code == 401 and error_of(response)["code"] == "invalid_api_key"
        assert client.get("/").status_code == 200  # the page, where one can type the key
        headers = {"Authorization": "Bearer secret", "Origin": "http://desk.example"}
        response = client.get("/v1/models", headers=headers)
        assert response.status_code == 200
        assert response.headers["access-control-allow-origin"] == "http://desk.example"


def test_model_without_chat_template(tmp_path: Path) -> None:
    path = tiny_gguf.write(tmp_path / "plain.gguf", chat_template=None)
    with serving(path, "--ctx", "256") as server, server.client() as client:
        response = client.post("/v1/chat/completions", json=chat("Hi"))
        assert response.status_code == 400 and "/v1/completions" in error_of(response)["message"]
        body = {"model": "default", "prompt": "Hi", "max_tokens": 3}
        assert client.post("/v1/completions", json=body).status_code == 200


def test_prompts_are_neither_logged_nor_recorded(tiny: Path, tmp_path: Path) -> None:
    state = {"MEDGE_STATE": str(tmp_path)}
    with serving(tiny, "--ctx", "256", "--verbose", env=state) as server, server.client() as client:
        client.post("/v1/chat/completions", json=chat("SECRETWORD", max_tokens=3))
        client.post("/v1/chat/completions", json=chat("SECRETWORD" * 100, max_tokens=3))
    assert "SECRETWORD" not in "".join(server.lines)
    answered, refused = read(tmp_path).records
    assert answered["model"] == "tiny" and answered["n_generated"] == 3 and answered["ttft_s"] > 0
    assert refused["end"] == "context_length_exceeded"
    assert "SECRET" not in "".join(path.read_text() for path in tmp_path.iterdir())


def test_without_records(tiny: Path, tmp_path: Path) -> None:
    state = {"MEDGE_STATE": str(tmp_path)}
    with serving(tiny, "--no-records", env=state) as server, server.client() as client:
        client.post("/v1/chat/completions", json=chat("Hi", max_tokens=3))
    assert not list(tmp_path.iterdir())
