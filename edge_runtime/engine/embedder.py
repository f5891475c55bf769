"""Token lists in, vectors out, for models that are there for embeddings.

It knows nothing of HTTP or processes. One thread calls `step`; `submit` and `cancel` may be called from any
thread. How much may wait is up to the caller.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..device.memory import peak_bytes
from ..errors import (
    Cancelled,
    ContextLengthExceeded,
    DecodeFailed,
    EngineClosed,
    InvalidModel,
    InvalidRequest,
    MedgeError,
)
from .engine import SlotState, Snapshot
from .llama import Chunk, Model, ModelConfig, Vector
from .loop import Loop
from .request import Embedded, Event, Failed, Timing


@dataclass(frozen=True)
class EmbedderConfig:
    """How to run an embedding model.

    Attributes:
        path: a GGUF file with a pooling that `models/gguf.py` has checked.
        n_slots: texts in one step at most.
        n_ctx: tokens of a text at most; fewer if the model was trained on fewer.
        n_threads: at most this many; fewer while other programs use the cores.
        kv: type of the KV memory, "f16" or "q8_0", if the model has any.
        n_batch: tokens in one step at most. In larger ones attention looks at, and masks, more of what
            belongs to other texts.
        whole: each text is read in one step, even if it has more than `n_batch` tokens. Models whose tokens
            look at what comes after them need it; others take less memory and shorter steps without.
    """

    path: Path
    n_slots: int = 4
    n_ctx: int = 2048
    n_threads: int = 2
    kv: str = "f16"
    flash_attention: bool = True
    n_gpu_layers: int = -1
    n_batch: int = 256
    whole: bool = True

    @property
    def model(self) -> ModelConfig:
        return ModelConfig(
            path=self.path,
            n_sequences=self.n_slots,
            # Behind a text that is half read there may be others in the same batch.
            n_ctx=self.n_ctx if self.whole else self.n_ctx + self.n_batch,
            n_batch=self.n_ctx if self.whole else self.n_batch,
            n_threads=self.n_threads,
            kv=self.kv,
            flash_attention=self.flash_attention,
            n_gpu_layers=self.n_gpu_layers,
            embeddings=True,
        )


@dataclass
class Job:
    """A text that waits or is being read. `vector` is what its tokens so far are pooled to, or their sum."""

    id: str
    tokens: Sequence[int]
    submitted: float
    started: float = 0.0
    sequence: int = 0
    n_read: int = 0
    vector: Vector | float = 0.0


class Embedder(Loop):
    """Makes vectors of many texts at once with one model.

    >>> with Embedder.open(EmbedderConfig(path)) as embedder:
    ...     tokens = embedder.model.tokenize("Fever in an infant", special=False, add_bos=True)
    ...     vectors = embedder.embed([tokens])
    """

    def __init__(
        self, model: Model, config: EmbedderConfig, on_start: Callable[[str], None] | None = None
    ) -> None:
        super().__init__(model, config.n_threads)
        self.config = config
        # BERT has a vector for each position of its training, and llama.cpp aborts beyond them.
        self.limit = min(config.n_ctx, model.n_ctx_train)
        self._on_start = on_start or (lambda request_id: None)
        self._lock = threading.Lock()  # guards the three below
        self._jobs: dict[str, Job] = {}  # by id, the oldest first; only that one can be half read
        self._cancelled: set[str] = set()
        self._closed = False
        self._totals = {"prompt": 0, "steps": 0}

    @classmethod
    def open(
        cls,
        config: EmbedderConfig,
        on_progress: Callable[[float], None] | None = None,
        on_start: Callable[[str], None] | None = None,
    ) -> Embedder:
        """Load the model.

        Args:
            config: see `EmbedderConfig`.
            on_progress: called with the loaded share of the weights, 0 to 1.
            on_start: called with the id of each text before the step that reads it.

        Raises:
            InvalidModel: llama.cpp refuses the file or the settings, or needs `whole` for them.
        """
        model = Model(config.model, on_progress)
        if model.looks_ahead and not config.whole:
            model.close()
            raise InvalidModel(f"{config.path} reads a text whole; open it with whole=True.")
        return cls(model, config, on_start)

    def __enter__(self) -> Embedder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- from any thread

    def submit(self, request_id: str, tokens: Sequence[int]) -> None:
        """Queue a text.

        Raises:
            ContextLengthExceeded: it has more than `limit` tokens.
            InvalidRequest: no tokens, a token id out of range, or an id that is alive.
            EngineClosed: after `close`.
        """
        self._check(tokens)
        with self._lock:
            if self._closed:
                raise EngineClosed("The embedder is closed; start it again.")
            if request_id in self._jobs:
                raise InvalidRequest(f"A text with id {request_id!r} is being read; use another.")
            self._jobs[request_id] = Job(request_id, tokens, time.monotonic())
        self._wake.set()

    def cancel(self, request_id: str) -> None:
        """End a text at the next step, with `Failed(Cancelled)`. Unknown ids are of no effect."""
        with self._lock:
            if request_id in self._jobs:
                self._cancelled.add(request_id)
        self._wake.set()

    @property
    def busy(self) -> bool:
        return bool(self._jobs)

    def snapshot(self) -> Snapshot:
        """The embedder between two steps; its slots show the texts of the next one."""
        with self._lock:
            jobs = [job for job, _ in self._plan()]
            n_waiting = len(self._jobs) - len(jobs)
        idle = [SlotState("idle", 0)] * (self.config.n_slots - len(jobs))
        return Snapshot(
            slots=(*(SlotState("reading", job.n_read) for job in jobs), *idle),
            n_waiting=n_waiting,
            n_threads=self._n_threads,
            n_generated=0,
            n_prompt=self._totals["prompt"],
            n_cached=0,
            n_prefix_tokens=0,
            n_steps=self._totals["steps"],
        )

    # -- from the thread that owns the embedder

    def embed(self, prompts: Sequence[Sequence[int]]) -> np.ndarray[Any, np.dtype[np.float32]]:
        """The vectors of token lists: shape (len(prompts), n_embd), each of length 1.

        For programs that do not call `submit` and `step` themselves: their events would be lost.

        Raises:
            MedgeError: what `submit` or a step says of any of them.
        """
        for tokens in prompts:
            self._check(tokens)
        vectors = np.empty((len(prompts), self.model.n_embd), dtype=np.float32)
        rows = {f"embed {i}": i for i in range(len(prompts))}
        for name, i in rows.items():
            self.submit(name, prompts[i])
        failed: MedgeError | None = None
        while rows:
            for event in self.step():
                row = rows.pop(event.id, None)
                if row is None:
                    continue
                if isinstance(event, Embedded):
                    vectors[row] = np.frombuffer(event.vector, dtype="<f4")
                elif isinstance(event, Failed):
                    failed = failed or event.error
        if failed:
            raise failed
        return vectors

    def step(self) -> list[Event]:
        """Read what one batch takes of the texts, the oldest first, and return what ended."""
        events: list[Event] = []
        with self._lock:
            cancelled, self._cancelled = self._cancelled, set()
            ended = [self._jobs.pop(request_id) for request_id in cancelled]
            plan = self._plan()
        for job in ended:
            events.append(self._fail(job, Cancelled("The request was cancelled.")))
        if plan:
            events += self._read(plan)
        with self._lock:
            for event in events:
                self._jobs.pop(event.id, None)
                self._cancelled.discard(event.id)
        return events

    def close(self) -> list[Event]:
        """End all texts with `Failed(EngineClosed)`, and free the model. Closing twice is fine."""
        with self._lock:
            self._closed = True
            jobs, self._jobs, self._cancelled = list(self._jobs), {}, set()
        self._closing.close()
        closed = EngineClosed("The embedder closed before this text was read.")
        return [Failed(request_id, closed) for request_id in jobs]

    # -- parts of a step

    def _plan(self) -> list[tuple[Job, int]]:
        """The texts of the next step, and how many tokens of each."""
        plan: list[tuple[Job, int]] = []
        room = min(self.config.n_batch, self.model.config.n_batch)
        for job in self._jobs.values():
            n = len(job.tokens) - job.n_read
            if room <= 0 or len(plan) == self.config.n_slots:
                break
            if n > room and self.config.whole:
                if plan:
                    break
            elif n > room:
                n = room
            plan.append((job, n))
            room -= n
        return plan

    def _read(self, plan: list[tuple[Job, int]]) -> list[Event]:
        self._start([job for job, _ in plan])
        self._adapt_threads()
        try:
            self.model.decode([_chunk(job, n) for job, n in plan])
        except DecodeFailed as error:
            return [self._fail(job, error) for job, _ in plan]
        self._totals["steps"] += 1
        self._totals["prompt"] += sum(n for _, n in plan)
        events = []
        for job, n in plan:
            try:
                self._pool(job, n)
                if job.n_read == len(job.tokens):
                    events.append(self._end(job))
            except DecodeFailed as error:
                events.append(self._fail(job, error))
        return events

    def _start(self, jobs: list[Job]) -> None:
        taken = {job.sequence for job in jobs if job.n_read}
        free = (i for i in range(self.config.n_slots) if i not in taken)
        for job in jobs:
            if not job.n_read:
                job.sequence, job.started = next(free), time.monotonic()
                self._on_start(job.id)

    def _pool(self, job: Job, n: int) -> None:
        """Add what the last decode made of `n` tokens of a text."""
        pooled = self.model.pooled(job.sequence)
        if self.model.pooling == "mean":
            job.vector = job.vector + pooled * n  # its length does not matter
        elif self.model.pooling == "last" or not job.n_read:
            job.vector = pooled
        job.n_read += n

    def _end(self, job: Job) -> Event:
        length = float(np.linalg.norm(job.vector))
        if not 0 < length < math.inf:
            raise DecodeFailed(f"The model gave an embedding of length {length}; check the model file.")
        self.model.clear(job.sequence)
        timing = Timing(
            queued_s=job.started - job.submitted,
            ttft_s=None,
            total_s=time.monotonic() - job.submitted,
            token_times_s=(),
            n_prompt=len(job.tokens),
            n_cached=0,
            n_generated=0,
            peak_memory_bytes=peak_bytes(),
        )
        vector = np.asarray(job.vector / length, dtype="<f4")
        return Embedded(job.id, "stop", timing, vector=vector.tobytes())

    def _fail(self, job: Job, error: MedgeError) -> Event:
        if job.started:
            self.model.clear(job.sequence)
        return Failed(job.id, error)

    def _check(self, tokens: Sequence[int]) -> None:
        n, limit = len(tokens), self.limit
        if n == 0:
            raise InvalidRequest("The text has no tokens; send some text.", "input")
        if n > limit:
            larger = "" if limit == self.model.n_ctx_train else ", or start the server with a larger --ctx"
            raise ContextLengthExceeded(
                f"The text has {n} tokens; this model takes {limit} at once. Split or shorten it{larger}.",
                "input",
            )
        self.model.check_tokens(tokens)


def _chunk(job: Job, n: int) -> Chunk:
    return Chunk(job.sequence, job.n_read, job.tokens[job.n_read : job.n_read + n], outputs=n)
