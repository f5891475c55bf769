"""The scheduler's promises, on invented work: no model, no clock."""

from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.engine.scheduler import (
    MIN_PROMPT_TOKENS,
    OLDEST_EVERY,
    TILE_STRETCH,
    TILE_TOKENS,
    Scheduler,
    Work,
)


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


@given(works(), st.floats(1e-6, 1.0), st.floats(1e-4, 1.0))
def test_plan_keeps_its_promises(work: list[Work], prompt_s: float, answering_s: float) -> None:
    scheduler = taught(prompt_s, answering_s)
    plan = scheduler.plan(work)
    by_slot = {w.slot: w for w in work}
    assert set(plan) <= set(by_slot)
    assert sum(plan.values()) <= scheduler.n_batch
    for slot, n in plan.items():
        assert 1 <= n <= min(by_slot[slot].n_pending, by_slot[slot].max_tokens)
    for w in work:
        if w.answering:
            assert plan[w.slot] == 1, "an answering slot never misses a step"
    prompts = [w for w in work if not w.answering]
    assert bool(prompts) == any(w.slot in plan for w in prompts), "some prompt always advances"
    n_prompt = sum(plan.get(w.slot, 0) for w in prompts)
    limit = 0.1 if len(prompts) < len(work) else 0.4
    assert n_prompt <= MIN_PROMPT_TOKENS + 1 or (n_prompt - 1) * prompt_s <= limit * TILE_STRETCH * 1.01


@given(works(), st.integers(0, 5))
def test_the_prompt_that_waited_longest_goes_first_now_and_then(work: list[Work], steps: int) -> None:
    scheduler = taught()
    prompts = [w for w in work if not w.answering]
    if not prompts:
        return
    oldest = min(prompts, key=lambda w: w.arrival)
    for _ in range(steps):
        scheduler.plan(work)
    assert any(scheduler.plan(work).get(oldest.slot, 0) for _ in range(OLDEST_EVERY))


def test_prompts_take_no_longer_than_the_others_can_wait() -> None:
    work = [Work(0, 1, True, 0), Work(1, 2000, False, 1)]
    assert taught(0.0007).plan(work) == {0: 1, 1: 129}  # 100 ms at 0.7 ms a token: two tiles and one beside


def test_a_short_prompt_is_not_stuck_behind_a_long_one() -> None:
    work = [Work(0, 2000, False, 0), Work(1, 30, False, 1)]
    assert taught().plan(work)[1] == 30


def test_while_nobody_answers_steps_are_larger() -> None:
    assert taught().plan([Work(0, 2000, False, 0)]) == {0: 256}
    assert taught().plan([Work(0, 2000, False, 0), Work(1, 1, True, 1)]) == {0: 65, 1: 1}


@given(st.integers(1, 2000), st.lists(st.integers(1, 60), min_size=1, max_size=400))
def test_a_long_prompt_is_not_starved_by_a_stream_of_short_ones(n_long: int, shorts: list[int]) -> None:
    """Whatever keeps arriving, the long prompt is read after a bounded number of steps."""
    scheduler = taught()
    left, arrival, steps = n_long, 1, 0
    while left > 0:
        others = [Work(1 + i, shorts[(steps + i) % len(shorts)], False, arrival + i) for i in range(7)]
        arrival += 7
        left -= scheduler.plan([Work(0, left, False, 0), *others, Work(9, 1, True, 0)]).get(0, 0)
        steps += 1
    assert steps <= OLDEST_EVERY * (n_long / TILE_TOKENS + 1)


def test_a_machine_slower_than_the_limit_still_advances() -> None:
    scheduler = taught(prompt_token_s=1.0, answering_s=5.0)
    plan = scheduler.plan([Work(0, 1, True, 0), Work(1, 500, False, 1)])
    assert plan == {0: 1, 1: MIN_PROMPT_TOKENS + 1}


def test_costs_follow_the_machine() -> None:
    scheduler = taught(prompt_token_s=0.001)
    for _ in range(30):
        scheduler.observe(0, 100, 0.05)  # it became twice as fast
    assert scheduler.plan([Work(0, 1, True, 0), Work(1, 2000, False, 1)])[1] == 193
    for _ in range(40):
        scheduler.observe(0, 100, 2.0)  # it became forty times slower
    assert scheduler.plan([Work(0, 1, True, 0), Work(1, 2000, False, 1)])[1] == MIN_PROMPT_TOKENS + 1
    for _ in range(200):
        scheduler.observe(0, 16, 0.1)
    assert scheduler.plan([Work(0, 1, True, 0), Work(1, 2000, False, 1)])[1] == TILE_TOKENS + 1, "tried again"


def test_a_piece_is_a_whole_tile_unless_that_takes_far_too_long() -> None:
    work = [Work(0, 1, True, 0), Work(1, 2000, False, 1)]
    assert taught(prompt_token_s=0.003).plan(work)[1] == TILE_TOKENS + 1
    assert taught(prompt_token_s=0.02).plan(work)[1] == MIN_PROMPT_TOKENS + 1
