"""Emergencies are found in four languages; what is denied, past or asked to learn is not; all of it fast."""

from __future__ import annotations

import json
import sys
import time
import unicodedata
from collections.abc import Callable
from functools import cache
from pathlib import Path
from statistics import median
from typing import NamedTuple

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from edge_runtime.errors import InvalidRequest, InvalidSetting
from edge_runtime.prompts.red_flags import (
    FILE,
    LANGUAGES,
    MAX_FILE_BYTES,
    RedFlag,
    Rules,
    find,
    notice,
    rules,
)

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

TABLE = tomllib.loads(FILE.read_text("utf-8"))
IDS = [rule["id"] for rule in TABLE["rule"]]


class Row(NamedTuple):
    text: str
    language: str
    flags: frozenset[str]
    split: str


LINES = Path(__file__).with_name("red_flags.jsonl").read_text("utf-8").splitlines()
ROWS = [Row(r["text"], r["language"], frozenset(r["flags"]), r["split"]) for r in map(json.loads, LINES)]


@cache
def ids(text: str) -> frozenset[str]:
    return frozenset(flag.id for flag in find(text))


def recall_and_precision(rows: list[Row]) -> tuple[float, float]:
    """Over pairs of a text and a flag."""
    right = sum(len(ids(r.text) & r.flags) for r in rows)
    return right / sum(len(r.flags) for r in rows), right / sum(len(ids(r.text)) for r in rows)


def near_misses_flagged(rows: list[Row]) -> float:
    return sum(bool(ids(r.text)) for r in rows if not r.flags) / sum(not r.flags for r in rows)


# The labelled texts. Three splits have helped to mend the rules: their numbers guard what is reached, and are
# no estimate for new texts.
MENDED = ("tune", "held_out", "third")


@pytest.mark.parametrize("splits", [*((split,) for split in MENDED), MENDED])
def test_emergencies_are_found_and_little_else(splits: tuple[str, ...]) -> None:
    rows = [r for r in ROWS if r.split in splits]
    recall, precision = recall_and_precision(rows)
    alarms = near_misses_flagged(rows)
    print(f"{splits}: recall {recall:.3f}, precision {precision:.3f}, near misses flagged {alarms:.3f}")
    assert recall >= 0.98
    assert precision >= 0.95
    assert alarms <= 0.05


# Written after the rules were mended for the last time, by the one who mended them, and measured once: the
# estimate for new texts. Rules that are mended by these texts need new ones.


def test_emergencies_that_the_rules_never_saw() -> None:
    rows = [r for r in ROWS if r.split == "unseen"]
    recall, precision = recall_and_precision(rows)
    assert recall >= 54 / 67
    assert precision >= 54 / 64
    assert near_misses_flagged(rows) <= 2 / 60


@pytest.mark.parametrize("split", MENDED)
@pytest.mark.parametrize("language", LANGUAGES)
def test_no_language_is_worse(language: str, split: str) -> None:
    recall, precision = recall_and_precision([r for r in ROWS if (r.language, r.split) == (language, split)])
    print(f"{language} {split}: recall {recall:.3f}, precision {precision:.3f}")
    assert recall >= 0.95
    assert precision >= 0.95


def test_the_labelled_texts_are_many_and_divided() -> None:
    emergencies = [r for r in ROWS if r.flags]
    assert len(emergencies) >= 200
    assert len(ROWS) - len(emergencies) >= 200
    assert len({r.text for r in ROWS}) == len(ROWS)
    assert {r.split for r in ROWS} == {*MENDED, "unseen"}
    assert sum(r.split == "unseen" for r in ROWS) == 2 * sum(r.split == "unseen" for r in emergencies) == 120
    for language in LANGUAGES:
        assert 0.2 < sum(r.language == language for r in ROWS) / len(ROWS) < 0.3


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("id", IDS)
def test_every_rule_has_examples_in_each_language(id: str, language: str) -> None:
    assert {"tune", "held_out"} <= {r.split for r in ROWS if id in r.flags and r.language == language}


def test_the_words_that_decided_are_words_of_the_text() -> None:
    for row in ROWS:
        for flag in find(row.text):
            assert flag.words
            assert all(words and words in row.text for words in flag.words)


