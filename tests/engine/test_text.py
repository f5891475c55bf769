from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.engine.text import TextStream


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    """`data` in pieces that end at `cuts`, which may be in the middle of a character."""
    edges = sorted({0, len(data), *(c % (len(data) + 1) for c in cuts)})
    return [data[a:b] for a, b in pairwise(edges)]


def stream(parts: list[bytes], stop: tuple[str, ...] = ()) -> tuple[str, bool]:
    text = TextStream(stop)
    shown = ""
    for part in parts:
        shown += text.feed(part)
        if text.stopped:
            break
    return shown + text.finish(), text.stopped


@given(st.text(), st.lists(st.integers(0, 1000)))
def test_any_split_gives_the_same_text(text: str, cuts: list[int]) -> None:
    assert stream(pieces(text.encode(), cuts)) == (text, False)


@given(st.binary(), st.lists(st.integers(0, 1000)))
def test_broken_bytes_never_raise_and_match_a_whole_decode(data: bytes, cuts: list[int]) -> None:
    assert stream(pieces(data, cuts))[0] == data.decode("utf-8", "replace")


@given(
    st.text("abc", max_size=30),
    st.lists(st.text("abc", min_size=1, max_size=4), max_size=3),
    st.lists(st.integers(0, 40)),
)
def test_text_ends_before_the_first_stop_string(text: str, stop: list[str], cuts: list[int]) -> None:
    shown, stopped = stream(pieces(text.encode(), cuts), tuple(stop))
    ends = [text.index(s) for s in stop if s in text]
    assert stopped == bool(ends)
    if not ends:
        assert shown == text
    else:
        # Which of several stops is seen first can depend on where the pieces end, but none is ever shown.
        assert text.startswith(shown)
        assert not any(s in shown for s in stop)


def test_a_possible_stop_is_held_back_until_it_is_none() -> None:
    text = TextStream(("STOP",))
    assert text.feed(b"say ST") == "say "
    assert text.feed(b"IR") == "STIR"
    assert text.feed(b" ST") == " "
    assert text.finish() == "ST"


def test_half_a_character_is_held_back() -> None:
    text = TextStream()
    euro = "€".encode()
    assert text.feed(euro[:1]) == ""
    assert text.feed(euro[1:]) == "€"
    assert text.feed(euro[:2]) == ""
    assert text.finish() == "\N{REPLACEMENT CHARACTER}"
