"""The parity gate: is the BF16 GGUF the model that was trained?

Token ids, chat form, end tokens, logits and greedy text are compared with the reference in torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import gguf
import torch

from .compare import Difference
from .errors import GateFailed
from .native import N_CTX, Model, quantize
from .progress import Report, silent
from .reference import Reference

MIN_TOP1 = 0.99
MAX_MEAN_KL = 1e-3
N_GREEDY = 32
# Where the greedy texts part, the two tokens must be this close: nats.
NEAR_TIE = 0.1

# What tokenizers cut differently: units, Greek, Chinese, emoji, whitespace, long numbers.
CORPUS = (
    "Paracetamol 15 mg/kg every 4–6 h, max. 75 mg/kg/day; IV 1 g q6h.",
    "Na⁺ 128 mmol/L, K⁺ 6.1 mmol/L, Ca²⁺ 2.05 mmol/L, pCO₂ 7.3 kPa, 37.8 °C, 5 µg",
    "α-fetoprotein, β-blocker, γ-GT, Δ9-THC, 5-HT₃, TNF-α, IFN-γ, ±2σ, ≥ 3 × 10⁹/L",
    "患者三天前开始发热，体温39.5℃，伴有咳嗽和呼吸困难。",
    "¿Cuáles son los síntomas de la deshidratación en un niño pequeño? Fièvre élevée — œdème aigu.",
    "🤒 38.9°C → 💊 every 6h 👩🏽‍⚕️ 🩺",
    "  two  spaces\tand\ttabs \n\n\n  and lines\r\nof both kinds   ",
    "MRN 0012345678901234567890, ICD-10 E11.65, NCT01234567, +44 20 7946 0958",
    "It's the patient's; they'll, we've, I'd, don't, O'Brien's",
    "<|im_start|>user\nI am not a control token<|im_end|> </s> <s> <think>",
    '{"dose": 2.5, "unit": "mg"}\n- [ ] `HbA1c` | **bold** | x_y^2',
    "DOI:10.1056/NEJMoa2034577 https://example.org/a?b=c&d=%20e#f",
    "สวัสดี привет שלום مرحبا नमस्ते こんにちは 안녕하세요",
)

CHATS: tuple[tuple[dict[str, str], ...], ...] = (
    ({"role": "user", "content": "What is a fever?"},),
    (
        {"role": "user", "content": "My child vomits."},
        {"role": "assistant", "content": "How old is the child?"},
        {"role": "user", "content": "Two years.\n"},
    ),
)


@dataclass
class Parity:
    """What was found. `problems` is empty if the gate is passed."""

    n_texts: int = 0
    n_positions: int = 0
    top1: float | None = None
    mean_kl: float | None = None
    n_greedy_equal: int = 0
    n_greedy: int = 0
    problems: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


@contextmanager
def opened(path: Path, reference: Reference) -> Iterator[Model]:
    """The GGUF for comparing. If the reference computes in float32 the GGUF does, too: llama.cpp rounds what
    goes into a BF16 matrix to BF16, which would hide small faults.
    """
    if reference.dtype != torch.float32:
        with Model(path, exact=True) as model:
            yield model
        return
    expanded = path.with_suffix(".f32")
    try:
        matrices = [
            t.name for t in gguf.GGUFReader(path).tensors if t.tensor_type == gguf.GGMLQuantizationType.BF16
        ]
        quantize(path, expanded, dict.fromkeys(matrices, "F32"))
        with Model(expanded, exact=True) as model:
            yield model
    finally:
        expanded.unlink(missing_ok=True)


def check(
    reference: Reference,
    model: Model,
    texts: Sequence[str],
    n_tokens: int = 4096,
    on_progress: Report = silent,
) -> Parity:
    """Compare `model` with `reference` on `texts`.

    Raises:
        GateFailed: with what differs; `check` stops at the first kind of difference.
    """
    found = Parity()
    for test in (_same_tokens, _same_chat, _same_ends):
        test(reference, model, texts, found)
        _stop_at(found)
    _same_logits(reference, model, texts, n_tokens, found, on_progress)
    _stop_at(found)
    _same_greedy(reference, model, texts, found)
    _stop_at(found)
    return found


def _stop_at(found: Parity) -> None:
    if found.problems:
        raise GateFailed(
            "The GGUF is not the model that was trained: "
            + "; ".join(found.problems[:3])
            + ". Nothing was kept."
        )


def _same_tokens(reference: Reference, model: Model, texts: Sequence[str], found: Parity) -> None:
    for text in (*CORPUS, *texts):
        ours, theirs = model.tokenize(text), reference.tokenize(text)
        found.n_texts += 1
        if ours != theirs:
            at = next(
                (i for i, (a, b) in enumerate(zip(ours, theirs)) if a != b), min(len(ours), len(theirs))
            )
            found.problems.append(
                f"token {at} of {text[:60]!r} is {ours[at : at + 3]} in the GGUF and {theirs[at : at + 3]} "
                "in the base (pre-tokenizer, merges or special tokens)"
            )
            return


def _same_chat(reference: Reference, model: Model, _: Sequence[str], found: Parity) -> None:
    theirs = getattr(reference.tokenizer, "chat_template", None)
    if bool(theirs) != bool(model.chat_template):
        found.problems.append("one of the two has a chat template and the other has not")
        return
    if not theirs or not model.chat_template:
        return
    for chat in CHATS:
        expected = reference.tokenizer.apply_chat_template(
            list(chat), tokenize=True, add_generation_prompt=True, return_dict=False
        )
        text = reference.tokenizer.apply_chat_template(
            list(chat), chat_template=model.chat_template, tokenize=False, add_generation_prompt=True
        )
        # As the runtime does it: the template may have written the first token itself.
        bos = reference.tokenizer.bos_token or "\0"
        tokens = model.tokenize(text, special=True, add_bos=model.add_bos and not text.startswith(bos))
        if tokens != list(expected):
            found.problems.append(
                f"the chat {chat[0]['content']!r} becomes {tokens[:8]} instead of {expected[:8]}"
            )
        begins = reference.tokenizer.bos_token_id
        if model.add_bos and tokens[:2].count(begins) != 1:
            found.problems.append(
                f"the chat begins with {tokens[:2].count(begins)} BOS tokens instead of one"
            )


def _same_ends(reference: Reference, model: Model, _: Sequence[str], found: Parity) -> None:
    if missing := reference.ends - model.ends:
        found.problems.append(
            f"token {min(missing)} ends an answer in the base and not in the GGUF, whose end is {model.eos}"
        )
    if model.eos != reference.tokenizer.eos_token_id:
        found.problems.append(
            f"the end token is {model.eos} in the GGUF and {reference.tokenizer.eos_token_id} in the base"
        )


def _same_logits(
    reference: Reference,
    model: Model,
    texts: Sequence[str],
    n_tokens: int,
    found: Parity,
    on_progress: Report,
) -> None:
    difference = Difference()
    for tokens in windows(reference.tokenize, texts, n_tokens):
        theirs = reference.logits(tokens)
        difference.add(tokens, theirs, model.logits(tokens)[:, : theirs.shape[1]])
        on_progress(min(difference.n_positions, n_tokens), n_tokens)
    found.n_positions, found.top1, found.mean_kl = difference.n_positions, difference.top1, difference.mean_kl
    if not difference.top1 >= MIN_TOP1:  # NaN fails too
        found.problems.append(
            f"the most probable token agrees at {difference.top1:.1%} of {found.n_positions} positions, "
            f"not {MIN_TOP1:.0%}"
        )
    if not difference.mean_kl <= MAX_MEAN_KL:
        found.problems.append(f"the mean KL is {difference.mean_kl:.2g} nats, more than {MAX_MEAN_KL:g}")


def windows(
    tokenize: Callable[[str], list[int]], texts: Sequence[str], n_tokens: int, size: int = 256
) -> list[list[int]]:
    """Token lists of at most `size`, together about `n_tokens`, from the beginnings of the texts."""
    found: list[list[int]] = []
    left = n_tokens
    for text in texts:
        tokens = tokenize(text)[: min(size, N_CTX)]
        if len(tokens) > 1:
            found.append(tokens)
            left -= len(tokens)
        if left <= 0:
            break
    return found


def _same_greedy(reference: Reference, model: Model, texts: Sequence[str], found: Parity) -> None:
    # The GGUF writes token by token; the reference reads that once, and must have chosen the same.
    for text in texts[:4]:
        tokens = reference.tokenize(text)[:32]
        begin = len(tokens)
        expected = model.logits(tokens)[-1]
        for _ in range(N_GREEDY):
            tokens.append(int(expected.argmax()))
            expected = model.step(tokens[-1], len(tokens) - 1)
        found.n_greedy += 1
        for ours, theirs in zip(tokens[begin:], reference.logits(tokens)[begin - 1 :]):
            if int(theirs.argmax()) != ours:
                if theirs.max() - theirs[ours] > NEAR_TIE:
                    found.problems.append(f"greedy text parts after {text[:40]!r} with no near tie")
                break
        else:
            found.n_greedy_equal += 1
