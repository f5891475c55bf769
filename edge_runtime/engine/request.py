"""What goes into the engine and what comes out: plain data, no behaviour, no llama_cpp.

A caller submits a `Request` and receives any number of `Delta`, then exactly one `Done` or `Failed`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from ..errors import MedgeError

FinishReason = Literal["stop", "length"]

# By their mark; or the engine closed them: too many, going in circles, or an end token in the middle.
ThoughtsEnd = Literal["closed", "budget", "loop", "end"]


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen. The defaults are what a request gets that names nothing.

    Attributes:
        temperature: 0 is greedy.
        top_k: keep the k most probable tokens; 0 keeps all.
        top_p: keep the smallest set of tokens with this probability mass; 1 keeps all.
        min_p: drop tokens less probable than this share of the most probable one; 0 drops none.
        repeat_penalty: divide the logits of recent tokens by this; 1 does nothing.
        frequency_penalty: subtract this for each earlier occurrence.
        presence_penalty: subtract this once if there was an earlier occurrence.
        penalty_window: how many of the latest tokens the three penalties look at.
        seed: the same seed, prompt and batch give the same text; None draws one.
        logit_bias: added to the logit of a token id before anything else.
    """

    temperature: float = 0.6
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    repeat_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    penalty_window: int = 256
    seed: int | None = None
    logit_bias: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Grammar:
    """What an answer must be a sentence of: GBNF with a rule `root`, or the JSON of a JSON schema."""

    kind: Literal["gbnf", "json_schema"]
    text: str


@dataclass(frozen=True)
class Thinking:
    """Thoughts that a prompt has opened: they come before the answer, and are not part of it.

    Attributes:
        mark: what the model writes to end them, such as "</think>".
        close: tokens that end them in its place, in the model's own form: the mark and what is around it.
        gap: tokens between the mark and an answer that is bound to a grammar.
        max_tokens: of thoughts; None leaves them all that the answer does not need.
        answer_tokens: of the room that is kept for the answer, where there is so much.
    """

    mark: str
    close: tuple[int, ...]
    gap: tuple[int, ...] = ()
    max_tokens: int | None = None
    answer_tokens: int = 512


@dataclass(frozen=True)
class Request:
    """One prompt and how to answer it.

    Attributes:
        id: unique among the requests that are alive.
        tokens: the prompt.
        max_tokens: at most this many new tokens, thoughts and answer; None: up to the end of the context.
        stop: the answer ends before the first of these strings.
        n_top_logprobs: None for no log-probabilities, otherwise how many alternatives beside each token.
        echo: the first `Delta` begins with the prompt: its text, and with `n_top_logprobs` also the
            log-probability of each of its tokens.
        prompt_text: what `echo` shows.
        score_from: the first token of the prompt whose log-probability is wanted. What is before it may have
            been read by another request; at 0, nothing may.
        grammar: the answer is a sentence of it. It does not bind the thoughts.
        thinking: the prompt ends in thoughts that have begun; None if it does not.
        cut_loops: end thoughts that go in circles, and an answer that does unless a grammar binds it.
        ignore_eos: go on after an end token (for benchmarks).
        deadline_s: give up this long after submission.
        conversation: requests with the same name share one history, which `Engine.forget` clears.
        n_shared: only so many tokens at the beginning may be shared with requests of other conversations,
            and are kept for them; None: whatever two prompts have in common.
    """

    id: str
    tokens: list[int]
    max_tokens: int | None = None
    sampling: Sampling = field(default_factory=Sampling)
    stop: tuple[str, ...] = ()
    n_top_logprobs: int | None = None
    echo: bool = False
    prompt_text: str = ""
    score_from: int = 0
    grammar: Grammar | None = None
    thinking: Thinking | None = None
    cut_loops: bool = False
    ignore_eos: bool = False
    deadline_s: float | None = None
    conversation: str | None = None
    n_shared: int | None = None

    @property
    def scores_prompt(self) -> bool:
        return self.echo and self.n_top_logprobs is not None


@dataclass(frozen=True)
class TokenLogprob:
    """A token with its natural-log probability under the model, before temperature and truncation.

    `logprob` is None for the first token of a prompt, which nothing predicts. `top` is sorted, best first.
    """

    token: int
    piece: bytes
    logprob: float | None
    top: tuple[tuple[int, bytes, float], ...] = ()


@dataclass(frozen=True)
class Timing:
    """What one request cost. Seconds are counted from submission.

    Attributes:
        queued_s: until it had a slot.
        ttft_s: until its first token; None if it never had one.
        token_times_s: one a generated token.
        n_prompt: tokens of the prompt, of which
        n_cached: were copied from a sequence that had them already.
        n_generated: new tokens, the end token not counted.
        peak_memory_bytes: the most the engine's process has held so far; None where the system does not tell.
    """

    queued_s: float
    ttft_s: float | None
    total_s: float
    token_times_s: tuple[float, ...]
    n_prompt: int
    n_cached: int
    n_generated: int
    peak_memory_bytes: int | None

    @property
    def tokens_per_s(self) -> float | None:
        """Decode rate: the tokens after the first, over the time they took."""
        times = self.token_times_s
        if len(times) < 2 or times[-1] <= times[0]:
            return None
        return (len(times) - 1) / (times[-1] - times[0])


@dataclass(frozen=True)
class Delta:
    """New text of one request. `text` may be empty while a character or a stop string is incomplete.

    `thoughts` come before all text; their tokens have no `logprobs`.
    """

    id: str
    text: str
    n_tokens: int = 0
    logprobs: tuple[TokenLogprob, ...] = ()
    prompt_logprobs: tuple[TokenLogprob, ...] = ()
    thoughts: str = ""


@dataclass(frozen=True)
class Done:
    """The end of an answer.

    Attributes:
        n_thoughts: tokens of `timing.n_generated` that were thoughts.
        thoughts_end: why they ended; None if there were none.
        loop: the answer went in circles and was cut; then `finish_reason` is "length".
    """

    id: str
    finish_reason: FinishReason
    timing: Timing
    n_thoughts: int = 0
    thoughts_end: ThoughtsEnd | None = None
    loop: bool = False


@dataclass(frozen=True)
class Embedded(Done):
    """The end of a text that was to become a vector.

    Attributes:
        vector: its numbers as float32, little-endian; of length 1.
    """

    vector: bytes = field(kw_only=True)


@dataclass(frozen=True)
class Failed:
    id: str
    error: MedgeError


Event: TypeAlias = Delta | Done | Failed
