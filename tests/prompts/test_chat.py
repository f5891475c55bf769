"""A model's template writes what it should, and a hostile one writes nothing and ends soon."""

from __future__ import annotations

import copy
import json
import sys
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.device.memory import peak_bytes
from edge_runtime.errors import InvalidTemplate
from edge_runtime.prompts.chat import MAX_TEMPLATE_CHARS, ChatTemplate

# The three forms as their models document them, without tools.
SMOLLM2 = """\
{%- for message in messages -%}
{%- if loop.first and message['role'] != 'system' -%}
{{ '<|im_start|>system\\nYou are a helpful AI assistant<|im_end|>\\n' }}
{%- endif -%}
{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}
"""
LLAMA3 = """\
{% set ns = namespace(head=bos_token) %}
{% for message in messages %}
{% if message.role not in ['system', 'user', 'assistant'] %}
{{ raise_exception('unknown role ' ~ message.role) }}
{% endif %}
{{- ns.head + '<|start_header_id|>' + message.role + '<|end_header_id|>\\n\\n' -}}
{{- message.content | trim + '<|eot_id|>' }}
{%- set ns.head = '' %}
{% endfor %}
{%- if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}
"""
R1 = """\
{%- set ns = namespace(system='') -%}
{%- for message in messages -%}
{%- if message['role'] == 'system' -%}{%- set ns.system = message['content'] -%}{%- endif -%}
{%- endfor -%}
{{ bos_token }}{{ ns.system }}
{%- for message in messages -%}
{%- if message['role'] == 'user' -%}{{ '<|User|>' + message['content'] }}{%- endif -%}
{%- if message['role'] == 'assistant' -%}
{{ '<|Assistant|>' + message['content'].split('</think>')[-1] + eos_token }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|Assistant|><think>\\n' }}{%- endif -%}
"""
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{{ '<|im_start|>assistant\\n' }}"  # jinja drops a line end at the end of the source
)

TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Fever?"},
    {"role": "assistant", "content": "<think>Hm.</think>Since when?"},
    {"role": "user", "content": " Two days. "},
]


def template(source: str | None) -> ChatTemplate:
    return ChatTemplate(source, {"bos_token": "<s>", "eos_token": "</s>"})


def refused(source: str | None, messages: list[dict[str, str]] | None = None) -> InvalidTemplate:
    with pytest.raises(InvalidTemplate) as error:
        template(source).render(messages or TALK)
    assert "\n" not in error.value.message and error.value.param == "messages"
    return error.value


