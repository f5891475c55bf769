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

# Flash attention on CPUs works in tiles of so many tokens of one prompt, and a token costs a half to a
# quarter as much there as in a smaller piece (AVX2, at position 1,000: 16 tokens 140 ms). So a piece is some
# whole tiles, at least one ...
TILE_TOKENS = 64
# ... as long as that takes no more than this many times the limit.
TILE_STRETCH = 4

# Every so many steps the prompt that has waited longest goes first; in the others the shortest does. A
# step reads one prompt as far as it can: pieces of several in one batch cost a pass over the weights each.
OLDEST_EVERY = 3

# While no answer is interrupted, a step may take this many times the limit: fewer, larger steps are faster,
# and whoever arrives in the middle of one waits for its end.
UNINTERRUPTED = 4

# Weight of the newest step in the learnt costs.
LEARNING_RATE = 0.2

# What remains of a bad memory of large pieces after each small one.
FORGETTING = 0.99


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
    """How long steps take, learnt: with only answers, and for each prompt token in small and large pieces."""

    def __init__(self) -> None:
        self._answering_s: dict[int, float] = {}
        self._small_s = 0.0
        self._tile_s = 0.0

    def observe(self, n_answering: int, n_prompt: int, seconds: float) -> None:
        """Learn from one step that decoded `n_answering` single tokens and `n_prompt` prompt tokens."""
        if n_prompt == 0:
            self._answering_s[n_answering] = _mean(self._answering_s.get(n_answering, 0.0), seconds)
            return
        each = max(1e-9, seconds - self.answering_s(n_answering)) / n_prompt
        if n_prompt >= TILE_TOKENS:
            self._tile_s = _mean(self._tile_s, each)
        elif n_prompt >= MIN_PROMPT_TOKENS // 2:
            self._small_s = _mean(self._small_s, each)
            self._tile_s *= FORGETTING  # so that large pieces are tried again after a bad time

    def answering_s(self, n: int) -> float:
        """Expected seconds of a step with `n` answering slots and no prompt."""
        if n == 0 or not self._answering_s:
            return 0.0
        return self._answering_s[min(self._answering_s, key=lambda known: abs(known - n))]

    def prompt_tokens_in(self, seconds: float) -> int:
        """How many prompt tokens to read in that time; never fewer than MIN_PROMPT_TOKENS."""
        if self._tile_s * TILE_TOKENS <= seconds * TILE_STRETCH:
            return max(TILE_TOKENS, int(seconds / self._tile_s) if self._tile_s else 0)
        # A small piece costs more a token, never less.
        return max(MIN_PROMPT_TOKENS, min(TILE_TOKENS, int(seconds / (self._small_s or self._tile_s))))


def _mean(known: float, new: float) -> float:
    return known + LEARNING_RATE * (new - known) if known else new


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
        # The first token of a prompt is computed with the answers, so it is not in its tiles.
        beside = 1 if plan else 0
        for w in prompts:
            n = min(left, w.n_pending, w.max_tokens)
            if TILE_TOKENS < n < w.n_pending:
                n -= (n - beside) % TILE_TOKENS
            if n > 0:
                plan[w.slot] = n
                left -= n
            if left < MIN_PROMPT_TOKENS:
                break
        return plan

    def observe(self, n_answering: int, n_prompt: int, seconds: float) -> None:
        """Learn from a step: see `StepCost.observe`."""
        self.cost.observe(n_answering, n_prompt, seconds)

    def aside_tokens(self) -> int:
        """Prompt tokens to read at once when nobody waits for them, but somebody might come."""
        return min(self.n_batch, self.cost.prompt_tokens_in(self.step_limit_s))

    def _prompt_budget(self, n_answering: int) -> int:
        limit = self.step_limit_s * (1 if n_answering else UNINTERRUPTED)
        beside = 1 if n_answering else 0
        return max(1, min(self.n_batch - n_answering, self.cost.prompt_tokens_in(limit) + beside))
