"""Who gets how much of the next step: pure policy, with no clock of its own and no model.

A step decodes one batch. Answering slots come first, one token each. Prompts get what fits into the time
that the others can wait, learnt from how long earlier steps took.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

# A prompt always advances by this much, however slow the machine is: else a limit that is shorter than
# the cost of an empty step would stop it for ever.
MIN_PROMPT_TOKENS = 16

# From this many tokens of one prompt on, flash attention on CPUs works in tiles, and a token costs half as
# much (measured with AVX2: 48 tokens 198 ms, 64 tokens 225 ms). So a piece is not made smaller than that ...
TILE_TOKENS = 64
# ... as long as it takes no more than this many times the limit.
TILE_STRETCH = 4

# Every so many steps the prompt that has waited longest goes first; in the others the shortest does. A
# step reads one prompt as far as it can: pieces of several in one batch cost a pass over the weights each.
OLDEST_EVERY = 3

# While no answer is interrupted, a step may take this many times the limit: fewer, larger steps are faster,
# and whoever arrives in the middle of one waits for its end.
UNINTERRUPTED = 4

# Weight of the newest step in the learnt costs.
LEARNING_RATE = 0.2


@dataclass(frozen=True)
class Work:
    """What one slot could do in the next step.

    Attributes:
        slot: its index.
        n_pending: tokens that are known but not decoded, at least 1.
        answering: True once it generates; then `n_pending` is 1.
        arrival: smaller is earlier.
        max_tokens: more than this may not be decoded for this slot in one step.
    """

    slot: int
    n_pending: int
    answering: bool
    arrival: int
    max_tokens: int = 1 << 30


class StepCost:
    """How long a step takes: a cost for the answering slots and a cost for each prompt token, both learnt."""

    def __init__(self) -> None:
        self._answering_s: dict[int, float] = {}
        self.prompt_token_s = 0.0

    def observe(self, n_answering: int, n_prompt: int, seconds: float) -> None:
        """Learn from one step that decoded `n_answering` single tokens and `n_prompt` prompt tokens."""
        if n_prompt == 0:
            known = self._answering_s.get(n_answering, seconds)
            self._answering_s[n_answering] = known + LEARNING_RATE * (seconds - known)
        elif n_prompt >= MIN_PROMPT_TOKENS // 2:
            each = max(0.0, seconds - self.answering_s(n_answering)) / n_prompt
            known = self.prompt_token_s or each
            self.prompt_token_s = known + LEARNING_RATE * (each - known)

    def answering_s(self, n: int) -> float:
        """Expected seconds of a step with `n` answering slots and no prompt."""
        if n == 0 or not self._answering_s:
            return 0.0
        return self._answering_s[min(self._answering_s, key=lambda known: abs(known - n))]

    def prompt_tokens_in(self, seconds: float) -> int | None:
        """How many prompt tokens are read in that time; None while nothing is known."""
        return int(seconds / self.prompt_token_s) if self.prompt_token_s else None


class Scheduler:
    """Divides each step among the slots.

    Args:
        n_batch: tokens in one step at most.
        step_limit_s: time for prompts in a step while others wait, beside that of the answers.
    """

    def __init__(self, n_batch: int, step_limit_s: float) -> None:
        self.n_batch = n_batch
        self.step_limit_s = step_limit_s
        self.cost = StepCost()
        self._turn = 0

    def plan(self, work: Sequence[Work]) -> dict[int, int]:
        """Tokens to decode for each slot in the next step, at most one entry of `work` a slot.

        Slots that are left out wait.
        """
        plan = {w.slot: 1 for w in work if w.answering}
        prompts = sorted((w for w in work if not w.answering), key=lambda w: (w.n_pending, w.arrival))
        if not prompts:
            return plan
        self._turn += 1
        if self._turn % OLDEST_EVERY == 0:
            prompts.sort(key=lambda w: w.arrival)
        left = self._prompt_budget(len(plan))
        for w in prompts:
            n = min(left, w.n_pending, w.max_tokens)
            if n > 0:
                plan[w.slot] = n
                left -= n
            if left < MIN_PROMPT_TOKENS:
                break
        return plan

    def observe(self, n_answering: int, n_prompt: int, seconds: float) -> None:
        """Learn from a step: see `StepCost.observe`."""
        self.cost.observe(n_answering, n_prompt, seconds)

    def _prompt_budget(self, n_answering: int) -> int:
        room = self.n_batch - n_answering
        fitting = self.cost.prompt_tokens_in(self.step_limit_s * (1 if n_answering else UNINTERRUPTED))
        tile = self.cost.prompt_token_s * TILE_TOKENS <= self.step_limit_s * TILE_STRETCH
        least = TILE_TOKENS if tile else MIN_PROMPT_TOKENS
        return max(1, min(room, max(fitting or 0, least)))
