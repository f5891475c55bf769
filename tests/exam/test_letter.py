"""Which option an answer settles on: hard cases by hand, and what must hold for any letter and any text."""

from __future__ import annotations

import json
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.exam.letter import extract

VITAMINS = {"A": "Thiamine", "B": "Niacin", "C": "Cobalamin", "D": "Folic acid"}
LIKE_LETTERS = {"A": "Vitamin A", "B": "Vitamin C", "C": "Vitamin D", "D": "Hepatitis B vaccine"}
YES_NO = {"A": "yes", "B": "no", "C": "maybe"}
GERMS_ZH = {"A": "肺炎链球菌", "B": "军团菌", "C": "支原体", "D": "大肠杆菌"}
GERMS = {"A": "S. aureus", "B": "E. coli", "C": "Klebsiella", "D": "Proteus", "E": "Listeria"}


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("The answer is (B)", "B"),
        ("**B**", "B"),
        ("B", "B"),
        ("B) Niacin", "B"),
        ("B) text", "B"),
        ("B. Niacin is needed", "B"),
        ("Answer: b", "B"),
        ("answer is c.", "C"),
        ('{"reasoning": "A is wrong", "answer": "D"}', "D"),
        ('{"reasoning": "Option A is correct", "answer": "?"}', None),
        ('{"reasoning": "Option A is cor', None),
        ('```json\n{"answer": "B. Niacin"}\n```', "B"),
        ('{"answer": "niacin"}', "B"),
        ('{"answer": "Q"}', None),
        ("Cobalamin", "C"),
        ("It is due to a lack of cobalamin.", "C"),
        ("Folic   ACID.", "D"),
        ("A seems possible. The answer could be A. But on reflection, the correct answer is C.", "C"),
        ("The answer is A. Wait, no. The answer is D.", "D"),
        ("not A but C", "C"),
        ("The answer is not A but C.", "C"),
        ("The answer is not A or B, but C.", "C"),
        ("The answer is neither A nor B but D", "D"),
        ("The answer is C, not A.", "C"),
        ("The answer is A or B.", None),
        ("The answer is not A.", None),
        ("So we get \\boxed{C}", "C"),
        ("$\\boxed{\\text{C}}$", "C"),
        ("\\boxed{\\text{(D) Folic acid}}", "D"),
        ("The answer is $\\boxed{B}$.", "B"),
        ("La respuesta correcta es la B", "B"),
        ("La respuesta no es la A, sino la C.", "C"),
        ("Respuesta: D) Ácido fólico", "D"),
        ("La opción correcta es la letra A.", "A"),
        ("Réponse : D", "D"),
        ("La bonne réponse est la proposition C.", "C"),
        ("La réponse n'est pas A mais B.", "B"),
        ("La risposta corretta è la C", "C"),
        ("A patient with beriberi needs vitamins.", None),
        ("The answer: A patient should be treated first.", None),
        ("A 45-year-old man needs rest.", None),
        ("I think we cannot tell.", None),
        ("", None),
        ("I don't know.", None),
        ("A", "A"),
        ("A.", "A"),
        ("(A)", "A"),
        ("The answer is A because of the gait.", "A"),
        ("The correct answer is A. Thiamine.", "A"),
        ("The answer is A Thiamine", "A"),
        ("She needs vitamin C.", None),
        ("The answer is hepatitis B.", None),
        ("C. difficile is the cause.", None),
        ("Option A is incorrect. Option B is wrong. Option C is not likely. Option D fits.", "D"),
        ("(A) is wrong, (C) is correct.", "C"),
        ("B is the correct answer", "B"),
        ("C is correct because A is incorrect.", "C"),
        ("A) Thiamine\nB) Niacin\nC) Cobalamin\nD) Folic acid", None),
        ("A) Thiamine\nB) Niacin\nC) Cobalamin\nD) Folic acid\n\nAnswer: B", "B"),
        ("Let me think.\nThe gait suggests alcohol.\n\nB", "B"),
        ("Answer:\nC", "C"),
        ("Final answer: **C**", "C"),
        ("### Answer\n\n**D) Folic acid**", "D"),
        ("<think>The answer is A</think>\nB", "B"),
        ("<think>The answer is A", None),
        ("Thiamine is not needed; niacin is.", "B"),
        ("Unlike niacin, cobalamin is in meat only.", "C"),
        ("I would choose D", "D"),
        ("I'd go with (C).", "C"),
        ("Therefore, C.", "C"),
        ("Therefore, option C is the best choice.", "C"),
        ("The most likely answer is therefore B, niacin, and not A.", "B"),
        ("The correct option is letter C", "C"),
        ("The correct choice would be D.", "D"),
        ("So a patient with (B) ...", "B"),
        ("The answer isn't A; it's C", "C"),
        ("Both A and B are correct.", None),
        ("La respuesta es a)", "A"),
        ("D-dimer is raised.", None),
        ("The D-dimer; answer B", "B"),
        ("The best answer is B: niacin deficiency causes pellagra.", "B"),
        ("Based on the findings, the answer would be (c) cobalamin.", "C"),
        ("Answer: A\n\nExplanation: Thiamine deficiency. B is wrong because niacin causes pellagra.", "A"),
        (
            "The correct answer is C. Cobalamin. Option A, thiamine, is not right. Option D is also wrong.",
            "C",
        ),
        ("Option B is not the correct answer. The correct answer is D.", "D"),
        ("The answer to this question is D.", "D"),
        ("La réponse correcte est la A.", "A"),
        ("Je choisis la réponse C.", "C"),
        ("La respuesta es la opción D: ácido fólico.", "D"),
        ("ANSWER: C", "C"),
        ("Correct answer: Option B", "B"),
        ("The answer is: B. Niacin", "B"),
        ("The answer is 'D'.", "D"),
        ('The answer is "Cobalamin".', "C"),
        ("A: Thiamine", "A"),
        ("C - Cobalamin", "C"),
        ("Answer (D)", "D"),
        ("[C]", "C"),
        ("Answer: [B]", "B"),
        ("My answer: B) Niacin\nConfidence: high", "B"),
        ("All options are wrong.", None),
        ("None of the above", None),
        ("As an AI I cannot give medical advice.", None),
        ("E", None),
        ("The answer is E.", None),
        ("Thiamine, niacin and cobalamin are vitamins.", None),
        ("It is either B or C. Since pellagra is absent, it is C.", "C"),
        ("We can rule out A and B. D is unlikely. So the answer must be C.", "C"),
        ("The question asks which vitamin. A, B, C and D are all B vitamins.", None),
        ("A is the answer.", "A"),
        ("C is not correct, the right one is D", "D"),
    ],
)
def test_vitamins(text: str, letter: str | None) -> None:
    assert extract(text, VITAMINS) == letter


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("The answer is vitamin C", "B"),
        ("Vitamin C", "B"),
        ("The patient should have the hepatitis B vaccine", "D"),
    ],
)
def test_like_letters(text: str, letter: str | None) -> None:
    assert extract(text, LIKE_LETTERS) == letter


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("Yes", "A"),
        ("no.", "B"),
        ("Yes, the procedure is safe.", "A"),
        ("There is no evidence for that.", None),
        ("The answer is no.", "B"),
        ("The answer is maybe", "C"),
    ],
)
def test_yes_no(text: str, letter: str | None) -> None:
    assert extract(text, YES_NO) == letter


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("答案是C", "C"),
        ("正确答案：B", "B"),
        ("答案：Ｄ。", "D"),
        ("故选A。", "A"),
        ("不是A，而是C", "C"),
        ("答案不是A而是C", "C"),
        ("选B", "B"),
        ("最常见的是肺炎链球菌。", "A"),
        ("选项A错误，选项B正确。", "B"),
        ("本题应选D，因为大肠杆菌最常见", "D"),
        ("因此，答案为（B）", "B"),
        ("A选项不正确，因此选C", "C"),
        ("根据题意，选择C。", "C"),
        ("A", "A"),
        ("正确答案是选项D", "D"),
        ("A、B、C均错误，D正确", "D"),
        ("答案应为A：肺炎链球菌", "A"),
        ("我认为是支原体", "C"),
    ],
)
def test_germs_zh(text: str, letter: str | None) -> None:
    assert extract(text, GERMS_ZH) == letter


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("The answer is E. coli", "B"),
        ("E. coli", "B"),
        ("The answer is E.", "E"),
    ],
)
def test_germs(text: str, letter: str | None) -> None:
    assert extract(text, GERMS) == letter