def test_smollm2() -> None:
    assert template(SMOLLM2).render(TALK[1:2]) == (
        "<|im_start|>system\nYou are a helpful AI assistant<|im_end|>\n"
        "<|im_start|>user\nFever?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert template(SMOLLM2).render(TALK).count("<|im_start|>") == 5


def test_llama3_with_its_first_token_once() -> None:
    text = template(LLAMA3).render(TALK)
    assert text.startswith("<s><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>")
    assert text.count("<s>") == 1
    assert "\n\nTwo days.<|eot_id|>" in text
    assert text.endswith("<|start_header_id|>assistant<|end_header_id|>\n\n")


def test_r1_forgets_what_it_thought() -> None:
    assert template(R1).render(TALK) == (
        "<s>Be brief.<|User|>Fever?<|Assistant|>Since when?</s><|User|> Two days. <|Assistant|><think>\n"
    )


def test_what_a_template_says_of_the_messages_is_passed_on() -> None:
    assert "unknown role nurse" in refused(LLAMA3, [{"role": "nurse", "content": "?"}]).message


def test_a_model_without_template_names_the_other_way() -> None:
    for source in (None, ""):
        assert template(source).problem
        assert "/v1/completions" in refused(source).message
    assert template(CHATML).problem is None


@pytest.mark.parametrize(
    "source",
    [
        "{% for m in messages %}",
        "{{ 1 +",
        "{% nothing %}",
        "{{ x | no_such_filter }}",
        "{% for i in x %}" * 40 + "{% endfor %}" * 40,
        "{{ " + "(" * 5000 + ")" * 5000 + " }}",
        "x" * (MAX_TEMPLATE_CHARS + 1),
    ],
    ids=["no end", "half an expression", "no tag", "no filter", "deep loops", "deep brackets", "long"],
)
def test_a_broken_template_is_known_before_it_is_used(source: str) -> None:
    made = template(source)
    assert made.problem
    with pytest.raises(InvalidTemplate) as error:
        made.render(TALK)
    assert error.value.message == made.problem


HOSTILE = {
    "classes": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "class by filter": "{{ (''|attr('__class__')).__mro__ }}",
    "globals of a function": "{{ raise_exception.__globals__['json'] }}",
    "globals of a macro": "{% macro f() %}{% endmacro %}{{ f.__init__.__globals__ }}",
    "class by format": "{{ '{0.__class__.__mro__}'.format('') + none }}",
    "import": "{% import 'os' as os %}{{ os.system('true') }}",
    "include": "{% include '/etc/passwd' %}",
    "self": "{{ self.__init__.__globals__ }}",
    "cycler": "{{ cycler.__init__.__globals__.os.getcwd() }}",
    "a long range": "{% for i in range(10**9) %}{{ i }}{% endfor %}",
    "loops in loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "much text in loops": "{% for i in range(99999) %}{% for j in range(99999) %}"
    + "x" * 1000
    + "{% endfor %}{% endfor %}",
    "calls itself": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "calls itself twice": "{% macro f(n) %}{% if n %}{{ f(n - 1) ~ f(n - 1) }}{% endif %}{% endmacro %}"
    "{{ f(60) }}",
    "a loop that calls itself": "{% for a in [1] recursive %}{{ loop([1, 2]) }}{% endfor %}",
    "a great number": "{{ 10 ** 10 ** 10 }}",
    "a great power": "{% set n = messages | length %}{{ (n + 10) ** (10 ** 9) }}",
    "a long text": "{{ 'x' * 10 ** 10 }}",
    "a long list": "{{ [0] * 10 ** 10 }}",
    "long either way": "{% set n = 9999999999 %}{{ n * 'x' }}",
    "doubling": "{% set ns = namespace(x='x') %}"
    "{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}{{ ns.x }}",
    "words without end": "{{ lipsum(n=100000) }}",
    "changing the messages": "{{ messages.append(1) }}",
    "changing a message": "{{ messages[0].update({'role': 'x'}) }}",
    "no number": "{{ messages + 1 }}",
    "division": "{{ 1 / 0 }}",
}


@pytest.mark.parametrize("source", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_template_is_refused_soon_and_cheaply(source: str) -> None:
    begin, held = time.perf_counter(), peak_bytes()
    refused(source)
    assert time.perf_counter() - begin < 10
    assert held is None or (peak_bytes() or 0) - held < 500 << 20
    assert sys.gettrace() is None


def test_arithmetic_that_templates_need_still_works() -> None:
    source = (
        "{{ 2 ** 10 }} {{ 3 * 4 }} {{ '-' * 5 }} {{ [1] + [2] }} {{ 1.5 + 1 }} {{ 2 * 'ab' }} {{ 'a' + 'b' }}"
    )
    assert template(source).render(TALK) == "1024 12 ----- [1, 2] 2.5 abab ab"


def test_what_templates_expect_of_their_surroundings() -> None:
    source = (
        "{% for m in messages %}{% if loop.index0 == 1 %}{% break %}{% endif %}{{ m | tojson }}{% endfor %}"
        "{{ strftime_now('%Y') | length }}{{ '<é&>' | tojson }}{{ nothing is defined }}"
    )
    assert template(source).render(TALK) == json.dumps(TALK[0]) + '4"<é&>"False'


def test_a_long_conversation_is_no_attack() -> None:
    talk = [{"role": ("user", "assistant")[i % 2], "content": "word " * 200} for i in range(2000)]
    assert template(LLAMA3).render(talk).count("<|eot_id|>") == 2000


def test_messages_are_left_as_they_were() -> None:
    given_messages = copy.deepcopy(TALK)
    for source in (SMOLLM2, LLAMA3, R1):
        template(source).render(given_messages)
    assert given_messages == TALK


any_text = st.text(st.characters(exclude_categories=["Cs"]))


@given(
    st.lists(st.tuples(st.sampled_from(["system", "user", "assistant"]), any_text), min_size=1, max_size=5)
)
def test_any_text_comes_through_unchanged(talk: list[tuple[str, str]]) -> None:
    messages = [{"role": role, "content": text} for role, text in talk]
    expected = "".join(f"<|im_start|>{role}\n{text}<|im_end|>\n" for role, text in talk)
    assert template(CHATML).render(messages) == expected + "<|im_start|>assistant\n"


@given(any_text)
def test_any_template_is_used_or_refused(source: str) -> None:
    made = template(source)
    try:
        assert isinstance(made.render(TALK), str)
    except InvalidTemplate as error:
        assert error.message
