"""The engine on a tiny F32 model, where a batch gives the same tokens as a sequence alone."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge_runtime.engine.engine import Engine, EngineConfig
from edge_runtime.engine.request import Delta, Done, Event, Failed, Grammar, Request, Sampling
from edge_runtime.errors import (
    Cancelled,
    ContextLengthExceeded,
    DeadlineExceeded,
    DecodeFailed,
    EngineClosed,
    InvalidGrammar,
    InvalidModel,
    InvalidRequest,
    QueueFull,
)

GREEDY = Sampling(temperature=0)
CTX = 256


def open_engine(path: Path, **settings: object) -> Engine:
    given: dict[str, object] = {"n_slots": 4, "n_ctx": CTX, "n_threads": 2, "prefix_tokens": 256, **settings}
    return Engine.open(EngineConfig(path, **given))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def engine(tiny: Path) -> Iterator[Engine]:
    with open_engine(tiny) as engine:
        yield engine


@pytest.fixture(autouse=True)
def _idle(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "engine" in request.fixturenames:
        assert not request.getfixturevalue("engine").busy, "a test left a request behind"


def prompt(engine: Engine, text: str) -> list[int]:
    return engine.model.tokenize(text, special=False, add_bos=True)


def by_request(events: list[Event]) -> dict[str, list[Event]]:
    grouped: dict[str, list[Event]] = {}
    for event in events:
        grouped.setdefault(event.id, []).append(event)
    return grouped


def text_of(events: list[Event]) -> str:
    return "".join(e.text for e in events if isinstance(e, Delta))


def tokens_of(events: list[Event]) -> list[int]:
    return [t.token for e in events if isinstance(e, Delta) for t in e.logprobs]


def greedy(id: str, tokens: list[int], n: int = 24) -> Request:
    return Request(id, tokens, max_tokens=n, sampling=GREEDY, n_top_logprobs=0, ignore_eos=True)


PROMPTS = [
    "Fever in an infant",
    "Fever in an infant of two months, with a stiff neck and a rash that does not fade under glass",
    "µg/kg: 发烧 and 🤒",
    "Chest pain",
    "A",
    "Fever in an infant of two months, with a stiff neck and a rash that does not fade when pressed",
    "x" * 150,
]


def empty(engine: Engine) -> None:
    """As if it had just been opened."""
    for slot in engine._slots:
        engine._empty(slot)
    engine._prefixes.clear()


def alone(engine: Engine, text: str, n: int = 24) -> list[int]:
    """What a prompt gives with nobody else there and nothing kept."""
    empty(engine)
    return tokens_of(list(engine.generate(greedy("alone", prompt(engine, text), n))))


@pytest.mark.parametrize(
    "setting", [{}, {"flash_attention": False}, {"kv": "q8_0"}, {"prefix_tokens": 0}], ids=str
)
def test_batched_greedy_equals_alone(tiny: Path, setting: dict[str, object]) -> None:
    """Requests that join and leave, in fewer slots than requests, with shared beginnings copied."""
    with open_engine(tiny, n_slots=3, **setting) as engine:
        assert engine.model.flash_attention == (setting != {"flash_attention": False})
        expected = [alone(engine, text) for text in PROMPTS]
        requests = [greedy(str(i), prompt(engine, text)) for i, text in enumerate(PROMPTS)]
        got = by_request(list(engine.generate(*requests)))
        for i, tokens in enumerate(expected):
            assert tokens_of(got[str(i)]) == tokens, PROMPTS[i]
        # Again, now that everything is known: only the last token of each prompt is read.
        again = by_request(list(engine.generate(*requests)))
        for i, tokens in enumerate(expected):
            assert tokens_of(again[str(i)]) == tokens, PROMPTS[i]


def test_shared_beginning_is_read_once(tiny: Path) -> None:
    with open_engine(tiny, n_slots=4) as engine:
        common = "You are a careful assistant. " * 5
        texts = [common + q for q in ("What is asthma?", "Is it contagious?", "How is it treated?", "Why?")]
        expected = [alone(engine, t) for t in texts]
        empty(engine)
        before = engine.snapshot().n_prompt
        requests = [greedy(str(i), prompt(engine, t)) for i, t in enumerate(texts)]
        got = by_request(list(engine.generate(*requests)))
        assert [tokens_of(got[str(i)]) for i in range(4)] == expected
        read = engine.snapshot().n_prompt - before
        total = sum(len(r.tokens) for r in requests)
        n_common = len(prompt(engine, common))
        assert read <= total - 3 * (n_common - 1)
        dones = [e for events in got.values() for e in events if isinstance(e, Done)]
        assert sorted(d.timing.n_cached >= n_common - 1 for d in dones) == [False, True, True, True]
        # The beginning stays after unrelated requests have taken all slots.
        list(engine.generate(*(greedy(f"other{i}", prompt(engine, f"{i}" * 100)) for i in range(8))))
        late = [*engine.generate(greedy("late", prompt(engine, common + "When?")))][-1]
        assert isinstance(late, Done) and late.timing.n_cached >= n_common - 1


def test_conversation_reads_only_what_is_new(engine: Engine) -> None:
    turn = prompt(engine, "A question of some length about a cough that does not go away.")
    first = [*engine.generate(greedy("1", turn))]
    history = turn + tokens_of(first) + prompt(engine, "And at night?")[1:]
    second = [*engine.generate(greedy("2", history))][-1]
    assert isinstance(second, Done)
    assert second.timing.n_cached == len(turn) + 23  # all but the last token, which was never decoded


def test_forget_clears_the_conversation(engine: Engine) -> None:
    """From its slots, and from the beginnings that its own requests shared with each other."""
    tokens = prompt(engine, "A private matter that nobody else should find in a slot afterwards.")
    asked = [Request(name, tokens, max_tokens=5, conversation="mine") for name in "12"]
    list(engine.generate(*asked))
    assert engine.snapshot().n_prefix_tokens > 0
    engine.forget("mine")
    engine.step()
    assert all(slot.conversation != "mine" for slot in engine._slots)
    assert engine.snapshot().n_prefix_tokens == 0
    done = [*engine.generate(Request("3", tokens, max_tokens=5, conversation="mine"))][-1]
    assert isinstance(done, Done) and done.timing.n_cached == 0


def test_what_requests_share_is_given_back(engine: Engine) -> None:
    tokens = prompt(engine, "A system prompt of some length that two requests have in common.")
    list(engine.generate(*(Request(name, tokens, max_tokens=5) for name in "12")))
    assert engine.snapshot().n_prefix_tokens > 0
    engine.give_back()
    engine.step()
    assert engine.snapshot().n_prefix_tokens == 0


def test_forget_leaves_what_others_sent_too(engine: Engine) -> None:
    tokens = prompt(engine, "A system prompt that two conversations have in common, and no more.")
    list(engine.generate(*(Request(name, tokens, max_tokens=5, conversation=name) for name in "12")))
    engine.forget("1")
    engine.step()
    assert engine.snapshot().n_prefix_tokens > 0
    engine.forget("2")
    engine.step()
    assert engine.snapshot().n_prefix_tokens == 0


requests_drawn = st.lists(
    st.tuples(st.sampled_from(PROMPTS), st.integers(1, 12), st.sampled_from([None, 100.0, 0.0])),
    min_size=1,
    max_size=10,
)
cancels_drawn = st.lists(st.tuples(st.integers(0, 15), st.integers(0, 10)), max_size=8)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(asked=requests_drawn, cancels=cancels_drawn)
def test_each_request_ends_exactly_once(
    engine: Engine, asked: list[tuple[str, int, float | None]], cancels: list[tuple[int, int]]
) -> None:
    """Whatever is cancelled, and whenever."""
    requests = [
        Request(str(i), prompt(engine, text), max_tokens=n, sampling=Sampling(seed=i), deadline_s=deadline)
        for i, (text, n, deadline) in enumerate(asked)
    ]
    for request in requests:
        engine.submit(request)
    events: list[Event] = []
    steps = 0
    while engine.busy:
        for when, which in cancels:
            if when == steps:
                engine.cancel(str(which))
        events += engine.step()
        steps += 1
        assert steps < 1000
        owners = [slot.job.request.id for slot in engine._slots if slot.job]
        assert len(owners) == len(set(owners)), "one request in two slots"
    for request in requests:
        own = [e for e in events if e.id == request.id]
        ends = [e for e in own if not isinstance(e, Delta)]
        assert len(ends) == 1
        assert own[-1] is ends[0], "something came after the end"
        last = own[-1]
        if isinstance(last, Done):
            assert last.finish_reason == "stop" or last.timing.n_generated == request.max_tokens
            assert sorted(last.timing.token_times_s) == list(last.timing.token_times_s)
        else:
            assert isinstance(last, Failed) and isinstance(last.error, (Cancelled, DeadlineExceeded))


def test_same_seed_same_text_and_seeds_differ(engine: Engine) -> None:
    def answer(seed: int) -> str:
        empty(engine)  # what is copied instead of read differs in the last bits
        sampling = Sampling(temperature=1.5, top_k=0, top_p=1, min_p=0, seed=seed)
        request = Request("s", prompt(engine, "Hello"), max_tokens=20, sampling=sampling, ignore_eos=True)
        return text_of([*engine.generate(request)])

    assert answer(1) == answer(1)
    assert len({answer(seed) for seed in range(5)}) > 1


def test_sampling_follows_the_distribution(engine: Engine) -> None:
    """Frequencies of the first token over many seeds match softmax(logits / temperature)."""
    tokens = prompt(engine, "Hello")
    top = [*engine.generate(Request("p", tokens, max_tokens=1, sampling=GREEDY, n_top_logprobs=5))]
    logprobs = {t: lp for e in top if isinstance(e, Delta) for t, _, lp in e.logprobs[0].top}
    temperature = 0.7
    weights = {t: math.exp(lp / temperature) for t, lp in logprobs.items()}
    expected = {t: w / sum(weights.values()) for t, w in weights.items()}
    counts = dict.fromkeys(expected, 0)
    n = 400
    for seed in range(n):
        sampling = Sampling(temperature=temperature, top_k=5, top_p=1, min_p=0, seed=seed)
        request = Request("p", tokens, max_tokens=1, sampling=sampling, n_top_logprobs=0, ignore_eos=True)
        counts[tokens_of([*engine.generate(request)])[0]] += 1
    for token, p in expected.items():
        assert abs(counts[token] / n - p) < 4 * math.sqrt(p * (1 - p) / n) + 0.01


def test_logit_bias_and_penalties(engine: Engine) -> None:
    tokens = prompt(engine, "Hello")
    first = tokens_of([*engine.generate(greedy("b", tokens, 1))])[0]
    banned = Sampling(temperature=0, logit_bias=((first, -math.inf),))
    request = Request("b", tokens, max_tokens=1, sampling=banned, n_top_logprobs=0, ignore_eos=True)
    assert tokens_of([*engine.generate(request)])[0] != first
    forced = Sampling(temperature=0, logit_bias=((65, 100.0),))
    request = Request("b", tokens, max_tokens=4, sampling=forced, n_top_logprobs=0)
    assert tokens_of([*engine.generate(request)]) == [65] * 4
    once = Sampling(temperature=0, logit_bias=((65, 5.0),), presence_penalty=2.0, frequency_penalty=2.0)
    plain = Sampling(temperature=0, logit_bias=((65, 5.0),))
    counts = []
    for sampling in (plain, once):
        request = Request("b", tokens, max_tokens=30, sampling=sampling, n_top_logprobs=0, ignore_eos=True)
        counts.append(tokens_of([*engine.generate(request)]).count(65))
    assert counts[1] < counts[0]


def test_logprobs_are_a_distribution_and_match_the_choice(engine: Engine) -> None:
    n_vocab = engine.model.n_vocab
    request = Request("l", prompt(engine, "Hi"), max_tokens=5, sampling=GREEDY, n_top_logprobs=n_vocab - 1)
    for event in engine.generate(request):
        if isinstance(event, Delta) and event.logprobs:
            (entry,) = event.logprobs
            values = [lp for _, _, lp in entry.top]
            assert values == sorted(values, reverse=True)
            assert entry.top[0][0] == entry.token and entry.top[0][2] == entry.logprob
            assert math.isclose(sum(math.exp(v) for v in values), 1, abs_tol=1e-3)


def test_prompt_logprobs_are_those_of_reading_token_by_token(engine: Engine) -> None:
    tokens = prompt(engine, "The infant has a fever and drinks little since yesterday evening, no rash.")
    assert len(tokens) > 40  # more than one piece
    request = Request("e", tokens, max_tokens=0, echo=True, prompt_text="x", n_top_logprobs=1)
    delta, done = [*engine.generate(request)]
    assert isinstance(delta, Delta) and isinstance(done, Done)
    assert delta.text == "x" and done.timing.n_generated == 0
    assert [t.token for t in delta.prompt_logprobs] == tokens
    assert delta.prompt_logprobs[0].logprob is None
    for n in (1, 7, len(tokens) - 1):
        bias = Sampling(temperature=0, logit_bias=((tokens[n], 1000.0),))
        step = Request("t", tokens[:n], max_tokens=1, sampling=bias, n_top_logprobs=0)
        (one,) = [e for e in engine.generate(step) if isinstance(e, Delta) and e.logprobs]
        assert one.logprobs[0].token == tokens[n]
        assert one.logprobs[0].logprob == pytest.approx(delta.prompt_logprobs[n].logprob, abs=5e-3)


def test_stop_strings_end_the_answer_before_them(engine: Engine) -> None:
    tokens = prompt(engine, "Hello")
    whole = text_of([*engine.generate(greedy("w", tokens, 30))])
    stop = next(whole[i : i + 2] for i in range(3, 30) if whole[i : i + 2].isascii())
    request = Request("s", tokens, max_tokens=30, sampling=GREEDY, stop=(stop,), ignore_eos=True)
    events = [*engine.generate(request)]
    assert text_of(events) == whole[: whole.index(stop)]
    assert isinstance(events[-1], Done) and events[-1].finish_reason == "stop"


def test_end_token_stops(engine: Engine) -> None:
    end = next(t for t in range(engine.model.n_vocab) if engine.model.is_end(t))
    sampling = Sampling(temperature=0, logit_bias=((end, 1000.0),))
    request = Request("s", prompt(engine, "Hi"), max_tokens=30, sampling=sampling)
    (done,) = [*engine.generate(request)]
    assert isinstance(done, Done)
    assert (done.finish_reason, done.timing.n_generated, done.timing.ttft_s) == ("stop", 0, None)
    events = [
        *engine.generate(Request("i", prompt(engine, "Hi"), max_tokens=5, sampling=sampling, ignore_eos=True))
    ]
    assert isinstance(events[-1], Done) and events[-1].timing.n_generated == 5


def test_context_end_says_length(engine: Engine) -> None:
    tokens = prompt(engine, "x" * 400)[: CTX - 5]
    done = [*engine.generate(Request("l", tokens, sampling=GREEDY, ignore_eos=True))][-1]
    assert isinstance(done, Done)
    assert (done.finish_reason, done.timing.n_generated) == ("length", 5)


def test_grammar_binds_the_answer(engine: Engine) -> None:
    for seed in range(5):
        request = Request(
            "g",
            prompt(engine, "JSON"),
            max_tokens=60,
            sampling=Sampling(temperature=1.5, seed=seed),
            grammar=Grammar(
                "gbnf", 'root ::= "{\\"dose\\": " [0-9]{1,4} ", \\"unit\\": \\"" ("mg"|"ml") "\\"}"'
            ),
        )
        events = [*engine.generate(request)]
        assert isinstance(events[-1], Done) and events[-1].finish_reason == "stop"
        answer = json.loads(text_of(events))
        assert answer["dose"] >= 0 and answer["unit"] in ("mg", "ml")


def test_schema_binds_the_answer(engine: Engine) -> None:
    schema = {
        "type": "object",
        "properties": {
            "urgent": {"type": "boolean"},
            "grade": {"enum": ["low", "high"]},
            "codes": {"type": "array", "items": {"type": "string", "maxLength": 3}, "maxItems": 2},
        },
        "required": ["urgent", "grade", "codes"],
        "additionalProperties": False,
    }
    grammar = Grammar("json_schema", json.dumps(schema))
    for seed in range(5):
        sampling = Sampling(temperature=1.2, seed=seed)
        request = Request("j", prompt(engine, "J"), max_tokens=150, sampling=sampling, grammar=grammar)
        answer = json.loads(text_of([*engine.generate(request)]))
        assert set(answer) == {"urgent", "grade", "codes"}
        assert isinstance(answer["urgent"], bool) and answer["grade"] in ("low", "high")
        assert len(answer["codes"]) <= 2 and all(len(c) <= 3 for c in answer["codes"])


@pytest.mark.parametrize(
    "grammar",
    [
        *(("gbnf", t) for t in ("", "root ::= foo", 'foo ::= "a"', "root ::= (", "\0", "☃")),
        *(
            ("json_schema", t)
            for t in ('{"not": {}}', '{"anyOf": []}', '{"type": "x"}', '{"$ref": "http://a"}')
        ),
    ],
    ids=str,
)
def test_bad_grammar_is_refused_before_any_work(engine: Engine, grammar: tuple[str, str]) -> None:
    with pytest.raises(InvalidGrammar):
        engine.submit(Request("bad", prompt(engine, "Hello"), grammar=Grammar(*grammar)))  # type: ignore[arg-type]


def test_grammar_without_a_sentence_fails_alone(engine: Engine) -> None:
    good = greedy("good", prompt(engine, "Hello"))
    bad = Request("bad", prompt(engine, "Hello"), grammar=Grammar("gbnf", 'root ::= root "a"'))
    events = by_request([*engine.generate(good, bad)])
    assert isinstance(events["bad"][-1], Failed) and isinstance(events["bad"][-1].error, DecodeFailed)
    assert isinstance(events["good"][-1], Done)


def test_refusals_before_any_work(engine: Engine) -> None:
    with pytest.raises(ContextLengthExceeded, match=f"{CTX} tokens"):
        engine.submit(Request("r", [5] * CTX))
    with pytest.raises(InvalidRequest):
        engine.submit(Request("r", []))
    for bad in (-1, engine.model.n_vocab, 1 << 40):
        with pytest.raises(InvalidRequest):
            engine.submit(Request("r", [5, bad]))
        with pytest.raises(InvalidRequest):
            engine.submit(Request("r", [5], sampling=Sampling(logit_bias=((bad, 1.0),))))
    assert not engine.busy


def test_full_queue_refuses_at_once(tiny: Path) -> None:
    with open_engine(tiny, n_slots=1, max_waiting=2) as engine:
        for i in range(2):
            engine.submit(greedy(str(i), prompt(engine, "Hi")))
        with pytest.raises(QueueFull) as refused:
            engine.submit(greedy("3", prompt(engine, "Hi")))
        assert refused.value.retry_after_s
        with pytest.raises(InvalidRequest):  # an id that is alive
            engine.submit(greedy("0", prompt(engine, "Hi")))


def test_close_ends_what_runs_and_what_waits(tiny: Path) -> None:
    engine = open_engine(tiny, n_slots=1)
    for i in range(3):
        engine.submit(greedy(str(i), prompt(engine, "Hi")))
    events = engine.step() + engine.close()
    ends = [e for e in events if isinstance(e, Failed)]
    assert sorted(e.id for e in ends) == ["0", "1", "2"]
    assert all(isinstance(e.error, EngineClosed) for e in ends)
    assert engine.close() == []
    with pytest.raises(EngineClosed):
        engine.submit(greedy("4", [5]))


def test_decode_failure_ends_only_what_was_decoded(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = engine.model.decode, []

    def once(chunks):  # type: ignore[no-untyped-def]
        calls.append(chunks)
        if len(calls) == 3:
            raise DecodeFailed("planted")
        return real(chunks)

    monkeypatch.setattr(engine.model, "decode", once)
    events = by_request([*engine.generate(*(greedy(str(i), prompt(engine, "Hi")) for i in range(6)))])
    ends = [e[-1] for e in events.values()]
    assert sum(isinstance(e, Failed) for e in ends) == 4
    assert sum(isinstance(e, Done) for e in ends) == 2


def test_submit_and_cancel_from_other_threads(engine: Engine) -> None:
    ids = [f"t{i}" for i in range(30)]

    def submit(part: list[str]) -> None:
        for id in part:
            engine.submit(greedy(id, prompt(engine, "Hello there"), 8))
            if id.endswith("3"):
                engine.cancel(id)

    threads = [threading.Thread(target=submit, args=(ids[i::3],)) for i in range(3)]
    for thread in threads:
        thread.start()
    ended: set[str] = set()
    while len(ended) < len(ids):
        engine.wait(0.1)
        ended |= {e.id for e in engine.step() if not isinstance(e, Delta)}
    for thread in threads:
        thread.join()
    assert ended == set(ids)


def test_numbers_of_a_done_fit_together(engine: Engine) -> None:
    tokens = prompt(engine, "How are the numbers?")
    done = [*engine.generate(greedy("n", tokens, 10))][-1]
    assert isinstance(done, Done)
    t = done.timing
    assert (t.n_prompt, t.n_generated, len(t.token_times_s)) == (len(tokens), 10, 10)
    assert t.ttft_s is not None and t.tokens_per_s is not None and t.peak_memory_bytes
    assert 0 <= t.queued_s <= t.ttft_s <= t.total_s
    assert np.isclose(t.tokens_per_s, 9 / (t.token_times_s[-1] - t.token_times_s[0]))


def test_a_file_that_llama_cpp_refuses(tmp_path: Path) -> None:
    path = tmp_path / "no.gguf"
    path.write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(InvalidModel, match=r"no\.gguf"):
        open_engine(path)


def test_a_prompt_that_is_scored_is_scored_where_the_answer_ends_at_once(engine: Engine) -> None:
    tokens = prompt(engine, "Fever?")
    end = Sampling(temperature=0, logit_bias=((engine.model.eos, float(1000)),))
    request = Request("e", tokens, 1, end, n_top_logprobs=1, echo=True, prompt_text="Fever?")
    *deltas, done = engine.generate(request)
    assert isinstance(done, Done) and done.finish_reason == "stop"
    assert "".join(d.text for d in deltas if isinstance(d, Delta)) == "Fever?"
    scored = [t for d in deltas if isinstance(d, Delta) for t in (*d.prompt_logprobs, *d.logprobs)]
    assert [t.token for t in scored] == [*tokens, engine.model.eos]
    plain = Request("p", tokens, 1, end, echo=True, prompt_text="Fever?")
    assert text_of(list(engine.generate(plain))) == "Fever?"


def test_the_prompt_is_shown_once(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = prompt(engine, "Fever?")
    for first in ("A", "AB", ""):
        answer = iter([*engine.model.tokenize(first, special=False, add_bos=False), engine.model.eos])
        take = answer.__next__
        sampler = SimpleNamespace(sample=lambda row, take=take: take(), close=lambda: None)
        monkeypatch.setattr(engine.model, "sampler", lambda *_, sampler=sampler: sampler)
        request = Request("o", tokens, 5, n_top_logprobs=0, echo=True, prompt_text="Fever?")
        assert text_of(list(engine.generate(request))) == f"Fever?{first}"


@pytest.mark.parametrize("score_from", [0, 1, 2, 17, 40])
def test_a_prompt_is_scored_from_where_it_is_asked_for(engine: Engine, score_from: int) -> None:
    tokens = prompt(engine, "Fever in an infant of two months, with a stiff neck and a rash")

    def scored(**fields: int) -> tuple[list[int], list[float | None], int]:
        request = Request("s", tokens, 0, GREEDY, n_top_logprobs=0, echo=True, **fields)  # type: ignore[arg-type]
        *deltas, done = engine.generate(request)
        found = [t for d in deltas if isinstance(d, Delta) for t in d.prompt_logprobs]
        assert isinstance(done, Done)
        return [t.token for t in found], [t.logprob for t in found], done.timing.n_cached

    whole = scored()
    assert whole[0] == tokens and whole[2] == 0
    ids, logprobs, n_cached = scored(score_from=score_from)
    assert ids == tokens[score_from:]
    assert logprobs == pytest.approx(whole[1][score_from:], abs=1e-4)
    assert n_cached == max(0, score_from - 1)
