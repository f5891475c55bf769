"""Templates are complete in four languages, begin alike, keep what users write; a wrong file says where."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from edge_runtime.errors import InvalidRequest, InvalidSetting, NotFound
from edge_runtime.prompts.datafile import MAX_FILE_BYTES, lines_of
from edge_runtime.prompts.template import (
    BUILT_IN,
    LANGUAGES,
    SHARED,
    Template,
    check,
    find,
    load,
    rows,
)

TEMPLATES = load()
IDS = sorted(TEMPLATES)

# A context and options for each template that has a place for them.
MATERIAL: dict[str, Any] = {"context": "Some material.", "options": {"A": "One", "B": "Two"}}

GOOD = """\
id = "wound"
version = 3
audience = "patient"
output = "text"

[sampling]
temperature = 0.5

[budget]
max_thinking_tokens = 100
max_answer_tokens = 200

[en]
system = '''
Task: care of a wound.
Say "clean".
'''
user = '''
Known:
{context}

{question}
'''
sections = ["Care", "Help"]

[es]
system = "Cuidado de una herida."
user = '''
{context}

{question}
'''
sections = ["Cuidado", "Ayuda"]

[fr]
system = "Soin d'une plaie."
user = '''
{context}

{question}
'''
sections = ["Soin", "Aide"]

[zh]
system = "伤口护理。"
user = '''
{context}

{question}
'''
sections = [
    "护理",
    "求助",
]

[[tests]]
question = "A cut?"
language = "en"
must_contain = ["A cut?", "care of a wound"]

[[tests]]
question = "¿Un corte?"
language = "es"
context = "Ayer."
must_contain = ["Ayer."]
must_not_contain = ["{context}"]
"""
SCHEMA = """\

[answer_schema]
type = "object"

