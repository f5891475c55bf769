"""Who asks what: the serving workloads, their prompts, and the targets that medge is held to.

The text is made from a small word list and a seed, so that two servers read exactly the same
prompts and no cache has seen them before. Knows nothing of HTTP or of processes.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import Literal

from edge_runtime.errors import Unavailable

Kind = Literal["short", "long"]
Message = dict[str, str]

MAX_TOKENS = 64  # of every answer
SYSTEM_TOKENS = 300
LONG_TOKENS = 1_500
LONG_EVERY = 4
QUESTION_WORDS = 24

PATIENTS = ("teacher", "farmer", "driver", "nurse", "student", "carpenter", "cook", "pensioner")
CONDITIONS = (
    "asthma", "type 2 diabetes", "hypertension", "atrial fibrillation", "chronic kidney disease",
    "hypothyroidism", "iron deficiency anaemia", "rheumatoid arthritis", "migraine", "gout",
    "heart failure", "epilepsy", "psoriasis", "coeliac disease", "peptic ulcer",
)  # fmt: skip
SYMPTOMS = (
    "a dry cough", "chest tightness", "swollen ankles", "blurred vision", "a spreading rash",
    "night sweats", "dizziness on standing", "burning urination", "joint stiffness", "vomiting",
    "a throbbing headache", "shortness of breath", "abdominal cramps", "numb fingers", "fever",
)  # fmt: skip
DRUGS = (
    "metformin", "lisinopril", "salbutamol", "warfarin", "amoxicillin", "levothyroxine",
    "omeprazole", "ibuprofen", "prednisolone", "atorvastatin", "furosemide", "methotrexate",
    "allopurinol", "carbamazepine", "bisoprolol", "insulin glargine",
)  # fmt: skip
TESTS = (
    "a full blood count", "serum creatinine", "an electrocardiogram", "a chest radiograph",
    "thyroid function tests", "liver enzymes", "a urine culture", "peak flow", "HbA1c", "ferritin",
)  # fmt: skip
FINDINGS = ("raised", "normal", "slightly low", "clearly abnormal", "unchanged", "still pending")
SENTENCES = (
    "A {age} year old {patient} with {condition} reports {symptom} for {days} days.",
    "The dose of {drug} was changed {days} days ago because of {symptom}.",
    "On examination the pulse is {pulse} and the blood pressure is {systolic} over {diastolic}.",
    "The result of {test} is {finding}, and {drug} is continued for now.",
    "There is a family history of {condition}, but no known allergy to {drug}.",
    "If {symptom} returns, repeat {test} and look again for {condition}.",
    "The {patient} stopped taking {drug} after {symptom} and asks whether that was safe.",
)


@dataclass(frozen=True)
class Target:
    """A limit for one figure: of the ratio A/B, or of A alone."""

    limit: float
    at_least: bool = False
    of: Literal["ratio", "a"] = "ratio"

    def met(self, value: float) -> bool:
        return value >= self.limit if self.at_least else value <= self.limit

    def __str__(self) -> str:
        return f"{'A ' if self.of == 'a' else ''}{'≥' if self.at_least else '≤'} {self.limit:g}"


@dataclass(frozen=True)
class Workload:
    """One way in which a server is used.

    Attributes:
        alone: one client; otherwise as many as the run has.
        with_long: every fourth prompt is long.
        busy_core: another program keeps one core busy while requests are measured.
        n_times: this many times the usual number of requests.
        targets: by the name of a figure (`client.figures`).
    """

    name: str
    about: str
    targets: dict[str, Target]
    alone: bool = False
    with_long: bool = False
    busy_core: bool = False
    n_times: int = 1


WORKLOADS = {
    workload.name: workload
    for workload in (
        Workload(
            "single",
            "one client",
            {"tokens_per_s": Target(1.0, at_least=True)},
            alone=True,
        ),
        Workload(
            "shared",
            "many clients, one system prompt, short questions",
            {
                "tokens_per_s": Target(1.3, at_least=True),
                "ttft_p50_s": Target(0.7),
                "peak_pss_bytes": Target(1.0),
            },
        ),
        Workload(
            "mixed",
            "as shared, every fourth prompt long",
            {
                "tokens_per_s": Target(1.0, at_least=True),
                "ttft_short_p50_s": Target(0.3),
                "itl_p99_s": Target(0.15),
                "peak_pss_bytes": Target(0.65),
            },
            with_long=True,
        ),
        Workload(
            "busy",
            "as shared, while another program keeps one core busy",
            {"tokens_per_s": Target(1.5, at_least=True)},
            busy_core=True,
        ),
        Workload(
            "soak",
            "as shared, ten times as many requests: memory must not grow",
            {"pss_growth": Target(1.02, of="a")},
            n_times=10,
        ),
    )
}


@dataclass(frozen=True)
class Prompt:
    kind: Kind
    messages: tuple[Message, ...]


@dataclass(frozen=True)
class WordLength:
    """How many tokens a text of n words becomes: `base + slope * n`, the chat form included."""

    base: float
    slope: float

    @classmethod
    def fit(cls, measured: tuple[tuple[int, int], tuple[int, int]]) -> WordLength:
        """From (words, tokens) of two prompts of different length.

        Raises:
            Unavailable: the longer one has no more tokens.
        """
        (words_1, tokens_1), (words_2, tokens_2) = measured
        slope = (tokens_2 - tokens_1) / (words_2 - words_1)
        if slope <= 0:
            raise Unavailable(
                f"The server counted {tokens_1} prompt tokens for {words_1} words and {tokens_2} "
                f"for {words_2}; its usage.prompt_tokens cannot be used to size prompts."
            )
        return cls(base=tokens_1 - slope * words_1, slope=slope)

    def words_for(self, n_tokens: int) -> int:
        return max(1, round((n_tokens - self.base) / self.slope))


def clinical_text(random: Random, n_words: int) -> str:
    """Exactly `n_words` words that read like clinical notes and mean nothing."""
    words: list[str] = []
    while len(words) < n_words:
        sentence = random.choice(SENTENCES).format(
            age=random.randint(18, 95),
            days=random.randint(2, 60),
            pulse=random.randint(52, 118),
            systolic=random.randint(95, 185),
            diastolic=random.randint(55, 105),
            patient=random.choice(PATIENTS),
            condition=random.choice(CONDITIONS),
            symptom=random.choice(SYMPTOMS),
            drug=random.choice(DRUGS),
            test=random.choice(TESTS),
            finding=random.choice(FINDINGS),
        )
        words += sentence.split()
    return " ".join(words[:n_words])


def _message(role: str, text: str) -> Message:
    return {"role": role, "content": text}


def probe_prompts(seed: str) -> tuple[tuple[int, Prompt], tuple[int, Prompt]]:
    """Two prompts with their numbers of words: what `WordLength.fit` needs to be answered."""
    random = Random(seed)

    def probe(n_words: int) -> tuple[int, Prompt]:
        half = n_words // 2
        system = _message("system", clinical_text(random, half))
        return n_words, Prompt("short", (system, _message("user", clinical_text(random, n_words - half))))

    return probe(60), probe(360)


def prompts(
    workload: Workload, n_requests: int, length: WordLength, seed: str, system_seed: str
) -> list[Prompt]:
    """The prompts of one run, in the order in which they are sent.

    All share one system prompt of about `SYSTEM_TOKENS` tokens, made from `system_seed`; every user
    message begins with a number of its own. A long prompt is about `LONG_TOKENS` tokens with
    everything in it. The same arguments give the same prompts.
    """
    random = Random(f"questions {seed}")
    n_system = length.words_for(SYSTEM_TOKENS)
    n_long = max(1, length.words_for(LONG_TOKENS) - n_system)
    system = _message("system", clinical_text(Random(f"system {system_seed}"), n_system))
    case_numbers = random.sample(range(100_000, 1_000_000), n_requests)
    made = []
    for number, case in enumerate(case_numbers):
        is_long = workload.with_long and number % LONG_EVERY == LONG_EVERY - 1
        text = clinical_text(random, n_long if is_long else QUESTION_WORDS)
        question = f"Case {case}. {text} What should be done next?"
        made.append(Prompt("long" if is_long else "short", (system, _message("user", question))))
    return made
