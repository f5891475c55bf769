"""The scheduler's promises, on invented work: no model, no clock."""

from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.engine.scheduler import MIN_PROMPT_TOKENS, Scheduler, Work


@st.composite
def works(draw: st.DrawFn) -> list[Work]:
    n = draw(st.integers(0, 8))
    arrivals = draw(st.permutations(range(n)))
    result = []
    for slot in range(n):
        answering = draw(st.booleans())
        pending = 1 if answering else draw(st.integers(1, 3000))
        result.append(Work(slot, pending, answering, arrivals[slot], draw(st.sampled_from([1, 8, 1 << 30]))))
    return result


def taught(prompt_token_s: float = 0.001, answering_s: float = 0.02) -> Scheduler:
    scheduler = Scheduler(n_batch=256, step_limit_s=0.1)
    for n in range(1, 9):
        scheduler.observe(n, 0, answering_s)
    scheduler.observe(0, 100, 100 * prompt_token_s)
    return scheduler


@given(works(), st.booleans(), st.floats(1e-6, 1.0), st.floats(1e-4, 1.0))
def test_plan_keeps_its_promises(work: list[Work], others: bool, prompt_s: float, answering_s: float) -> None:
    scheduler = taught(prompt_s, answering_s)
    plan = scheduler.plan(work, others)
    by_slot = {w.slot: w for w in work}
    assert set(plan) <= set(by_slot)
    assert sum(plan.values()) <= scheduler.n_batch
    for slot, n in plan.items():
        assert 1 <= n <= min(by_slot[slot].n_pending, by_slot[slot].max_tokens)
    for w in work:
        if w.answering:
            assert plan[w.slot] == 1, "an answering slot never misses a step"
    prompts = [w for w in work if not w.answering]
    if prompts:
        oldest = min(prompts, key=lambda w: w.arrival)
        assert plan.get(oldest.slot, 0) >= 1, "the prompt that waited longest always advances"
        n_prompt = sum(plan[w.slot] for w in prompts if w.slot in plan)
        n_answering = len(work) - len(prompts)
        fits = scheduler.cost.prompt_tokens_in(0.4, n_answering)
        assert fits is not None
        assert n_prompt <= max(MIN_PROMPT_TOKENS, fits)


def test_prompts_take_no_longer_than_the_others_can_wait() -> None:
    work = [Work(0, 1, True, 0), Work(1, 2000, False, 1)]
    assert taught().plan(work) == {0: 1, 1: 80}  # 100 ms less 20 ms for the answers, at 1 ms a token


def test_a_short_prompt_is_not_stuck_behind_a_long_one() -> None:
    work = [Work(0, 2000, False, 0), Work(1, 30, False, 1)]
    assert taught().plan(work)[1] == 30


def test_alone_a_prompt_takes_larger_steps() -> None:
    assert taught().plan([Work(0, 2000, False, 0)]) == {0: 256}
    assert taught().plan([Work(0, 2000, False, 0)], others_wait=True) == {0: 100}


@given(st.integers(1, 2000), st.lists(st.integers(1, 60), min_size=1, max_size=400))
def test_a_long_prompt_is_not_starved_by_a_stream_of_short_ones(n_long: int, shorts: list[int]) -> None:
    """Whatever keeps arriving, the long prompt is read after a bounded number of steps."""
    scheduler = taught()
    left, arrival, steps = n_long, 1, 0
    while left > 0:
        others = [Work(1 + i, shorts[(steps + i) % len(shorts)], False, arrival + i) for i in range(7)]
        arrival += 7
        left -= scheduler.plan([Work(0, left, False, 0), *others])[0]
        steps += 1
    assert steps <= n_long / (0.25 * 100) + 2


def test_a_machine_slower_than_the_limit_still_advances() -> None:
    scheduler = taught(prompt_token_s=1.0, answering_s=5.0)
    plan = scheduler.plan([Work(0, 1, True, 0), Work(1, 500, False, 1)])
    assert plan == {0: 1, 1: MIN_PROMPT_TOKENS}


def test_costs_follow_the_machine() -> None:
    scheduler = taught(prompt_token_s=0.001)
    for _ in range(30):
        scheduler.observe(0, 100, 0.4)  # it became four times slower
    assert 22 <= scheduler.plan([Work(0, 1, False, 0), Work(1, 2000, False, 1)])[1] + 1 <= 26