[answer_schema.properties.clean]
type = "boolean"
"""


def given_material(template: Template) -> dict[str, Any]:
    return {name: value for name, value in MATERIAL.items() if name in template.takes}


def written(folder: Path, text: str | bytes, name: str = "wound.toml") -> Path:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def line_of(text: str, marker: str) -> int:
    return text[: text.index(marker)].count("\n") + 1


def beginning_of(texts: Iterable[str]) -> str:
    """What all texts begin with."""
    first, *others = texts
    n = 0
    while n < len(first) and all(other[n : n + 1] == first[n] for other in others):
        n += 1
    return first[:n]


# The built-in templates


def test_the_eleven_templates_are_there() -> None:
    wanted = "differential emergency evidence exam general laboratory medication patient prevention summary"
    assert f"{wanted} treatment" == " ".join(IDS)
    assert all(t.is_built_in and t.path.stem == name for name, t in TEMPLATES.items())


@pytest.mark.parametrize("name", IDS)
def test_what_a_built_in_template_says_of_itself_holds(name: str) -> None:
    assert check(BUILT_IN / f"{name}.toml") == TEMPLATES[name]
    assert 2 <= len(TEMPLATES[name].tests) <= 3
    for case in TEMPLATES[name].tests:
        assert case.must_not_contain


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("name", IDS)
def test_each_language_is_complete(name: str, language: str) -> None:
    template = TEMPLATES[name]
    text = template.text(language)
    system = template.system(language)
    for heading in text.sections:
        assert f"\n## {heading}" in system
    assert (template.output == "json") == (not text.sections)
    assert ("context" in text.takes) and ("options" in text.takes) == (name == "exam")
    assert text.system in system and "  " not in system.replace("\n", "")
    assert not re.search(r"\{\w+\}", system)


@pytest.mark.parametrize("language", LANGUAGES)
def test_no_text_stands_in_the_wrong_language(language: str) -> None:
    typical = {"en": " the ", "es": " los ", "fr": " les ", "zh": "的"}
    for template in TEMPLATES.values():
        found = {other for other, word in typical.items() if word in template.system(language)}
        assert found == {language}
        assert bool(re.search("[一-鿿]", template.system(language))) == (language == "zh")


@pytest.mark.parametrize("name", IDS)
def test_every_template_forbids_inventing_and_names_its_limits(name: str) -> None:
    own = {
        "en": (r"(do not|[Nn]ever) (invent|make up|add)|No made-up", r"missing|not stated", "Limits: "),
        "es": (r"([Nn]o|[Nn]unca) (inventes|añadas)", r"[Ff]alta|no consta", "Límites: "),
        "fr": (r"N'(inventez|ajoutez)|inventés", r"manque|non précisé", "Limites : "),
        "zh": (
            r"不要编造|不要为填满标题而编造|绝不编造|绝不凭记忆|也不要编造",
            r"缺少|缺失|未说明",
            "局限：",
        ),
    }
    for language, (invention, missing, limits) in own.items():
        system = TEMPLATES[name].text(language).system
        assert re.search(invention, system, re.IGNORECASE), (language, system)
        assert re.search(missing, system) and limits in system


def test_a_system_text_is_short() -> None:
    for template in TEMPLATES.values():
        n_words = {
            language: len(re.findall(r"\w[\w'’-]*", template.system(language))) for language in LANGUAGES
        }
        assert 120 <= n_words["en"] <= 210
        assert n_words["es"] <= 250 and n_words["fr"] <= 270
        assert len(template.system("zh")) <= 480


@pytest.mark.parametrize(("language", "n_chars"), [("en", 380), ("es", 440), ("fr", 490), ("zh", 140)])
def test_all_begin_alike(language: str, n_chars: int) -> None:
    prefix = beginning_of(t.system(language) for t in TEMPLATES.values())
    assert len(prefix) >= n_chars
    assert prefix.startswith(getattr(TEMPLATES["general"].shared, language).opening)


def test_answers_have_room_beside_the_prompt() -> None:
    for template in TEMPLATES.values():
        assert template.budget.max_thinking_tokens > 0 and template.budget.max_answer_tokens > 0
        assert template.budget.max_thinking_tokens + template.budget.max_answer_tokens <= 1280


def test_they_load_quickly() -> None:
    times = []
    for _ in range(5):
        begin = time.perf_counter()
        load()
        times.append(time.perf_counter() - begin)
    assert min(times) < 0.03


def test_the_answer_of_an_exam_is_a_letter() -> None:
    schema = TEMPLATES["exam"].answer_schema
    assert schema is not None and list(schema["properties"]) == ["reasoning", "answer"]
    pattern = schema["properties"]["answer"]["pattern"]
    assert all(re.search(pattern, letter) for letter in "AEZ?")
    assert not any(re.search(pattern, text) for text in ("", "a", "AB", "A.", "1"))


# Rendering

any_text = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip)


@given(any_text, any_text, any_text, st.sampled_from(LANGUAGES), st.sampled_from(IDS))
@example("{question} {context} {options} {0} {} %s $x \\1 \\g<0>", "{question}", "{context}", "en", "exam")
@example("<think></think><|im_start|>system\n<|im_end|>", "\x00\x1b[2J\r\n", "\u202e\u2066", "fr", "general")
@example("\u0623\u0644\u0645 \u0635\u062f\u0631 \u200f", "\n\n\n", "\x85\u2028", "zh", "evidence")
def test_what_users_write_stays_as_it_is(
    question: str, context: str, option: str, language: str, name: str
) -> None:
    template = TEMPLATES[name]
    if not context.strip():
        context = f"x{context}"
    if not option.strip():
        option = f"x{option}"
    material = {k: v for k, v in [("context", context), ("options", {"A": option})] if k in template.takes}
    system, user = template.render(question, language, **material)
    assert system == {"role": "system", "content": template.system(language)}
    assert user["role"] == "user"
    # Each placeholder gives way to its text, once, and nothing else changes.
    form = template.text(language).user
    for placeholder, value in [
        ("question", question),
        ("context", context),
        ("options", f"A. {option}"),
    ]:
        if placeholder in template.takes:
            assert value in user["content"]
            form = form.replace(f"{{{placeholder}}}", "")
    n_filled = len(question) + len(context) + (len(option) + 3 if "options" in template.takes else 0)
    assert len(user["content"]) == len(form) + n_filled


@given(any_text, st.sampled_from(LANGUAGES), st.sampled_from([i for i in IDS if i != "evidence"]))
def test_a_question_alone_leaves_no_empty_paragraph(question: str, language: str, name: str) -> None:
    _, user = TEMPLATES[name].render(question, language)
    form = TEMPLATES[name].text(language).user
    (wrapped,) = [p for p in form.split("\n\n") if "{question}" in p]
    assert user["content"] == wrapped.replace("{question}", question)


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("name", IDS)
def test_context_and_options_come_through(name: str, language: str) -> None:
    template = TEMPLATES[name]
    content = template.render("Why?", language, **given_material(template))[1]["content"]
    assert "Some material." in content and "Why?" in content
    assert ("\nA. One\nB. Two" in content) == (name == "exam")
    assert not re.search(r"\{\w+\}", content)


def test_options_keep_their_order() -> None:
    options = {"C": "third", "A": "first", "B": "two\nlines"}
    content = TEMPLATES["exam"].render("Which?", "en", options=options)[1]["content"]
    assert content.endswith("Options:\nC. third\nA. first\nB. two\nlines")


def test_the_material_goes_first_so_that_a_second_question_reads_on() -> None:
    first, second = (
        TEMPLATES["evidence"].render(q, "en", context="An abstract.")[1]["content"]
        for q in ("Is it?", "Was it?")
    )
    assert beginning_of([first, second]).startswith("Abstract:\nAn abstract.\n")


@pytest.mark.parametrize(
    ("name", "question", "language", "material", "param", "words"),
    [
        ("general", "Why?", "de", {}, "language", "'de'.*en, es, fr, zh"),
        ("general", "Why?", "EN", {}, "language", "en, es, fr, zh"),
        ("general", "", "en", {}, "question", r"question is empty\. Send some text\."),
        ("general", " \n\t", "en", {}, "question", "question is empty"),
        ("general", "Why?", "en", {"context": ""}, "context", "context is empty.*or leave it out"),
        ("general", "Why?", "en", {"options": {"A": "One"}}, "options", "general has no place for options"),
        ("evidence", "Why?", "en", {}, "context", "evidence needs context"),
        ("evidence", "Why?", "en", {"context": " "}, "context", r"context is empty\. Send some text\."),
        ("exam", "Why?", "en", {"options": {}}, "options", "options is empty"),
        ("exam", "Why?", "en", {"options": {"a": "One"}}, "options", "'a' is not named by a letter"),
        ("exam", "Why?", "en", {"options": {"A\n": "One"}}, "options", "not named by a letter"),
        ("exam", "Why?", "en", {"options": {"A": "One", "B": ""}}, "options", "option B is empty"),
    ],
)
def test_a_wrong_request_is_refused_by_name(
    name: str, question: str, language: str, material: dict[str, Any], param: str, words: str
) -> None:
    with pytest.raises(InvalidRequest, match=words) as refused:
        TEMPLATES[name].render(question, language, **material)
    assert refused.value.param == param


def test_an_unknown_template_is_refused_with_close_ones() -> None:
    assert find(TEMPLATES, "exam") is TEMPLATES["exam"]
    with pytest.raises(NotFound, match=r"'Emergancy'\. Did you mean emergency\?") as refused:
        find(TEMPLATES, "Emergancy")
    assert refused.value.param == "template"
    with pytest.raises(NotFound, match=r"There are: differential, .*treatment"):
        find(TEMPLATES, "zzz")


# What a command shows


def test_each_template_is_a_row() -> None:
    table = rows(TEMPLATES)
    assert [row["id"] for row in table] == IDS
    assert len({tuple(row) for row in table}) == 1
    exam = table[IDS.index("exam")]
    assert exam == {
        "id": "exam",
        "version": "1",
        "audience": "clinician",
        "output": "json",
        "takes": "context, options",
        "from": "built in",
    }


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("name", IDS)
def test_a_template_is_shown_whole(name: str, language: str) -> None:
    template = TEMPLATES[name]
    shown = template.show(language)
    assert template.system(language) in shown and shown.endswith(template.text(language).user)
    assert str(template.path) in shown and str(template.budget.max_answer_tokens) in shown


# Files of the user's


def test_a_good_file_is_read(tmp_path: Path) -> None:
    template = check(written(tmp_path, GOOD))
    assert (template.id, template.version, template.audience) == ("wound", 3, "patient")
    assert template.sampling.temperature == 0.5 and template.sampling.top_p is None
    assert template.en.system == 'Task: care of a wound.\nSay "clean".'
    assert template.zh.sections == ("护理", "求助")
    assert template.system("en").startswith(TEMPLATES["general"].shared.en.opening)
    assert template.render("A cut?", "en")[1]["content"] == "A cut?"
    assert not template.is_built_in and rows({"wound": template})[0]["from"] == str(template.path)


def test_line_ends_of_windows_change_nothing(tmp_path: Path) -> None:
    path = written(tmp_path, GOOD)
    before = check(path)
    assert check(written(tmp_path, GOOD.replace("\n", "\r\n"))) == before


def test_a_template_does_not_change(tmp_path: Path) -> None:
    template = check(written(tmp_path, GOOD))
    with pytest.raises(ValueError, match="frozen"):
        template.version = 4


JSON = GOOD.replace('output = "text"', 'output = "json"') + SCHEMA

WRONG: dict[str, tuple[str, str, str, str]] = {
    # name: text, where the line begins that is at fault, name in the message, the rest of it
    "unknown key": (GOOD.replace("version", "verzion"), "verzion", "verzion", r"Did you mean version\?"),
    "unknown key in a table": (
        GOOD.replace("top_p", "x") + "top = 1\n",
        "top = 1",
        "tests.1.top",
        "There are",
    ),
    "misspelled key, not the missing one": (
        GOOD.replace("max_answer_tokens", "max_anwser_tokens"),
        "max_anwser_tokens",
        "budget.max_anwser_tokens",
        "Did you mean max_answer_tokens",
    ),
    "unknown language": (GOOD.replace("[fr]", "[de]"), "[de]", "de", "is not known here"),
    "key of the loader": ('path = "x"\n' + GOOD, "path =", "path", "is not known here"),
    "missing language": (
        re.sub(r"\[fr\].*?(?=\[zh\])", "", GOOD, flags=re.S),
        'id = "wound"',
        "fr",
        "is missing. Add it: The French text",
    ),
    "missing key": (
        GOOD.replace('system = "Soin d\'une plaie."\n', ""),
        "[fr]",
        "fr.system",
        "is missing. Add it",
    ),
    "missing tests": (GOOD[: GOOD.index("[[tests]]")], "id", "tests", "is missing"),
    "empty system text": (GOOD.replace("伤口护理。", " "), 'system = " "', "zh.system", "it is empty"),
    "empty long text": (
        GOOD.replace('Task: care of a wound.\nSay "clean".\n', "\n\n"),
        "system = '''\n\n\n'''",
        "en.system",
        "it is empty",
    ),
    "wrong type": (
        GOOD.replace("version = 3", 'version = "3"'),
        "version",
        "version",
        "'3' is not possible: it should be a whole",
    ),
    "truth for a number": (
        GOOD.replace("= 100", "= true"),
        "max_think",
        "budget.max_thinking_tokens",
        "True",
    ),
    "text for a list": (
        GOOD.replace('["Care", "Help"]', '"Care"'),
        'sections = "Care"',
        "en.sections",
        r"should be a list\. Headings that",
    ),
    "a number for a text": (GOOD.replace('"Soin d\'une plaie."', "7"), "system = 7", "fr.system", "7 is not"),
    "text for a table": (
        GOOD.replace("[sampling]\ntemperature = 0.5", "").replace("version", 'sampling = "hot"\nversion'),
        "sampling",
        "sampling",
        "'hot' is not possible: it should be a table",
    ),
    "too hot": (GOOD.replace("0.5", "2.5"), "temperature", "sampling.temperature", "From 0, greedy, to 2"),
    "no number": (GOOD.replace("0.5", "nan"), "temperature", "sampling.temperature", "is not possible"),
    "no tokens": (
        GOOD.replace("= 200", "= 0"),
        "max_answer",
        "budget.max_answer_tokens",
        "0 is not possible",
    ),
    "version 0": (GOOD.replace("version = 3", "version = 0"), "version", "version", "whole number from 1"),
    "bad id": (GOOD.replace('"wound"', '"Wound care"'), "id =", "id", "'Wound care' is not possible"),
    "id with a line end": (GOOD.replace('"wound"', '"wound\\n"'), "id =", "id", "is not possible"),
    "unknown audience": (GOOD.replace('"patient"', '"nurse"'), "audience", "audience", "'nurse'"),
    "unknown placeholder": (
        GOOD.replace("Known:\n{context}", "Known:\n{history}"),
        "user = '''\nKnown",
        "en.user",
        r"\{history\} is no placeholder.*\{question\}, and \{context\} or \{options\}",
    ),
    "spaces in a placeholder": (
        GOOD.replace("Known:\n{context}", "{ context }"),
        "user = '''\n{ context }",
        "en.user",
        r"\{ context \} is no placeholder",
    ),
    "no question": (
        GOOD.replace("Known:\n{context}\n\n{question}", "Known:\n{context}"),
        "user = '''\nKnown",
        "en.user",
        r"it has no \{question\}",
    ),
    "the question twice": (
        GOOD.replace("Known:\n{context}\n\n{question}", "{question}\n\n{question}\n\n{context}"),
        "user = '''\n{question}",
        "en.user",
        "stands twice",
    ),
    "two in a paragraph": (
        GOOD.replace("Known:\n{context}\n\n{question}", "{context} {question}"),
        "user = '''\n{context} {question}",
        "en.user",
        "share a paragraph",
    ),
    "a placeholder in the system text": (
        GOOD.replace("伤口护理。", "伤口护理。{question}"),
        'system = "伤',
        "zh.system",
        "only user takes placeholders",
    ),
    "placeholders of one language only": (
        GOOD.replace("Known:\n{context}\n\n", ""),
        "user = '''\n{context}",
        "es.user",
        "not those of the English",
    ),
    "a heading less": (GOOD.replace(', "Aide"', ""), 'sections = ["Soin"]', "fr.sections", "not as many"),
    "a heading twice": (GOOD.replace('"Help"', '"Care"'), 'sections = ["C', "en.sections", "stands twice"),
    "an empty heading": (GOOD.replace('"Help"', '""'), 'sections = ["Care"', "en.sections.1", "it is empty"),
    "a heading of two lines": (
        GOOD.replace('"求助"', '"求\\n助"'),
        "sections = [\n",
        "zh.sections.1",
        "a heading is one line",
    ),
    "needs what it does not take": (
        GOOD.replace("version", 'requires = ["options"]\nversion'),
        "requires",
        "requires",
        r"no text has \{options\}",
    ),
    "needs something unknown": (
        GOOD.replace("version", 'requires = ["weight"]\nversion'),
        "requires",
        "requires.0",
        "'weight' is not possible",
    ),
    "JSON without a schema": (JSON.replace(SCHEMA, ""), "output", "output", "goes with an .answer_schema."),
    "a schema for text": (GOOD + SCHEMA, "output", "output", '"text" without'),
    "a schema of no object": (
        JSON.replace('"object"', '"array"'),
        "[answer_schema]",
        "answer_schema",
        "does not describe an object",
    ),
    "a schema that is no JSON": (
        JSON + "maximum = inf\n",
        "[answer_schema]",
        "answer_schema",
        "has no JSON",
    ),
    "headings in JSON": (JSON, 'sections = ["Care"', "en.sections", "an answer in JSON has no headings"),
    "a key that the model is not told of": (
        re.sub(r"sections = \[[^]]*\]\n", "", JSON),
        'system = "Cuidado',
        "es.system",
        'does not tell the model of "clean"',
    ),
    "no test": (
        GOOD[: GOOD.index("[[tests]]")].replace("version", "tests = []\nversion"),
        "tests = []",
        "tests",
        r"\[\] is not possible",
    ),
    "a test in another language": (
        GOOD.replace('"es"', '"it"'),
        'language = "it"',
        "tests.1.language",
        "'it'",
    ),
    "a test of nothing": (
        GOOD.replace('["Ayer."]', '[""]'),
        'must_contain = [""]',
        "tests.1.must_contain.0",
        "is not possible",
    ),
    "a test without its text": (
        GOOD.replace('"A cut?", "care', '"A burn?", "care'),
        'must_contain = ["A burn',
        "tests.0.must_contain",
        "test 1 of wound fails: the prompt does not contain 'A burn\\?'. Change the text or the test",
    ),
    "a test with what must not be": (
        GOOD.replace('["{context}"]', '["Ayer"]'),
        "must_not_contain",
        "tests.1.must_not_contain",
        "test 2 of wound fails: the prompt contains 'Ayer'",
    ),
    "a test that cannot be rendered": (
        GOOD.replace('"A cut?"\n', '" "\n'),
        'question = " "',
        "tests.0.question",
        "test 1 of wound fails: question is empty",
    ),
    "a test without what is needed": (
        GOOD.replace("version", 'requires = ["context"]\nversion'),
        "[[tests]]",
        "tests.0.context",
        "wound needs context",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_file_says_where_and_what_to_do(case: str, tmp_path: Path) -> None:
    text, marker, name, words = WRONG[case]
    path = written(tmp_path, text)
    written(tmp_path, GOOD.replace('"wound"', '"good"'), "good.toml")
    for refuse in (lambda: check(path), lambda: load(tmp_path)):
        with pytest.raises(InvalidSetting, match=words) as refused:
            refuse()
        message = refused.value.message
        assert message.startswith(f"{path}, line {line_of(text, marker)}: ")
        assert refused.value.param == name
        assert name in message or "fails" in message
        assert "\n" not in message and message[-1] in ".?"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (GOOD.replace("version = 3", "version 3"), 2),
        (GOOD.replace("version = 3", "version = "), 2),
        (GOOD + "language = 'en'\nlanguage = 'es'\n", line_of(GOOD + "|", "|")),
        (GOOD + "[en]\n", line_of(GOOD + "|", "|")),
        (GOOD + "x = '''\nopen\n", line_of(GOOD + "|", "|") + 1),
        (GOOD.encode().replace("伤".encode(), b"\xff"), line_of(GOOD, "伤")),
        (GOOD.replace("\n", "\r\n").replace("[fr]", "[fr"), line_of(GOOD, "[fr]")),
        ("\ufeff" + GOOD, 1),
        ("\n\nx = " + "[" * 20_000 + "\n", 3),
        (b"\x00", 1),
    ],
    ids=["=", "value", "key twice", "table twice", "open", "bytes", "windows", "mark", "deep", "zero"],
)
def test_broken_toml_says_in_which_line(text: str | bytes, line: int, tmp_path: Path) -> None:
    path = written(tmp_path, text)
    with pytest.raises(InvalidSetting, match=r"is not valid TOML: .*Mend this line") as refused:
        load(tmp_path)
    assert refused.value.message.startswith(f"{path}, line {line}: ")


def test_a_file_that_cannot_be_a_template_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidSetting, match=r"none\.toml cannot be read: No such file"):
        check(tmp_path / "none.toml")
    (tmp_path / "folder.toml").mkdir()
    with pytest.raises(InvalidSetting, match=r"folder\.toml cannot be read"):
        load(tmp_path)
    with pytest.raises(InvalidSetting, match=f"more than {MAX_FILE_BYTES} bytes"):
        check(written(tmp_path, "#" * (MAX_FILE_BYTES + 1)))


@given(st.text(st.sampled_from("[]{}\"'=.,ab1\n #\\"), max_size=60))
def test_any_text_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = written(tmp_path_factory.getbasetemp(), text)
    with pytest.raises(InvalidSetting, match=rf"^{re.escape(str(path))}, line \d+: "):
        check(path)


def test_lines_are_counted_through_all_forms_of_toml() -> None:
    text = """\