def test_what_was_found_is_told_in_the_text_s_own_writing() -> None:
    assert find("Il NE RESPIRE plus !") == (RedFlag("breathing", ("NE RESPIRE plus",)),)
    assert find("Er.. ＳｐＯ２　８２％") == (RedFlag("vital_signs", ("ＳｐＯ２　８２",)),)
    assert find("患者血压70/40")[0].words == ("血压70",)


# How a text is written does not matter.


def without_marks(text: str) -> str:
    return "".join(c for c in unicodedata.normalize("NFD", text) if unicodedata.category(c) != "Mn")


def full_width(text: str) -> str:
    return "".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c for c in text)


@pytest.mark.parametrize(
    "change",
    [
        str.upper,
        without_marks,
        full_width,
        lambda text: unicodedata.normalize("NFD", text),
        lambda text: text.replace(" ", "   "),
        lambda text: text.replace("'", "’"),
        lambda text: text.replace(" ", "\u00a0"),
        lambda text: "  \t" + text + "\r\n",
    ],
)
def test_case_accents_width_and_spaces_do_not_matter(change: Callable[[str], str]) -> None:
    for row in ROWS:
        assert ids(change(row.text)) == ids(row.text), row.text


def test_one_wrong_letter_does_not_matter() -> None:
    assert "unconscious" in ids("she is unconcious")
    assert "seizure" in ids("he is having a siezure")
    assert "breathing" in ids("my son is chokking on a nut")
    assert "unconscious" in ids("está incosciente")
    assert not ids("the breeding season of horses")


def test_traditional_characters_are_read() -> None:
    assert ids("我爸突然說不出話，右邊手腳沒力氣") == {"stroke"}
    assert ids("病人沒有胸痛，沒有出汗") == frozenset()


# Negation.

DENIED = {
    "en": (
        [
            "No {}.",
            "Patient denies {}.",
            "There is no evidence of {}.",
            "He came without {}.",
            "Negative for {}.",
        ],
        [
            "cardiac arrest",
            "respiratory distress",
            "facial droop",
            "suicidal thoughts",
            "vomiting blood",
        ],
        "but he has",
    ),
    "es": (
        ["Sin {}.", "Niega {}.", "No tiene {}.", "No presenta {}.", "Ausencia de {}."],
        [
            "parada cardiaca",
            "dificultad respiratoria",
            "parálisis facial",
            "ideas de suicidio",
            "vómitos de sangre",
        ],
        "pero tiene",
    ),
    "fr": (
        ["Pas de {}.", "Aucune {}.", "Sans {}.", "La patiente nie {}.", "Absence de {}."],
        ["détresse respiratoire", "paralysie faciale", "perte de connaissance", "tentative de suicide"],
        "mais il a une",
    ),
    "zh": (
        ["没有{}。", "无{}。", "否认{}。", "未见{}。", "没有出现{}。"],
        ["呼吸困难", "面瘫", "昏迷", "自杀念头", "呕血"],
        "，但是有",
    ),
}
CASES = [(la, form, what) for la, (forms, whats, _) in DENIED.items() for form in forms for what in whats]


@pytest.mark.parametrize(("language", "form", "what"), CASES)
def test_what_is_denied_is_not_found_and_what_follows_but_is(language: str, form: str, what: str) -> None:
    but = DENIED[language][2]
    other = next(w for w in DENIED[language][1] if w != what)
    assert ids(what)
    assert not ids(form.format(what))
    assert ids(form.format(f"{other} {but} {what}")) == ids(what)


@given(st.lists(st.sampled_from(DENIED["en"][1]), min_size=1, max_size=4, unique=True))
@example(["cardiac arrest", "facial droop", "respiratory distress"])
def test_a_denied_list_is_denied_to_its_end(findings: list[str]) -> None:
    assert not ids(f"Patient denies {', '.join(findings)}.")
    assert not ids(f"No {', '.join(findings[:-1])} or {findings[-1]}.")
    assert ids(f"No {findings[0]}. Now {findings[-1]}.") == ids(findings[-1])


@given(st.permutations(DENIED["en"][1]))
def test_and_ends_a_denial_unless_somebody_denies(findings: list[str]) -> None:
    one, other, *_ = findings
    assert ids(f"No {one} and {other}.") == ids(other)
    assert not ids(f"Patient denies {one} and {other}.")


