from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from edge_runtime.engine.prefix import MAX_OWNERS, MIN_SHARED, PrefixStore, common_length


@given(st.lists(st.integers(0, 2)), st.lists(st.integers(0, 2)))
def test_common_length_is_that_of_a_plain_loop(a: list[int], b: list[int]) -> None:
    n = 0
    while n < min(len(a), len(b)) and a[n] == b[n]:
        n += 1
    assert common_length(a, b) == n


LIMIT = 200
prompts = st.tuples(st.integers(0, 3), st.integers(MIN_SHARED - 5, 150), st.integers(0, 5)).map(
    lambda t: [t[0]] * t[1] + [100 + t[2]] * 10
)


class Store(RuleBasedStateMachine):
    """Any order of keeping and finding: the limit holds, and what is found is what was kept."""

    def __init__(self) -> None:
        super().__init__()
        self.store = PrefixStore(LIMIT)

    @rule(tokens=prompts)
    def keep(self, tokens: list[int]) -> None:
        if self.store.wants(tokens):
            self.store.keep(tokens, bytes(tokens), [None])
        if MIN_SHARED <= len(tokens) <= LIMIT:
            assert self.store.find(tokens)[1] == len(tokens)
            assert not self.store.wants(tokens)

    @rule(tokens=prompts)
    def find(self, tokens: list[int]) -> None:
        kept, n = self.store.find(tokens)
        if kept:
            assert list(kept.state) == kept.tokens
            assert kept.tokens[:n] == tokens[:n]
        assert all(common_length(k.tokens, tokens) <= n for k in self.store._kept)

    @rule()
    def clear(self) -> None:
        self.store.clear()
        assert self.store.n_tokens == 0

    @invariant()
    def within_the_limit(self) -> None:
        assert sum(len(k.state) for k in self.store._kept) == self.store.n_tokens <= LIMIT


TestStore = Store.TestCase


def test_the_least_recently_used_leaves_first() -> None:
    store = PrefixStore(100)
    a, b, c = ([i] * 40 for i in range(3))
    store.keep(a, b"a", [None])
    store.keep(b, b"b", [None])
    kept, _ = store.find(a)
    assert kept
    store.use(kept, None)
    store.keep(c, b"c", [None])
    assert [store.find(t)[1] for t in (a, b, c)] == [40, 0, 40]


names = st.sampled_from(["a", "b", "c", None])


@given(st.lists(names, min_size=1), st.lists(names), st.lists(st.sampled_from("abc")))
def test_a_beginning_lives_as_long_as_one_of_its_conversations(
    sent_by: list[str | None], used_by: list[str | None], forgotten: list[str]
) -> None:
    store = PrefixStore(100)
    store.keep([1] * 40, b"", sent_by)
    for conversation in used_by:
        kept, _ = store.find([1] * 40)
        assert kept
        store.use(kept, conversation)
    for conversation in forgotten:
        store.forget(conversation)
    owners = {*sent_by, *used_by}
    assert store.n_tokens == (40 if owners - {*forgotten} else 0)


def test_what_very_many_conversations_sent_outlives_them() -> None:
    store = PrefixStore(100)
    everybody = [str(i) for i in range(MAX_OWNERS + 1)]
    store.keep([1] * 40, b"", everybody)
    for conversation in everybody:
        store.forget(conversation)
    assert store.n_tokens == 40
