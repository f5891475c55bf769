"""Chat forms of models that think: what opens thoughts, what is left out of earlier turns."""

from __future__ import annotations

import pytest

from edge_runtime.prompts.chat import ChatTemplate
from edge_runtime.prompts.thinking import CLOSING, family, is_open, without_thoughts
from tests.tiny_gguf import DEFAULT_CHAT_TEMPLATE, R1_CHAT_TEMPLATE

SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}

# The form of Qwen3, as far as it matters here: the prompt does not open thoughts, the model does.
QWEN3 = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.role == 'assistant' %}{{ message.content.split('</think>')[-1].lstrip('\\n') }}"
    "{% else %}{{ message.content }}{% endif %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def render(template: str, *messages: tuple[str, str]) -> str:
    return ChatTemplate(template, SPECIAL).render([{"role": r, "content": c} for r, c in messages])


def test_r1_form() -> None:
    prompt = render(
        R1_CHAT_TEMPLATE, ("user", "Hi"), ("assistant", "So.\n</think>\n\nHello."), ("user", "Why?")
    )
    assert prompt == "<s><｜User｜>Hi<｜Assistant｜>Hello.</s><｜User｜>Why?<｜Assistant｜><think>\n"


def test_r1_takes_instructions_with_the_first_question() -> None:
    prompt = render(
        R1_CHAT_TEMPLATE, ("system", "Be brief."), ("user", "Hi"), ("assistant", "Yes."), ("user", "And?")
    )
    assert (
        prompt == "<s><｜User｜>Be brief.\n\nHi<｜Assistant｜>Yes.</s><｜User｜>And?<｜Assistant｜><think>\n"
    )


def test_a_form_that_leaves_opening_to_the_model_is_opened() -> None:
    prompt = render(QWEN3, ("system", "Be brief."), ("user", "Hi"))
    turns = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
    assert prompt == f"{turns}<|im_start|>assistant\n<think>\n"
    assert is_open(prompt)


def test_a_form_that_closes_thoughts_is_left_closed() -> None:
    prompt = render(
        QWEN3.replace("assistant\n{% endif", f"assistant\n<think>{CLOSING}{{% endif"), ("user", "Hi")
    )
    assert prompt.endswith(f"<think>{CLOSING}") and not is_open(prompt)


def test_plain_models_stay_plain() -> None:
    prompt = render(DEFAULT_CHAT_TEMPLATE, ("assistant", "a</think>b"), ("user", "x"))
    assert "a</think>b" in prompt and prompt.endswith("assistant\n")
    assert family(DEFAULT_CHAT_TEMPLATE) == family(None) == family("")


@pytest.mark.parametrize(
    "content, kept",
    [
        ("Hello.", "Hello."),
        ("<think>\nHm.\n</think>\n\nHello.", "Hello."),
        ("Hm.</think>Hello.", "Hello."),
        ("a</think>b</think>\nc", "c"),
        ("<think>\nnever closed", "<think>\nnever closed"),
        ("", ""),
    ],
)
def test_thoughts_of_earlier_answers_are_left_out(content: str, kept: str) -> None:
    assert without_thoughts(content) == kept


def test_families_are_told_apart_by_their_templates() -> None:
    r1, qwen3 = family(R1_CHAT_TEMPLATE), family(QWEN3)
    assert (r1.thinks, r1.takes_system, r1.sampling["top_k"]) == (True, False, 0)
    assert (qwen3.thinks, qwen3.takes_system, qwen3.sampling["top_k"]) == (True, True, 20)