@pytest.mark.parametrize(
    ("text", "flags"),
    [
        ("no fever and crushing chest pain", {"chest_pain"}),
        ("sin fiebre y dolor opresivo en el pecho", {"chest_pain"}),
        ("pas de fièvre et une douleur thoracique constrictive", {"chest_pain"}),
        ("没有发烧而且胸口压榨样疼", {"chest_pain"}),
        ("病人无意识障碍、四肢抽搐", set()),
        ("no fever but crushing chest pain", {"chest_pain"}),
        ("No fever. No cough. Crushing chest pain radiating to the arm.", {"chest_pain"}),
        ("Denies fever, cough, crushing chest pain, or sweating.", set()),
        ("Patient denies chest pain, has sweating", set()),
        ("I can't breathe", {"breathing"}),
        ("no puede respirar", {"breathing"}),
        ("sin fiebre pero con dolor opresivo en el pecho y sudor", {"chest_pain"}),
        ("Sin dolor opresivo en el pecho ni sudoración.", set()),
        ("elle ne respire plus", {"breathing"}),
        ("pas de fièvre mais douleur thoracique constrictive et sueurs", {"chest_pain"}),
        ("没有呼吸", {"breathing"}),
        ("无明显诱因出现胸痛伴大汗2小时", {"chest_pain"}),
        ("I don't want to live", {"suicidal_intent"}),
        ("I don't want to kill myself", set()),
        ("no quiero morir, solo dormir", set()),
        ("je ne veux pas mourir", set()),
        ("我不想死", set()),
    ],
)
def test_negation_reaches_as_far_as_it_is_meant(text: str, flags: set[str]) -> None:
    assert ids(text) == flags


# A word that often excuses a finding does not excuse it where somebody is in danger.


@pytest.mark.parametrize(
    ("id", "text"),
    [
        ("breathing", "someone is choking help"),
        ("unconscious", "He collapsed during football training and is not breathing"),
        ("poisoning_overdose", "I may have taken too many pills, the whole bottle of tylenol"),
        ("suicidal_intent", "how many pills does it take to kill myself, I want to die"),
        ("seizure", "we were watching a movie and she started having a seizure"),
        ("chest_pain", "should I call 911 for crushing chest pain and sweating"),
        ("chest_pain", "what is the treatment? my husband has crushing chest pain"),
        ("stroke", "stroke protocol activated, left hemiparesis and aphasia since 20 minutes"),
        ("seizure", "crise convulsive en cours depuis 5 minutes"),
        ("stroke", "I was studying for my exam and suddenly my arm is numb and I can't speak"),
        ("severe_bleeding", "My little boy is bleeding heavily from the head"),
        ("severe_burn", "my little son was burned by boiling water all over his face"),
        ("unconscious", "took his meds and won't wake up"),
        ("infant_fever", "I gave birth 10 days ago and my baby has a fever of 38.5"),
        ("chest_pain", "I had surgery two months ago and crushing chest pain with sweating"),
        ("chest_pain", "mon père a 70 ans et a une douleur dans la poitrine qui serre, il transpire"),
        ("stroke", "c'est peut-être un AVC, sa bouche est tordue et il ne parle plus"),
        ("chest_pain", "¿puede ser un infarto? a mi padre le duele el pecho y suda mucho"),
        ("seizure", "ya tuvo dos convulsiones hoy"),
        ("chest_pain", "胸口剧痛大汗怎么治疗"),
        ("seizure", "如果孩子抽搐不停怎么办"),
        ("sepsis", "PMH: DM, HTN. Today: fever 39.5, confused, BP 82/40"),
    ],
)
def test_in_doubt_it_is_found(id: str, text: str) -> None:
    assert id in ids(text)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("SpO2 89%", True),
        ("SpO2 94%", False),
        ("BP 120/80 HR 82 RR 16", False),
        ("BP: 84/52", True),
        ("HR 151", True),
        ("HR 149", False),
        ("HR 34", True),
        ("heart rate of 48", False),
        ("RR 36", True),
        ("GCS 8", True),
        ("GCS 15", False),
        ("temp 41.2", True),
        ("T 39.9", False),
        ("glucose 49 mg/dl", True),
        ("glucose 5.6 mmol/L", False),
        ("TA 7/4", True),
        ("TA 12/8", False),
        ("tensión de 85/50", True),
        ("glycémie à 0,4 g/L", True),
        ("glycémie à 1,1 g/L", False),
        ("血氧85%", True),
        ("血压118/75，心率70", False),
    ],
)
def test_numbers_decide_by_their_limits(text: str, found: bool) -> None:
    assert ("vital_signs" in ids(text)) is found


