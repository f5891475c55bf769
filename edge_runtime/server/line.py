"""The line between the web process and the engine's process: its messages and their form on a pipe.

A message is a pickle behind its length. Both ends are ours and the pipe is private, so pickle is safe here.
"""

from __future__ import annotations

import pickle
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

from ..engine.request import Event, Request
from ..errors import MedgeError

_LENGTH = struct.Struct("<I")


# -- to the engine


@dataclass(frozen=True)
class Start:
    """The first message. The modules of the two configurations are not imported on this side.

    Attributes:
        config: keyword arguments of `EngineConfig`, or with `embeddings` of `EmbedderConfig`.
        template: the chat template of the model file.
        embeddings: the model is there for vectors, not for text.
        beginnings: what many requests will begin with, each the messages before a question. They are read
            while nothing else is asked.
    """

    config: dict[str, Any]
    template: str | None
    embeddings: bool = False
    beginnings: tuple[tuple[dict[str, Any], ...], ...] = ()


@dataclass(frozen=True)
class Ask:
    """A request whose prompt is not tokens yet. Exactly one of messages, text and tokens is set.

    Attributes:
        request: everything but the tokens.
        messages: a conversation, for the model's chat template.
        text: a prompt without a chat template.
        is_plain: names of control tokens in `text` stay text.
        tokens: token ids.
        n_context: of `text`, how many characters at the beginning need no log-probabilities; see
            `Request.score_from`. A few tokens before their end are scored all the same: tokenizers join
            across it.
        max_thoughts: tokens of thoughts where the model has them; None leaves them what the answer does not
            need, 0 asks for the answer alone.
        answer_tokens: of the room that thoughts leave the answer.
        history: what the next turn of the conversation begins with, before this answer; None if it is not
            known. The slot is made ready for it while it is idle.
        n_own: of `messages`, how many at the beginning are the program's own text, which others may share;
            None: whatever two prompts have in common is shared.
    """

    request: Request
    messages: tuple[dict[str, Any], ...] | None = None
    text: str | None = None
    is_plain: bool = False
    tokens: tuple[int, ...] | None = None
    n_context: int = 0
    max_thoughts: int | None = None
    answer_tokens: int = 512
    history: tuple[dict[str, Any], ...] | None = None
    n_own: int | None = None


@dataclass(frozen=True)
class Cancel:
    id: str


@dataclass(frozen=True)
class Forget:
    conversation: str


@dataclass(frozen=True)
class GiveBack:
    """Memory is short: drop what can be made again."""


@dataclass(frozen=True)
class Ping:
    """Asks the engine's loop, not only its process, for a sign of life."""


# -- from the engine


@dataclass(frozen=True)
class Loading:
    share: float


@dataclass(frozen=True)
class Ready:
    """The model is loaded. These are facts about it as it really runs."""

    n_params: int
    n_layers: int
    n_layers_gpu: int
    flash_attention: bool
    n_ctx_train: int
    load_s: float


@dataclass(frozen=True)
class LoadFailed:
    error: MedgeError


@dataclass(frozen=True)
class Running:
    """A request has a slot from now on."""

    id: str


@dataclass(frozen=True)
class Step:
    """What one step brought for all requests. `snapshot` is an `engine.Snapshot` now and then."""

    events: tuple[Event, ...]
    snapshot: Any = None


def pack(message: object) -> bytes:
    """The bytes of a message, length first."""
    body = pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)
    return _LENGTH.pack(len(body)) + body


def receive(stream: BinaryIO) -> Any | None:
    """The next message of a blocking stream; None when the other end is gone."""
    header = stream.read(_LENGTH.size)
    if len(header) < _LENGTH.size:
        return None
    (length,) = _LENGTH.unpack(header)
    body = stream.read(length)
    return pickle.loads(body) if len(body) == length else None


class Messages:
    """Bytes as they come, put together to messages."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> Iterator[Any]:
        """The messages that are complete with these bytes."""
        data = self._rest + data
        begin = 0
        while len(data) - begin >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(data, begin)
            end = begin + _LENGTH.size + length
            if end > len(data):
                break
            yield pickle.loads(data[begin + _LENGTH.size : end])
            begin = end
        self._rest = data[begin:]
