from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from edge_runtime.engine.prefix import MIN_SHARED, PrefixStore, common_length


@given(st.lists(st.integers(0, 2)), st.lists(st.integers(0, 2)))
def test_common_length_is_that_of_a_plain_loop(a: list[int], b: list[int]) -> None:
    n = 0
    while n < min(len(a), len(b)) and a[n] == b[n]:
        n += 1
    assert common_length(a, b) == n


class Memory:
    """What sequences hold, as llama.cpp would: a copy needs an empty target and enough in the source."""

    def __init__(self) -> None:
        self.held: dict[int, list[int]] = {}

    def copy(self, source: int, target: int, n: int) -> None:
        assert not self.held.get(target), "copied into a sequence that was not empty"
        assert len(self.held[source]) >= n
        self.held[target] = self.held[source][:n]

    def clear(self, sequence: int) -> None:
        self.held[sequence] = []


LIMIT = 200
SEQUENCES = (10, 11, 12)
prompts = st.tuples(st.integers(0, 3), st.integers(MIN_SHARED - 5, 150), st.integers(0, 5)).map(
    lambda t: [t[0]] * t[1] + [100 + t[2]] * 10
)


class Store(RuleBasedStateMachine):
    """Any order of keeping and finding: the limit holds, and what is found is really there."""

    def __init__(self) -> None:
        super().__init__()
        self.memory = Memory()
        self.store = PrefixStore(SEQUENCES, LIMIT, self.memory.copy, self.memory.clear)

    @rule(tokens=prompts)
    def keep(self, tokens: list[int]) -> None:
        self.memory.held[0] = tokens
        self.store.keep(0, tokens)
        if MIN_SHARED <= len(tokens) <= LIMIT:
            assert self.store.find(tokens)[1] == len(tokens)

    @rule(tokens=prompts)
    def find(self, tokens: list[int]) -> None:
        sequence, n = self.store.find(tokens)
        if n:
            assert self.memory.held[sequence][:n] == tokens[:n]
        for held in (self.memory.held.get(s, []) for s in SEQUENCES):
            assert common_length(held, tokens) <= n, "a longer beginning was there"

    @rule()
    def clear(self) -> None:
        self.store.clear()
        assert self.store.n_tokens == 0

    @invariant()
    def within_the_limit(self) -> None:
        held = sum(len(self.memory.held.get(s, [])) for s in SEQUENCES)
        assert held == self.store.n_tokens <= LIMIT


TestStore = Store.TestCase