# Notices.


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("id", IDS)
def test_every_flag_has_a_notice_in_each_language(id: str, language: str) -> None:
    text = notice([RedFlag(id, ("x",))], language)
    name = next(rule["name"][language] for rule in TABLE["rule"] if rule["id"] == id)
    assert len(text) > 50 and "{" not in text
    assert (name in text) is (id != "suicidal_intent")
    numbers = "".join(c if c.isdigit() else " " for c in text).split()
    assert set(numbers) - set("".join(c if c.isdigit() else " " for c in name).split()) == {
        "112",
        "911",
        "999",
        "120",
    }


def test_an_emergency_and_a_crisis_are_both_told() -> None:
    both = notice(find("j'ai pris 25 comprimés de doliprane pour en finir"), "fr")
    emergency, crisis = both.split("\n\n")
    assert "intoxication" in emergency
    assert crisis == notice([RedFlag("suicidal_intent", ())], "fr")


def test_nothing_found_needs_no_notice() -> None:
    assert notice(find("How much water should I drink?"), "en") == ""


def test_a_language_without_notices_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="'de'"):
        notice((), "de")


# Time and hostile texts.

LONG = {
    "en": "The patient is a 55 year old woman with a long history of asthma who came in today because her "
    "cough has not improved; she sleeps well, walks her dog and takes metformin twice a day. ",
    "es": "Paciente mujer de 55 años que acude por tos de una semana, sin fiebre, sin dolor en el pecho, "
    "come bien, camina todas las mañanas y toma metformina dos veces al día. ",
    "fr": "Patiente de 55 ans qui consulte pour une toux depuis une semaine, sans fièvre, pas de douleur "
    "dans la poitrine, elle mange bien, marche tous les matins et prend de la metformine. ",
    "zh": "患者女，55岁，因咳嗽一周来诊，无发热，无胸痛，食欲可，睡眠好，既往有高血压病史，"
    "目前服用氨氯地平，血压控制良好。",
}


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_long_text_takes_milliseconds(language: str) -> None:
    # A Chinese character says about as much as two letters.
    text = (LONG[language] * 50)[: 1000 if language == "zh" else 2000]
    assert not find(text)

    def seconds() -> float:
        start = time.thread_time()
        find(text)
        return time.thread_time() - start

    # The quickest of five medians: other programs on the same cores must not fail the test.
    typical = min(median(seconds() for _ in range(30)) for _ in range(5))
    print(f"{language}: {1000 * typical:.2f} ms")
    assert typical < 0.006  # 1 to 3 ms


def test_the_median_question_takes_less_than_two_milliseconds() -> None:
    def seconds(text: str) -> float:
        start = time.thread_time()
        find(text)
        return time.thread_time() - start

    assert min(median(seconds(row.text) for row in ROWS) for _ in range(5)) < 0.002


