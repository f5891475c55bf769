from __future__ import annotations

import io

from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.server.line import Messages, pack, receive

messages = st.lists(st.text() | st.binary() | st.lists(st.integers()))


@given(messages, st.integers(1, 50))
def test_messages_arrive_whole_however_the_bytes_are_cut(sent: list[object], n: int) -> None:
    data = b"".join(map(pack, sent))
    inbox = Messages()
    assert [m for i in range(0, len(data), n) for m in inbox.feed(data[i : i + n])] == sent


@given(messages, st.integers(0, 20))
def test_a_message_that_is_cut_off_is_none(sent: list[object], n_missing: int) -> None:
    data = b"".join(map(pack, [*sent, "the last one"]))
    stream = io.BytesIO(data[: len(data) - 1 - n_missing])
    received = []
    while (message := receive(stream)) is not None:
        received.append(message)
    assert received == sent
