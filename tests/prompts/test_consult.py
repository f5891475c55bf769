"""A question in a template, with what stands around its answer: for any text, in four languages."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.errors import InvalidRequest, NotFound
from edge_runtime.prompts import template
from edge_runtime.prompts.consult import Consult, Message, prepare

TEMPLATES = template.load()
DANGER = {
    "en": "My father has crushing chest pain and is sweating",
    "es": "Mi padre tiene un dolor de pecho opresivo y está sudando",
    "fr": "Mon père a une douleur dans la poitrine qui serre et il transpire",
    "zh": "我父亲胸口压榨性疼痛，大汗淋漓",
}


def user(text: str) -> Message:
    return {"role": "user", "content": text}


def one(text: str, name: str = "auto", **more: object) -> Consult:
    return prepare([user(text)], name, TEMPLATES, "some-model", **more)  # type: ignore[arg-type]


@pytest.mark.parametrize("language", template.LANGUAGES)
def test_the_notice_comes_first_and_the_closing_last_in_the_question_s_language(language: str) -> None:
    found = one(DANGER[language])
    assert (found.template.id, found.language) == ("emergency", language)
    assert "112" in found.notice and found.before == found.notice + "\n\n"
    words = getattr(found.template.shared, language)
    assert found.after == f"\n\n{words.seek_care}\n\n{words.closing.replace('{model}', 'some-model')}"
    assert found.messages[0]["content"].startswith(words.opening)
    assert found.messages[1]["content"].count(DANGER[language]) == 1


def test_the_notice_comes_whatever_template_is_chosen() -> None:
    for name in TEMPLATES:
        more = {"context": "An abstract."} if "context" in TEMPLATES[name].requires else {}
        assert "112" in one(DANGER["en"], name, **more).notice


def test_a_clinician_is_told_what_wrote_it_but_not_to_see_a_clinician() -> None:
    found = one("What is the dose of amoxicillin for a child of 12 kg?")
    assert (found.template.id, found.before) == ("medication", "")
    assert found.after == "\n\nWritten by the program some-model. It is not a diagnosis."


def test_text_around_json_would_make_it_unreadable() -> None:
    found = one(DANGER["en"] + ". What is next?", "exam", options={"A": "An ECG", "B": "A walk"})
    assert found.template.output == "json" and (found.before, found.after) == ("", "")
    assert "112" in found.facts["notice"] and "some-model" in found.facts["closing"]
    json.dumps(found.facts)


def test_material_and_question_in_one_text_are_put_apart() -> None:
    abstract = (
        "METHODS: 200 patients were randomized to zinc or placebo.\n\nRESULTS: p = 0.03 (95% CI 1.1-2.0)."
    )
    for text in (f"{abstract}\n\nDoes zinc help?", f"Does zinc help?\n\n{abstract}"):
        found = one(text)
        assert found.template.id == "evidence"
        assert found.messages[1]["content"] == f"Abstract:\n{abstract}\n\nQuestion:\nDoes zinc help?"
    assert one(abstract.replace("\n\n", " ")).template.id != "evidence", "there is no question in it"


def test_a_question_that_goes_on_keeps_the_template_and_the_language() -> None:
    said: Message = {"role": "assistant", "content": "Some."}
    first = "¿Cuál es la dosis de amoxicilina para un niño de 12 kg?"
    found = prepare([user(first), said, user("ok?")], "auto", TEMPLATES, "m")
    assert (found.template.id, found.language) == (one(first).template.id, "es")


@pytest.mark.parametrize("language", template.LANGUAGES)
@given(answer=st.text(min_size=1).map(str.strip).filter(bool))
def test_the_model_is_not_shown_our_words_as_its_own(language: str, answer: str) -> None:
    first = one(DANGER[language])
    shown: Message = {"role": "assistant", "content": first.before + answer + first.after}
    again = prepare([user(DANGER[language]), shown, user("?")], "general", TEMPLATES, "some-model")
    assert again.messages[2] == {"role": "assistant", "content": answer}


@given(st.text(min_size=1).filter(str.strip), st.sampled_from(sorted(TEMPLATES)))
def test_any_question_comes_through_unchanged_into_one_message(text: str, name: str) -> None:
    more = {"context": "Material."} if "context" in TEMPLATES[name].requires else {}
    found = one(text, name, **more)
    assert [m["role"] for m in found.messages] == ["system", "user"]
    assert text in found.messages[1]["content"] and found.template.id == name
    assert found.messages[0]["content"] == TEMPLATES[name].system(found.language)


@given(st.text(min_size=1).filter(str.strip))
def test_any_question_has_a_template(text: str) -> None:
    assert one(text).template.id in TEMPLATES


@pytest.mark.parametrize(
    ("messages", "says"),
    [
        ([{"role": "system", "content": "You are a pirate."}, user("Hi")], "own system text"),
        ([user("Hi"), {"role": "assistant", "content": "Hello"}], "last message"),
        ([user("  \n")], "question is empty"),
    ],
)
def test_what_a_template_cannot_take_is_refused(messages: list[Message], says: str) -> None:
    with pytest.raises(InvalidRequest, match=says):
        prepare(messages, "auto", TEMPLATES, "m")


def test_wrong_names() -> None:
    with pytest.raises(NotFound, match="patient"):
        one("Hi", "patients")
    with pytest.raises(InvalidRequest, match="'de'"):
        one("Hi", language="de")
    with pytest.raises(InvalidRequest, match="no place for options"):
        one("Hi", "patient", options={"A": "x"})
    with pytest.raises(InvalidRequest, match="needs context"):
        one("Hi", "evidence")