# -- what holds for all

letters = st.sampled_from("ABCDE")
OPTIONS = {"A": "Thiamine", "B": "Niacin", "C": "Cobalamin", "D": "Folic acid", "E": "Retinol"}
FORMS = [
    "{}",
    "({})",
    "[{}]",
    "**{}**",
    "{}.",
    "{})",
    "{}: {own}",
    "{}) {own}",
    "**{}. {own}**",
    "{own}",
    "{own}.",
    "Answer: {}",
    "answer: ({})",
    "The answer is {}.",
    "The correct answer is **{}**, {own}.",
    "Option {} is correct.",
    "\\boxed{{{}}}",
    "$\\boxed{{\\text{{{}}}}}$",
    "I would choose {}.",
    "Therefore, the best option is {}.",
    "La respuesta correcta es la {}.",
    "Respuesta: {}",
    "La bonne réponse est {}.",
    "Réponse : {}",
    "La risposta corretta è {}.",
    "答案是{}",
    "正确答案：{}。",
    "故选{}。",
    "选项{}正确。",
    "本题选择（{}）。",
    "The answer is not {other} but {}.",
    "The answer is {}, not {other}.",
    "La respuesta no es {other} sino {}.",
    "La réponse n'est pas {other} mais {}.",
    "答案不是{other}而是{}。",
    "{other} is wrong. The answer is {}.",
    "I first thought that the answer is {other}. But no: the final answer is {}.",
    "Reasons come first.\n\n{}",
    "<think>The answer is {other}.</think>The answer is {}",
]


@pytest.mark.parametrize("form", FORMS)
@given(letter=letters, other=letters)
def test_every_letter_is_found_in_every_form(form: str, letter: str, other: str) -> None:
    other = other if other != letter else "ABCDE"["ABCDE".index(letter) - 1]
    text = form.format(letter, own=OPTIONS[letter], other=other)
    assert extract(text, OPTIONS) == letter


@given(st.text() | st.text(string.ascii_letters + " .,:()\n*是不答案选"), st.booleans())
def test_any_text_gives_an_option_or_none(text: str, in_json: bool) -> None:
    assert extract(json.dumps({"answer": text}) if in_json else text, OPTIONS) in {*OPTIONS, None}


@given(letters, st.text(max_size=200))
def test_json_says_it_whatever_its_reasons_say(letter: str, reasons: str) -> None:
    told = {"reasoning": reasons.replace("<think>", ""), "answer": letter}
    for ascii_only in (True, False):
        assert extract(json.dumps(told, ensure_ascii=ascii_only), OPTIONS) == letter


@given(letters)
def test_a_letter_that_is_no_option_is_no_answer(letter: str) -> None:
    options = {k: v for k, v in OPTIONS.items() if k != letter}
    assert extract(f"The answer is {letter}.", options) is None


def test_a_long_answer_in_a_loop_ends_soon() -> None:
    assert extract("B is likely, but not A. " * 200, OPTIONS) in {*OPTIONS, None}
