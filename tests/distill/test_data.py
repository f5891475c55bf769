from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from distill import data
from distill.config import Data, Source
from distill.data import IGNORE, ChatForm, Example, batch
from distill.errors import InvalidModel, InvalidRows
from tests import tiny_checkpoint
from tests.distill import rows

R1 = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}{{ '<|im_start|>' + m['content'] }}"
    "{% else %}{{ '<|im_end|>' + m['content'].split('</think>')[-1] + eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_end|><think>\n' }}{% endif %}"
)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint.write(tmp_path_factory.mktemp("base"), "smollm")


@pytest.fixture
def tokenizer(base: Path) -> Any:
    return AutoTokenizer.from_pretrained(base)


def test_prompt_and_answer_are_the_template(tokenizer: Any) -> None:
    example = ChatForm(tokenizer).example("r", "What is a fever?", "38.9 degrees.")
    chat = [
        {"role": "user", "content": "What is a fever?"},
        {"role": "assistant", "content": "38.9 degrees."},
    ]
    assert tokenizer.decode(example.tokens) == tokenizer.apply_chat_template(chat, tokenize=False).rstrip()
    prompt = tokenizer.apply_chat_template(chat[:1], add_generation_prompt=True)["input_ids"]
    assert list(example.tokens[: example.n_prompt]) == list(prompt)
    assert example.tokens[-1] == tokenizer.eos_token_id


def test_an_opened_thought_is_closed(tokenizer: Any) -> None:
    tokenizer.chat_template = R1
    chat = ChatForm(tokenizer)
    example = chat.example("r", "Why?", "Because.")
    text = tokenizer.decode(example.tokens[example.n_prompt :])
    assert chat.opens_thought and text == "\n</think>\n\nBecause.<|im_end|>"
    thought = chat.example("r", "Why?", "Hm.\n</think>\n\nBecause.")
    assert tokenizer.decode(thought.tokens[thought.n_prompt :]) == "Hm.\n</think>\n\nBecause.<|im_end|>"


@pytest.mark.parametrize(
    "template", ["{{ messages[0]['content'] }}", "{{ nothing.there }}", "{{ raise_exception('no') }}"]
)
def test_a_template_without_an_answer_is_refused(tokenizer: Any, template: str) -> None:
    tokenizer.chat_template = template
    with pytest.raises(InvalidModel, match="chat template"):
        ChatForm(tokenizer)


def test_forms_of_a_question(tmp_path: Path) -> None:
    [row] = data.read_rows(
        rows.write(tmp_path / "r.jsonl", [rows.choice(0, "fever") | {"rationale": "Because."}])
    )
    assert row.prompt("letter").endswith("C. surgery\n\nAnswer with the letter of the right option.")
    assert (row.prompt("text"), row.reply("text")) == ("Which comes first with fever?", "a test for fever")
    assert row.reply("letter") == "B. a test for fever"
    assert row.reply("reason") == "Because.\n\nB. a test for fever"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "line 1 is not JSON"),
        ("[1]", "no object"),
        ('{"question": "Why?"}', "no text under answer"),
        ('{"question": " ", "answer": "x"}', "no text under question"),
        ('{"question": "Why?", "answer": "D", "options": {"A": "x"}}', "none of its options"),
        ("", "has no rows"),
    ],
)
def test_wrong_rows_are_named(tmp_path: Path, line: str, said: str) -> None:
    path = tmp_path / "r.jsonl"
    path.write_text(line, "utf-8")
    with pytest.raises(InvalidRows, match=said):
        data.read_rows(path)


def test_the_same_question_twice_is_refused(tmp_path: Path) -> None:
    first = data.read_rows(rows.write(tmp_path / "train.jsonl", [rows.row(0, "fever"), rows.row(1, "cough")]))
    other = rows.row(7, "Cough") | {"question": "What is done about  COUGH ?"}
    second = data.read_rows(rows.write(tmp_path / "dev.jsonl", [other]))
    with pytest.raises(InvalidRows, match=r"development rows: .*train.jsonl, line 2 and .*dev.jsonl, line 1"):
        data.check_apart(first, second)
    with pytest.raises(InvalidRows, match="is there twice"):
        data.check_apart([*first, *second], [])
    data.check_apart(first, [])


@pytest.mark.parametrize(("too_long", "n", "cut"), [("drop", 9, 0), ("cut", 10, 1)])
def test_long_examples(tokenizer: Any, tmp_path: Path, too_long: Any, n: int, cut: int) -> None:
    given = [rows.row(i, word) for i, word in enumerate(rows.QUESTIONS)]
    given[3]["answer"] = "again " * 300
    source = Source(file=rows.write(tmp_path / "r.jsonl", given))
    asked = Data(train=(source,), development=(source,), max_tokens=256, too_long=too_long)
    found, counts = data.examples_of([source], data.read_all([source]), ChatForm(tokenizer), asked)
    assert (counts.examples, counts.cut, counts.dropped) == (n, cut, 10 - n)
    assert max(len(example.tokens) for example in found) <= 256
    with pytest.raises(InvalidRows, match=r"max_tokens = 256, such as .*line 4 with \d+"):
        refusing = asked.model_copy(update={"too_long": "refuse"})
        data.examples_of([source], data.read_all([source]), ChatForm(tokenizer), refusing)


@given(
    lengths=st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=6),
)
def test_a_batch_ends_with_its_answers(lengths: list[tuple[int, int]]) -> None:
    examples = [Example(str(i), tuple(range(1, p + a + 1)), p) for i, (p, a) in enumerate(lengths)]
    found = batch(examples, pad=0)
    for i, example in enumerate(examples):
        n = len(example.tokens)
        assert tuple(found["input_ids"][i][-n:].tolist()) == example.tokens
        assert found["attention_mask"][i].sum() == n and (found["input_ids"][i][:-n] == 0).all()
        assert found["position_ids"][i][-n:].tolist() == list(range(n))
        labels = found["labels"][i]
        assert tuple(labels[labels != IGNORE].tolist()) == example.tokens[example.n_prompt :]
        # What lies above a label is the token itself.
        assert torch.equal(found["input_ids"][i][-len(labels) :][labels != IGNORE], labels[labels != IGNORE])
    assert (found["labels"][:, 0] == IGNORE).all()


@given(ids=st.lists(st.text(min_size=1), min_size=5, max_size=30, unique=True), n=st.integers(1, 5))
def test_a_pick_does_not_depend_on_order(ids: list[str], n: int) -> None:
    given = [data.Row(id, "q", "a", {}, "", "", "", "", "", "") for id in ids]
    assert [row.id for row in data.pick(given, n)] == [row.id for row in data.pick(given[::-1], n)]


def test_rows_round_trip(tmp_path: Path) -> None:
    given = rows.row(0, "fièvre élevée 38.9 °C") | {"context": ["One.", "Two."], "language": "fr"}
    [row] = data.read_rows(rows.write(tmp_path / "r.jsonl", [given]))
    assert row.asked == f"One.\nTwo.\n\n{given['question']}" and row.answer == given["answer"]
    assert data.languages([row]) == ["fr"] and json.dumps(row.where)
