"""How a model that thinks before it answers writes its thoughts, and how its family wants to be sampled.

The form is that of DeepSeek-R1 and Qwen3: `<think>`, thoughts, `</think>`, answer. Knows no tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

OPEN, CLOSE = "<think>", "</think>"

# What ends thoughts in the model's own form, and what stands between their mark and the answer.
CLOSING, GAP = f"\n{CLOSE}\n\n", "\n\n"

# What R1's chat form calls the assistant; its bars are not those of ASCII.
_R1 = "<｜Assistant｜>"


@dataclass(frozen=True)
class Family:
    """What a chat template tells of the model.

    Attributes:
        thinks: it writes thoughts before its answer.
        takes_system: instructions may stand in a system message. R1's authors advise against it.
        sampling: names of `Sampling` and what the authors of the family recommend; empty where nobody does.
    """

    thinks: bool = False
    takes_system: bool = True
    sampling: Mapping[str, float] = field(default_factory=dict)


def family(chat_template: str | None) -> Family:
    """The family that a model's chat template belongs to.

    Values are those of the model cards of DeepSeek-R1 (2025-01) and Qwen3 (2025-05).
    """
    template = chat_template or ""
    if CLOSE not in template:
        return Family()
    if _R1 in template:
        recommended = {"temperature": 0.6, "top_p": 0.95, "top_k": 0, "min_p": 0.0}
        return Family(thinks=True, takes_system=False, sampling=recommended)
    return Family(thinks=True, sampling={"temperature": 0.6, "top_p": 0.95, "top_k": 20, "min_p": 0.0})


def opened(prompt: str) -> str:
    """The prompt with thoughts begun, whether or not the template has done so."""
    end = prompt.rstrip()
    return prompt if end.endswith((OPEN, CLOSE)) else f"{prompt}{OPEN}\n"


def is_open(prompt: str) -> bool:
    """Whether thoughts come next: a template can close them at once, and then the answer does."""
    return prompt.rstrip().endswith(OPEN)


def without_thoughts(content: str) -> str:
    """What of an earlier answer stays in a conversation."""
    return content.rpartition(CLOSE)[2].lstrip("\n") if CLOSE in content else content