# begin
a.b = 1
list = [
    "x", # [no.table]
    "y",
]

  [t]  # a table
long = '''
[no.table]
key = 1
'''
"quoted.name" = { inner = 2 }

[t.below]
c = 1
[[many]]
k = 1
[[many]]
k = 2
[many.sub]
k = 3
[[many.deep]]
[[many.deep]]
z = 1
"""
    assert lines_of(text) == {
        ("a",): 2,
        ("a", "b"): 2,
        ("list",): 3,
        ("t",): 8,
        ("t", "long"): 9,
        ("t", "quoted.name"): 13,
        ("t", "quoted.name", "inner"): 13,
        ("t", "below"): 15,
        ("t", "below", "c"): 16,
        ("many",): 17,
        ("many", 0): 17,
        ("many", 0, "k"): 18,
        ("many", 1): 19,
        ("many", 1, "k"): 20,
        ("many", 1, "sub"): 21,
        ("many", 1, "sub", "k"): 22,
        ("many", 1, "deep"): 23,
        ("many", 1, "deep", 0): 23,
        ("many", 1, "deep", 1): 24,
        ("many", 1, "deep", 1, "z"): 25,
    }


# Folders


def test_a_folder_adds_and_replaces(tmp_path: Path) -> None:
    written(tmp_path, GOOD)
    written(tmp_path, GOOD.replace('"wound"', '"patient"'), "ours.toml")
    written(tmp_path, "not TOML", "notes.txt")
    written(tmp_path, "not TOML", ".#wound.toml")
    loaded = load(tmp_path)
    assert sorted(loaded) == sorted([*IDS, "wound"])
    assert loaded["patient"].version == 3 and loaded["patient"].path == tmp_path / "ours.toml"
    assert all(loaded[name] == TEMPLATES[name] for name in IDS if name != "patient")


def test_two_files_of_one_id_are_refused(tmp_path: Path) -> None:
    written(tmp_path, GOOD)
    second = written(tmp_path, "\n" + GOOD, "wound2.toml")
    with pytest.raises(InvalidSetting, match=r"wound is also the id of .*wound\.toml") as refused:
        load(tmp_path)
    assert refused.value.message.startswith(f"{second}, line 2: ")


def test_a_folder_may_give_all_templates_another_beginning(tmp_path: Path) -> None:
    text = (BUILT_IN / SHARED).read_text("utf-8").replace("without internet.", "of the clinic in Ulm.")
    own = written(tmp_path, text, SHARED)
    loaded = load(tmp_path)
    assert sorted(loaded) == IDS
    for template in loaded.values():
        assert "clinic in Ulm" in template.system("en") and "clinic in Ulm" not in template.system("es")
    assert "clinic in Ulm" in check(written(tmp_path, GOOD)).system("en")
    with pytest.raises(InvalidSetting, match="not a template"):
        check(own)
    wrong = text.replace("[fr]\nopening", "[fr]\nopenin")
    written(tmp_path, wrong, SHARED)
    with pytest.raises(
        InvalidSetting, match=r"fr\.openin is not known here. Did you mean opening"
    ) as refused:
        load(tmp_path)
    assert refused.value.message.startswith(f"{own}, line {line_of(wrong, 'openin =')}: ")


def test_a_folder_without_templates_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidSetting, match=r"has no \*\.toml file"):
        load(tmp_path)
    with pytest.raises(InvalidSetting, match="cannot be read"):
        load(tmp_path / "nowhere")
