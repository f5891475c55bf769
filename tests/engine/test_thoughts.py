"""Thoughts end, and an answer follows, whatever the model does."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge_runtime.engine.engine import Engine, EngineConfig
from edge_runtime.engine.repetition import MIN_TOKENS
from edge_runtime.engine.request import Delta, Done, Event, Grammar, Request, Sampling, Thinking
from edge_runtime.engine.thoughts import limit
from edge_runtime.errors import ContextLengthExceeded

GREEDY = Sampling(temperature=0)
CTX = 512
MARK = "</think>"
MANY_TIMES = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def engine(tiny: Path) -> Iterator[Engine]:
    with Engine.open(EngineConfig(tiny, n_slots=4, n_ctx=CTX, n_threads=2, prefix_tokens=0)) as engine:
        yield engine


def cut(engine: Engine, text: str) -> list[int]:
    return engine.model.tokenize(text, special=True, add_bos=False)


def thinking(engine: Engine, max_tokens: int | None = None, answer_tokens: int = 64) -> Thinking:
    close, gap = tuple(cut(engine, f"\n{MARK}\n\n")), tuple(cut(engine, "\n\n"))
    return Thinking(MARK, close, gap, max_tokens, answer_tokens)


def ask(engine: Engine, text: str = "What is a fever?<think>\n", **fields: object) -> Request:
    given = {"sampling": GREEDY, "max_tokens": 80, "thinking": thinking(engine, 20)} | fields
    return Request("r", [engine.model.bos, *cut(engine, text)], **given)  # type: ignore[arg-type]


class Scripted:
    """A sampler that takes what a test has written."""

    def __init__(self, tokens: list[int]) -> None:
        self._tokens = iter(tokens)

    def sample(self, row: object) -> int:
        return next(self._tokens)

    def close(self) -> None:
        pass


def run(engine: Engine, request: Request) -> tuple[str, str, Done]:
    """Thoughts, answer and end."""
    *deltas, done = engine.generate(request)
    assert isinstance(done, Done), done
    assert not any(isinstance(d, Delta) and d.text and d.thoughts for d in deltas)
    return thoughts_of(deltas), "".join(d.text for d in deltas if isinstance(d, Delta)), done


def thoughts_of(events: list[Event]) -> str:
    return "".join(d.thoughts for d in events if isinstance(d, Delta))


def scripted(engine: Engine, tokens: list[int], **fields: object) -> tuple[str, str, Done]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine.model, "sampler", lambda *_: Scripted(tokens))
        return run(engine, ask(engine, **fields))


def test_the_mark_ends_the_thoughts(engine: Engine) -> None:
    tokens = [*cut(engine, f"Warm.{MARK}\n\nRest and drink."), engine.model.eos]
    thoughts, answer, done = scripted(engine, tokens)
    assert (thoughts, answer) == ("Warm.", "Rest and drink.")
    assert (done.thoughts_end, done.finish_reason, done.loop) == ("closed", "stop", False)
    assert done.n_thoughts == len(cut(engine, f"Warm.{MARK}"))


def test_a_mark_of_several_tokens_ends_them_too(engine: Engine) -> None:
    letters = [cut(engine, c)[0] for c in f"a<b{MARK}c"]
    assert scripted(engine, [*letters, engine.model.eos])[:2] == ("a<b", "c")


@MANY_TIMES
@given(st.text("ab <>/think\n.", max_size=18), st.text("xyz <>/\n.", min_size=1, max_size=20))
def test_no_character_of_either_is_lost(engine: Engine, thoughts: str, answer: str) -> None:
    text = f"{thoughts}{MARK}{answer}."
    thoughts, _, answer = text.partition(MARK)  # the first mark counts
    tokens = [token for c in text for token in cut(engine, c)]
    got = scripted(engine, [*tokens, engine.model.eos], thinking=thinking(engine, 100))
    assert got[:2] == (thoughts, answer.lstrip())


def test_too_many_thoughts_are_closed_and_answered(engine: Engine) -> None:
    request = ask(engine)
    thoughts, answer, done = run(engine, request)
    assert (done.n_thoughts, done.thoughts_end) == (20, "budget")
    assert thoughts and answer
    assert done.timing.n_generated == 80


def test_closed_thoughts_read_as_if_the_model_had_closed_them(engine: Engine) -> None:
    *deltas, _ = engine.generate(ask(engine, thinking=thinking(engine, 20), n_top_logprobs=0))
    own = [t.token for d in deltas if isinstance(d, Delta) for t in d.logprobs]
    # The same thoughts, as the prompt of a request without any.
    with pytest.MonkeyPatch.context() as patch:
        taken: list[int] = []
        sample = engine.model.sampler(GREEDY, []).__class__.sample
        patch.setattr(
            "edge_runtime.engine.llama.Sampler.sample",
            lambda sampler, row: taken.append(sample(sampler, row)) or taken[-1],
        )
        run(engine, ask(engine))
    close = list(thinking(engine).close)
    cold = ask(engine, thinking=None, n_top_logprobs=0, max_tokens=60)
    cold = Request("c", cold.tokens + taken[:20] + close, 60, GREEDY, n_top_logprobs=0)
    *deltas, _ = engine.generate(cold)
    assert own == [t.token for d in deltas if isinstance(d, Delta) for t in d.logprobs]


def test_an_end_token_in_thoughts_is_not_the_end(engine: Engine) -> None:
    end = engine.model.eos
    tokens = [*cut(engine, "Hm"), end, *cut(engine, "Drink."), end]
    thoughts, answer, done = scripted(engine, tokens)
    assert (thoughts, answer, done.thoughts_end) == ("Hm", "Drink.", "end")


def test_thoughts_in_a_circle_are_cut_and_answered(engine: Engine) -> None:
    before, circle = cut(engine, "Well: "), cut(engine, "wait, no; ")
    n = len(before) + max(MIN_TOKENS, 4 * len(circle)) - 1  # the space before the circle is part of it
    tokens = [*(before + circle * 20)[:n], *cut(engine, "Drink."), engine.model.eos]
    many = {"thinking": thinking(engine, 400), "max_tokens": 480}
    thoughts, answer, done = scripted(engine, tokens, cut_loops=True, **many)
    assert (answer, done.thoughts_end, done.n_thoughts) == ("Drink.", "loop", n)
    assert thoughts.startswith("Well: wait, no; wait, no; ")


def test_an_answer_in_a_circle_is_cut(engine: Engine) -> None:
    bias = ((cut(engine, "a")[0], 100.0),)
    request = ask(engine, sampling=Sampling(temperature=0, logit_bias=bias), thinking=None, max_tokens=400)
    uncut = run(engine, request)
    assert (uncut[2].timing.n_generated, uncut[2].loop) == (400, False)
    _, answer, done = run(engine, Request("r", request.tokens, 400, request.sampling, cut_loops=True))
    assert (answer, done.finish_reason, done.loop) == ("a" * MIN_TOKENS, "length", True)


@MANY_TIMES
@given(
    st.integers(1, 200), st.none() | st.integers(0, 300), st.none() | st.integers(1, 300), st.integers(1, 300)
)
def test_an_answer_always_has_room(
    engine: Engine, n_prompt: int, budget: int | None, max_tokens: int | None, wanted: int
) -> None:
    request = Request("r", [5] * n_prompt, max_tokens, thinking=thinking(engine, budget, wanted))
    assert request.thinking
    room = CTX - n_prompt - len(request.thinking.close)
    room = room if max_tokens is None else min(room, max_tokens)
    most = limit(request, CTX)
    assert room - most >= min(wanted, (room + 1) // 2) >= 1
    assert 0 <= most <= (room if budget is None else budget)


@pytest.mark.parametrize("max_tokens", [1, 2, 3, 7])
def test_the_limit_of_tokens_holds_for_both(engine: Engine, max_tokens: int) -> None:
    _, answer, done = run(engine, ask(engine, max_tokens=max_tokens, thinking=thinking(engine)))
    assert answer
    assert done.timing.n_generated <= max_tokens


def test_a_prompt_that_leaves_no_room_is_refused(engine: Engine) -> None:
    n_close = len(thinking(engine).close)
    engine.submit(Request("fits", [5] * (CTX - n_close - 1), thinking=thinking(engine)))
    engine.cancel("fits")
    engine.step()
    with pytest.raises(ContextLengthExceeded, match=str(CTX - n_close - 1)):
        engine.submit(Request("r", [5] * (CTX - n_close), thinking=thinking(engine)))


def test_stop_strings_are_for_the_answer(engine: Engine) -> None:
    tokens = cut(engine, f"Stop here.{MARK}Drink. Stop here.")
    assert scripted(engine, tokens, stop=("Stop",))[:2] == ("Stop here.", "Drink. ")


def test_the_first_word_of_an_answer_is_not_its_end(engine: Engine) -> None:
    bias = ((engine.model.eos, 50.0),)
    _, answer, done = run(engine, ask(engine, sampling=Sampling(temperature=0, logit_bias=bias)))
    assert answer
    assert done.thoughts_end == "end"


SCHEMA = {
    "type": "object",
    "properties": {"urgent": {"type": "boolean"}, "grade": {"enum": ["I", "II", "III"]}},
    "required": ["urgent", "grade"],
    "additionalProperties": False,
}


def test_schemas_bind_answers_after_thoughts_over_200_prompts(engine: Engine) -> None:
    ends = []
    schema = Grammar("json_schema", json.dumps(SCHEMA))
    requests = [
        Request(
            str(i), [engine.model.bos, *cut(engine, f"Question {i}: is it urgent?<think>\n")], 120,
            Sampling(seed=i), grammar=schema, thinking=thinking(engine, 40),
        )
        for i in range(220)  # some of which close their thoughts before the first
    ]  # fmt: skip
    for first in range(0, 220, 55):
        by_id: dict[str, list[Event]] = {}
        for event in engine.generate(*requests[first : first + 55]):
            by_id.setdefault(event.id, []).append(event)
        for *deltas, done in by_id.values():
            assert isinstance(done, Done)
            answer = json.loads("".join(d.text for d in deltas if isinstance(d, Delta)))
            assert set(answer) == {"urgent", "grade"}
            assert done.n_thoughts > 0
            ends.append((done.thoughts_end, bool(thoughts_of(deltas))))
    assert {end for end, _ in ends} >= {"closed", "budget"}
    assert sum(there for _, there in ends) >= 200


# -- the next turn


def idle(engine: Engine) -> None:
    while engine.busy:
        engine.step()


def test_a_rewritten_slot_answers_as_a_cold_one(engine: Engine) -> None:
    first = ask(engine, conversation="c")
    run(engine, first)
    history = [engine.model.bos, *cut(engine, "What is a fever? A warm body, as it were, above 38 C.")]
    following = history + cut(engine, " And in a child?<think>\n")
    cold = list(engine.generate(Request("cold", following, 30, GREEDY, n_top_logprobs=0)))
    run(engine, first)
    engine.rewrite("c", history)
    idle(engine)
    *warm, done = engine.generate(Request("warm", following, 30, GREEDY, n_top_logprobs=0, conversation="c"))
    assert isinstance(done, Done)
    assert done.timing.n_cached >= len(history)

    def tokens(events: list[Event]) -> list[int]:
        return [t.token for e in events if isinstance(e, Delta) for t in e.logprobs]

    assert tokens(warm) == tokens(cold)


def test_work_goes_before_rewriting(engine: Engine) -> None:
    run(engine, ask(engine, conversation="c"))
    engine.rewrite("c", [engine.model.bos, *cut(engine, "x" * 400)])
    engine.step()
    before = {s.n_tokens for s in engine.snapshot().slots}
    engine.submit(Request("now", cut(engine, "Chest pain"), 5, GREEDY, ignore_eos=True))
    while not any(event.id == "now" for event in engine.step()):
        pass
    assert engine.busy  # what is left waits
    idle(engine)
    assert 401 in {s.n_tokens for s in engine.snapshot().slots}
    assert before


def test_a_forgotten_conversation_is_not_rewritten(engine: Engine) -> None:
    run(engine, ask(engine, conversation="c"))
    engine.rewrite("c", [engine.model.bos, *cut(engine, "y" * 300)])
    engine.forget("c")
    idle(engine)
    assert 301 not in {s.n_tokens for s in engine.snapshot().slots}
