"""Questions through medical templates, over the API: what is chosen, said around the answer, and refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from edge_runtime.prompts.template import BUILT_IN
from tests.serving import RunningServer, chat, serving

PAIN = "My father has crushing chest pain and is sweating"


@pytest.fixture(scope="module")
def server(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    folder = tmp_path_factory.mktemp("templates")
    own = (BUILT_IN / "general.toml").read_text("utf-8").replace('id = "general"', 'id = "our-ward"')
    (folder / "ward.toml").write_text(own, "utf-8")
    with serving(tiny, "--slots", "2", "--ctx", "4096", "--template-folder", str(folder)) as server:
        yield server


def asked(client: httpx.Client, **body: Any) -> dict[str, Any]:
    response = client.post("/v1/chat/completions", json=body)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def test_the_emergency_comes_first_and_the_closing_last(client: httpx.Client) -> None:
    body = chat(PAIN, template="auto", max_tokens=12, temperature=0)
    whole = asked(client, **body)
    facts, text = whole["medge"], whole["choices"][0]["message"]["content"]
    assert (facts["template"], facts["language"], facts["audience"]) == ("emergency", "en", "patient")
    assert facts["red_flags"] == ["chest_pain"] and facts["why"] and 0 <= facts["confidence"] <= 1
    assert text.startswith(f"{facts['notice']}\n\n") and text.endswith(f"\n\n{facts['closing']}")
    assert "It is not a diagnosis." in facts["closing"] and "call your local emergency" in facts["closing"]
    pieces, told = [], []
    with client.stream("POST", "/v1/chat/completions", json=body | {"stream": True}) as response:
        for line in response.iter_lines():
            if line.startswith("data: {"):
                chunk = json.loads(line[6:])
                told += [chunk["medge"]] if "medge" in chunk else []
                pieces += [choice["delta"].get("content", "") for choice in chunk["choices"]]
    assert "".join(pieces) == text and told == [facts]
    assert next(filter(None, pieces)) == f"{facts['notice']}\n\n"


def test_without_a_template_nothing_is_added(client: httpx.Client) -> None:
    whole = asked(client, **chat(PAIN, max_tokens=5, temperature=0))
    assert "medge" not in whole and "112" not in whole["choices"][0]["message"]["content"]


def test_a_template_of_ones_own_is_there(client: httpx.Client) -> None:
    assert "our-ward" in client.get("/health").json()["templates"]
    whole = asked(client, **chat("Hello", template="our-ward", language="fr", max_tokens=3))
    assert (whole["medge"]["template"], whole["medge"]["language"]) == ("our-ward", "fr")
    assert "Ce n'est pas un diagnostic." in whole["choices"][0]["message"]["content"]


def test_the_prompt_is_the_template_s(client: httpx.Client) -> None:
    plain = asked(client, **chat("Hello", max_tokens=1))["usage"]["prompt_tokens"]
    through = asked(client, **chat("Hello", template="general", max_tokens=1))["usage"]["prompt_tokens"]
    assert through > plain + 100


def test_an_exam_question_is_answered_in_its_schema(client: httpx.Client) -> None:
    body = chat(
        "Which vitamin lacks in scurvy?", template="exam", options={"A": "A", "B": "C"}, max_tokens=3000
    )
    whole = asked(client, **body)
    if whole["choices"][0]["finish_reason"] == "stop":
        assert set(json.loads(whole["choices"][0]["message"]["content"])) == {"reasoning", "answer"}
    assert whole["choices"][0]["message"]["content"].startswith("{")


@pytest.mark.parametrize(
    ("fields", "status", "param", "says"),
    [
        ({"template": "patients"}, 404, "template", "Did you mean patient"),
        ({"template": ""}, 400, "template", ""),
        ({"template": "auto", "language": "de"}, 400, "language", ""),
        ({"context": "An abstract."}, 400, "context", "send template"),
        ({"template": "patient", "options": {"A": "x"}}, 400, "options", "no place"),
        ({"template": "exam", "options": {"AA": "x"}}, 400, "options", "letter"),
        ({"template": "evidence"}, 400, "context", "needs context"),
    ],
)
def test_what_does_not_fit_is_refused(
    client: httpx.Client, fields: dict[str, Any], status: int, param: str, says: str
) -> None:
    response = client.post("/v1/chat/completions", json=chat("Hello", **fields))
    error = response.json()["error"]
    assert response.status_code == status and says in error["message"]
    assert error["param"].startswith(param), error


def test_a_system_message_and_a_template_are_too_much(client: httpx.Client) -> None:
    body = chat("Hello", template="auto")
    body["messages"].insert(0, {"role": "system", "content": "You are a pirate."})
    error = client.post("/v1/chat/completions", json=body).json()["error"]
    assert "own system text" in error["message"] and error["param"] == "messages"


def test_the_official_client_can_ask_for_one(server: RunningServer) -> None:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
        answer = client.chat.completions.create(
            model="default", messages=[{"role": "user", "content": PAIN}], max_tokens=3,
            extra_body={"template": "auto"},
        )  # fmt: skip
    assert (answer.choices[0].message.content or "").startswith("This may be an emergency")
    assert answer.model_extra and answer.model_extra["medge"]["template"] == "emergency"


def test_what_templates_begin_with_is_read_once(tiny: Path, tmp_path: Path) -> None:
    words = ("--slots", "2", "--ctx", "4096", "--prefix-tokens", "0", "--prefix-disk-mb", "64")
    env = {"MEDGE_CACHE": str(tmp_path), "LC_ALL": "C.UTF-8"}

    def first_answer(server: RunningServer) -> dict[str, Any]:
        with server.client() as client:
            answer = asked(client, **chat("What is gout?", template="general", language="en", max_tokens=4))
            usage: dict[str, Any] = answer["usage"]
            return usage

    def kept() -> int:
        return len(list(tmp_path.glob("beginnings/*/*.state")))

    n_templates = sum(path.name != "shared.toml" for path in BUILT_IN.glob("*.toml"))
    with serving(tiny, *words, env=env) as server:
        first_answer(server)  # which makes the reading wait
        with server.client() as client:
            body = chat("I am Amina.", conversation="hers", max_tokens=4)
            n_asked = asked(client, **body)["usage"]["prompt_tokens"]
            server.wait_until("all are read", lambda: kept() == n_templates)
            # ... in the other slot: hers is as it was.
            cached = asked(client, **body)["usage"]["prompt_tokens_details"]["cached_tokens"]
        assert cached == n_asked - 1
    with serving(tiny, *words, env=env) as server:
        usage = first_answer(server)
    n_read = usage["prompt_tokens"] - usage["prompt_tokens_details"]["cached_tokens"]
    assert n_read < 100 < usage["prompt_tokens"]
    assert kept() == n_templates