HOSTILE = {
    "nothing": "",
    "spaces": " ",
    "one word": "a",
    "many marks": "a\u0301\u0316\u0330",
    "control": "\x00\x1b[31m\x7f",
    "lone surrogate": "\ud800 ",
    "mixed scripts": "chest боль 胸 ألم pain ",
    "right to left": "\u202eألم في الصدر\u202c ",
    "findings": "crushing chest pain ",
    "near findings": "pain pain chest not ",
    "negations": "no ",
    "lists": "no pain, or ",
    "years": "in 2010 ",
    "numbers": "1 2 3/4,5.6 ",
    "chinese": "胸痛没有血压",
    "line ends": "\n \n",
    "everything": " ".join(row.text for row in ROWS[:40]),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_texts_take_linear_time(name: str) -> None:
    whole = (HOSTILE[name] * 100_000)[:100_000]
    half = whole[: len(whole) // 2]

    def seconds(text: str) -> float:
        start = time.thread_time()
        find(text)
        return time.thread_time() - start

    assert seconds(whole) < 5
    assert min(seconds(whole) for _ in range(3)) < 3 * min(seconds(half) for _ in range(3)) + 0.05


@settings(max_examples=300)
@given(st.text(max_size=300))
def test_no_text_is_too_strange(text: str) -> None:
    for flag in find(text):
        assert flag.id in IDS


@given(st.lists(st.sampled_from([word for row in ROWS for word in row.text.split()]), max_size=60))
def test_the_same_text_gets_the_same_answer(words: list[str]) -> None:
    text = " ".join(words)
    assert find(text) == find(text)
    assert [flag.id for flag in find(text)] == [id for id in IDS if id in {f.id for f in find(text)}]


# The rules themselves.


def test_the_rules_are_read_once() -> None:
    assert rules() is rules()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("within = 14", "wihtin = 14", "rule.2.wihtin is not known here. Did you mean within?"),
        ("within = 14", "within = 0", "rule.2.within: 0 is not possible"),
        ('when = [["rigid"]', 'when = [[], ["rigid"]', "rule.18.when.0: [] is not possible"),
        ('when = [["hemorrhage"], ["bleeding", "heavy"]]', "when = []", "rule.2.when: [] is not possible"),
        ('["fever|infection",', '["fever|", ', "rule.6.when.0.0: a name in it is empty"),
        ('["fever|infection",', '["feber",', "rule.6.when: 'feber' is not in terms"),
        ('unless = "sunburn"', 'unless = "sunbrun"', "rule.14.unless: 'sunbrun' is not in terms"),
        ('notice = "crisis"', 'notice = "calm"', "rule.7.notice: 'calm' is not in notice"),
        (
            'despite = ["knowledge",',
            'despite = ["calm",',
            "rule.7.despite: 'calm' is not in context",
        ),
        ('name = { en = "seizure", ', "name = { ", "rule.10.name.en is missing"),
        ('when = [["unconscious"]', 'whem = [["unconscious"]', "rule.0.whem is not known here"),
        ('zh = ["脑膜炎|流脑|脑炎"]', 'de = ["Meningitis"]', "terms.meningitis_word.de is not known here"),
        ('zh = ["脑膜炎|流脑|脑炎"]', "zh = []", "terms.meningitis_word.zh: [] is not possible"),
        ('["脑膜炎|流脑|脑炎"]', '["脑炎", "|"]', "'|' cannot be read: no word in ''"),
        ('["脑膜炎|流脑|脑炎"]', '["{heat}"]', "'{heat}' cannot be read: there is no list 'heat'"),
        ('["脑膜炎|流脑|脑炎"]', '["<hot>"]', "'<hot>' cannot be read: no range in '<hot>'"),
        ('reach = "text"', 'reach = "far"', "context.8.reach: 'far' is not possible"),
        ('stops = "real"', 'stops = "fear"', "context.6.stops: 'fear' is not in terms"),
    ],
)
def test_rules_that_are_wrong_are_refused_by_line_and_name(
    old: str, new: str, message: str, tmp_path: Path
) -> None:
    text = FILE.read_text("utf-8")
    before, found, after = text.partition(old)
    assert found
    path = tmp_path / "rules.toml"
    path.write_text(before + new + after, "utf-8")
    with pytest.raises(InvalidSetting) as error:
        Rules(path)
    where, _, said = error.value.message.partition(": ")
    assert message in said
    # A key that is missing is told by the line of its table.
    assert where == f"{path}, line {before.count(chr(10)) + 1}"


def test_rules_of_no_end_are_not_read(tmp_path: Path) -> None:
    path = tmp_path / "rules.toml"
    path.write_bytes(b"#" * (MAX_FILE_BYTES + 1))
    with pytest.raises(InvalidSetting, match="more than"):
        Rules(path)


def test_every_list_of_terms_is_used() -> None:
    groups = [group for rule in TABLE["rule"] for groups in rule["when"] for group in groups]
    groups += [rule[key] for rule in TABLE["rule"] for key in ("unless",) if key in rule]
    groups += [c[key] for c in TABLE["context"] for key in ("marks", "stops", "lists") if key in c]
    used = {name for group in groups for name in group.split("|")}
    # Matched for its own sake: a negation inside it denies nothing.
    assert set(TABLE["terms"]) - used == {"not_negation"}
