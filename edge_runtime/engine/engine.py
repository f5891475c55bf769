"""The loop: admit, plan, decode, absorb. Token lists in, events out.

It knows nothing of HTTP, chat forms or processes. One thread calls `step`; `submit`, `cancel` and
`forget` may be called from any thread.
"""

from __future__ import annotations

import random
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from ..device.memory import peak_bytes
from ..errors import (
    Cancelled,
    ContextLengthExceeded,
    DeadlineExceeded,
    DecodeFailed,
    EngineClosed,
    InvalidRequest,
    MedgeError,
    QueueFull,
)
from .beginnings import Beginnings
from .constraint import Constraint, Grammars
from .llama import N_EXTRA_OUTPUTS, Chunk, Model, ModelConfig, Sampler
from .loop import Loop
from .prefix import MIN_SHARED, PrefixStore, common_length
from .repetition import Repetition
from .request import (
    Delta,
    Done,
    Event,
    Failed,
    FinishReason,
    Request,
    Sampling,
    Timing,
    TokenLogprob,
)
from .scheduler import Scheduler, Work
from .text import TextStream
from .thoughts import Thoughts


@dataclass(frozen=True)
class EngineConfig:
    """How to run a model.

    Attributes:
        path: a GGUF file that `models/gguf.py` has checked.
        n_slots: how many requests are answered at once.
        n_ctx: tokens a slot, prompt and answer together.
        n_threads: at most this many; fewer while other programs use the cores.
        kv: type of the KV memory, "f16" or "q8_0".
        max_waiting: requests without a slot before `submit` refuses.
        step_limit_s: how long answering slots may wait while prompts are read.
        prefix_tokens: memory for shared beginnings, beyond that of the slots, in tokens.
        n_batch: tokens in one step at most.
        beginnings: folder for the states of shared beginnings; None keeps none on disk.
        beginnings_bytes: what may lie there, and in the folders of other models beside it.
    """

    path: Path
    n_slots: int = 4
    n_ctx: int = 2048
    n_threads: int = 2
    kv: str = "f16"
    flash_attention: bool = True
    n_gpu_layers: int = -1
    max_waiting: int = 64
    step_limit_s: float = 0.1
    prefix_tokens: int = 1024
    n_batch: int = 256
    beginnings: Path | None = None
    beginnings_bytes: int = 0

    @property
    def model(self) -> ModelConfig:
        return ModelConfig(
            path=self.path,
            n_sequences=self.n_slots,
            n_ctx=self.n_ctx,
            n_batch=self.n_batch,
            n_threads=self.n_threads,
            kv=self.kv,
            flash_attention=self.flash_attention,
            n_gpu_layers=self.n_gpu_layers,
        )


@dataclass
class Slot:
    """One sequence, and the request that it answers, if any.

    `tokens` are the prompt and what was generated; the first `n_decoded` of them are in KV memory. They
    stay there after the answer, for a next request that begins with them.
    """

    sequence: int
    tokens: list[int] = field(default_factory=list)
    n_decoded: int = 0
    conversation: str | None = None
    n_shared: int | None = None
    last_used: float = 0.0
    job: Job | None = None

    @property
    def resident(self) -> list[int]:
        return self.tokens[: self.n_decoded]

    @property
    def n_pending(self) -> int:
        return len(self.tokens) - self.n_decoded

    @property
    def is_spare(self) -> bool:
        """Whether nobody's history is lost with what it holds: nothing, or what templates begin with."""
        return self.job is None and self.n_decoded <= (self.n_shared or 0)


@dataclass
class Job:
    """What is known of a request between submission and its last event."""

    request: Request
    constraint: Constraint | None
    arrival: int
    submitted: float
    started: float = 0.0
    n_cached: int = 0
    sampler: Sampler | None = None
    thoughts: Thoughts | None = None
    text: TextStream = field(default_factory=TextStream)
    repetition: Repetition | None = None
    answered: bool = False
    echoed: bool = False
    loop: bool = False
    token_times: list[float] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprob] = field(default_factory=list)

    @property
    def n_generated(self) -> int:
        return len(self.token_times)

    @property
    def answering(self) -> bool:
        return bool(self.token_times)

    @property
    def thinking(self) -> bool:
        return self.thoughts is not None and self.thoughts.end is None

    @property
    def deadline(self) -> float | None:
        limit = self.request.deadline_s
        return None if limit is None else self.submitted + limit


@dataclass(frozen=True)
class SlotState:
    """What a slot is doing, for people to look at."""

    state: Literal["idle", "reading", "answering"]
    n_tokens: int


@dataclass(frozen=True)
class Snapshot:
    """The engine at one moment. Counts are since it was opened."""

    slots: tuple[SlotState, ...]
    n_waiting: int
    n_threads: int
    n_generated: int
    n_prompt: int
    n_cached: int
    n_prefix_tokens: int
    n_steps: int

    @property
    def n_busy(self) -> int:
        """Slots that read or answer."""
        return sum(slot.state != "idle" for slot in self.slots)


class Engine(Loop):
    """Answers many requests at once with one model.

    >>> with Engine.open(EngineConfig(path)) as engine:
    ...     tokens = engine.model.tokenize("Fever in an infant", special=False, add_bos=True)
    ...     for event in engine.generate(Request("1", tokens, max_tokens=40)):
    ...         print(event)
    """

    def __init__(
        self, model: Model, config: EngineConfig, on_start: Callable[[str], None] | None = None
    ) -> None:
        super().__init__(model, config.n_threads)
        self.config = config
        self._on_start = on_start or (lambda request_id: None)
        self._scheduler = Scheduler(config.n_batch, config.step_limit_s)
        self._slots = [Slot(i) for i in range(config.n_slots)]
        self._prefixes = PrefixStore(config.prefix_tokens)
        folder = config.beginnings if model.can_share else None
        self._beginnings = Beginnings(folder, config.beginnings_bytes)
        self._grammars = Grammars(model)
        self._lock = threading.Lock()  # guards the seven below
        self._waiting: deque[Job] = deque()
        self._rewrites: dict[str, list[int]] = {}
        self._cancelled: set[str] = set()
        self._forgotten: set[str] = set()
        self._giving_back = False
        self._alive: set[str] = set()
        self._closed = False
        self._n_arrived = 0
        self._events: list[Event] = []
        self._totals = {"generated": 0, "prompt": 0, "cached": 0, "steps": 0}

    @classmethod
    def open(
        cls,
        config: EngineConfig,
        on_progress: Callable[[float], None] | None = None,
        on_start: Callable[[str], None] | None = None,
    ) -> Engine:
        """Load the model and reserve all memory.

        Args:
            config: see `EngineConfig`.
            on_progress: called with the loaded share of the weights, 0 to 1.
            on_start: called with the id of each request when it gets a slot.

        Raises:
            InvalidModel: llama.cpp refuses the file or the settings.
        """
        return cls(Model(config.model, on_progress), config, on_start)

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- from any thread

    def submit(self, request: Request) -> None:
        """Queue a request.

        Raises:
            ContextLengthExceeded: the prompt leaves no room for an answer.
            InvalidRequest: an empty prompt, a token id out of range, or an id that is alive.
            InvalidGrammar: the grammar cannot be used.
            QueueFull: `max_waiting` requests are waiting already.
            EngineClosed: after `close`.
        """
        self._check(request)
        constraint = self._grammars.compile(request.grammar) if request.grammar else None
        with self._lock:
            if self._closed:
                raise EngineClosed("The engine is closed; start it again.")
            if request.id in self._alive:
                raise InvalidRequest(f"A request with id {request.id!r} is running; use another.")
            if len(self._waiting) >= self.config.max_waiting:
                raise QueueFull(
                    f"{len(self._waiting)} requests are waiting, which is the limit; try again later.",
                    retry_after_s=1.0,
                )
            self._n_arrived += 1
            self._alive.add(request.id)
            self._waiting.append(Job(request, constraint, self._n_arrived, time.monotonic()))
        self._wake.set()

    def cancel(self, request_id: str) -> None:
        """End a request at the next step, with `Failed(Cancelled)`. Unknown ids are of no effect."""
        with self._lock:
            if request_id in self._alive:
                self._cancelled.add(request_id)
        self._wake.set()

    def forget(self, conversation: str) -> None:
        """Clear what the slots hold of a conversation, at the next step that finds it idle."""
        with self._lock:
            self._forgotten.add(conversation)
        self._wake.set()

    def rewrite(self, conversation: str, tokens: Sequence[int]) -> None:
        """Make the slot of a conversation hold `tokens`, what its next turn will begin with, instead of what
        it holds. They are read while there is nothing else to do; a next turn takes what is there by then.
        """
        if self.model.can_share and len(tokens) < self.config.n_ctx:
            self.model.check_tokens(tokens)
            with self._lock:
                self._rewrites[conversation] = list(tokens)
            self._wake.set()

    @property
    def has_spare_slot(self) -> bool:
        """Whether a beginning could be read now without loss for anybody."""
        return not self.busy and any(slot.is_spare for slot in self._slots)

    def keeps(self, tokens: Sequence[int]) -> bool:
        """Whether the state of this beginning is on disk, or will not be kept there."""
        return not self._beginnings.wants(tokens)

    def give_back(self) -> None:
        """Drop shared beginnings at the next step: memory that can be filled again."""
        with self._lock:
            self._giving_back = True
        self._wake.set()

    @property
    def busy(self) -> bool:
        return bool(self._waiting or self._rewrites) or any(slot.job for slot in self._slots)

    def snapshot(self) -> Snapshot:
        return Snapshot(
            slots=tuple(_state(slot) for slot in self._slots),
            n_waiting=len(self._waiting),
            n_threads=self._n_threads,
            n_generated=self._totals["generated"],
            n_prompt=self._totals["prompt"],
            n_cached=self._totals["cached"],
            n_prefix_tokens=self._prefixes.n_tokens,
            n_steps=self._totals["steps"],
        )

    # -- from the thread that owns the engine

    def generate(self, *requests: Request) -> Iterator[Event]:
        """Submit, and step until each of `requests` has had its last event."""
        ids = {request.id for request in requests}
        for request in requests:
            self.submit(request)
        while ids:
            for event in self.step():
                if event.id in ids and not isinstance(event, Delta):
                    ids.discard(event.id)
                yield event

    def step(self) -> list[Event]:
        """Advance every request by one step, and return what happened."""
        self._admit()
        plan = self._plan()
        if plan:
            self._decode(plan)
        elif self._rewrites:
            self._rewrite()
        events, self._events = self._events, []
        return events

    def close(self) -> list[Event]:
        """End all requests with `Failed(EngineClosed)`, and free the model. Closing twice is fine."""
        with self._lock:
            self._closed = True
            waiting = list(self._waiting)
            self._waiting.clear()
        for job in waiting:
            self._fail(job, EngineClosed("The engine closed before this request was answered."))
        for slot in self._slots:
            if slot.job:
                self._fail_slot(slot, EngineClosed("The engine closed during this answer."))
        self._closing.close()
        events, self._events = self._events, []
        return events

    # -- admit

    def _admit(self) -> None:
        now = time.monotonic()
        with self._lock:
            cancelled, self._cancelled = self._cancelled, set()
            ended = [j for j in self._waiting if j.request.id in cancelled or _late(j, now)]
            for job in ended:
                self._waiting.remove(job)
        for job in ended:
            self._fail(job, _end_of(job, now))
        for slot in self._slots:
            if slot.job and (slot.job.request.id in cancelled or _late(slot.job, now)):
                self._fail_slot(slot, _end_of(slot.job, now))
        self._forget()
        while True:
            free = [slot for slot in self._slots if slot.job is None]
            with self._lock:
                if not free or not self._waiting:
                    return
                job = self._waiting.popleft()
            self._place(job, free)

    def _forget(self) -> None:
        with self._lock:
            names, self._forgotten = self._forgotten, set()
            giving_back, self._giving_back = self._giving_back, False
        if giving_back:
            self._prefixes.clear()
        for name in names:
            self._prefixes.forget(name)
            self._rewrites.pop(name, None)
        for slot in self._slots:
            if slot.conversation in names and slot.conversation is not None:
                if slot.job:
                    self._forgotten.add(slot.conversation)
                else:
                    self._empty(slot)

    def _place(self, job: Job, free: Sequence[Slot]) -> None:
        """Give `job` one of the free slots, with as much of its prompt as is known already."""
        request = job.request
        if request.conversation is not None:
            self._rewrites.pop(request.conversation, None)
        job.started = time.monotonic()
        self._on_start(request.id)
        job.sampler = self.model.sampler(_seeded(request.sampling), request.tokens)
        job.text = TextStream(request.stop)
        if request.thinking:
            job.thoughts = Thoughts(request, self.config.n_ctx)
        if request.cut_loops and not request.grammar and not request.ignore_eos:
            job.repetition = Repetition()
        slot = _best_slot(free, request)
        n = self._reuse(slot, request) if self.model.can_share else 0
        if n == 0:
            self._empty(slot)
        slot.tokens, slot.n_decoded, slot.job = list(request.tokens), n, job
        if job.thoughts and job.thoughts.end:  # there is no room for any
            slot.tokens += job.thoughts.thinking.close
        slot.conversation, slot.n_shared = request.conversation, request.n_shared
        job.n_cached = n

    def _reuse(self, slot: Slot, request: Request) -> int:
        """Make `slot` hold the longest known beginning of the prompt; returns its length."""
        tokens = request.tokens
        usable = len(tokens) - 1  # the last token is decoded anew: its logits are needed
        if request.scores_prompt:
            usable = min(usable, max(0, request.score_from - 1))
        own = _common(slot, slot.resident, request)
        kept, n_kept = self._prefixes.find(tokens)
        n_other, other = max(
            ((_common(s, s.resident, request), s) for s in self._slots if s is not slot),
            key=lambda pair: pair[0],
            default=(0, slot),
        )
        n = min(max(n_kept, n_other), usable)
        beginning = self._beginnings.find(tokens[:usable])
        if len(beginning) > max(n, own):
            state = self._beginnings.load(beginning)
            if state and (n_loaded := self._load(slot, state, len(beginning))):
                return n_loaded
            self._beginnings.drop(beginning)
            own = 0 if state else own  # what the slot held has made way
        if n > own and n >= MIN_SHARED:
            if kept and n_kept >= n:
                self._prefixes.use(kept, request.conversation)
                return self._load(slot, kept.state, n)
            return self._share(other, slot, request, n)
        own = min(own, usable)
        return own if own and self.model.truncate(slot.sequence, own) else 0

    def _share(self, source: Slot, slot: Slot, request: Request, n: int) -> int:
        """Copy the first `n` tokens of one slot to another, and keep them for later ones."""
        sent_by = (source.conversation, request.conversation)
        n = self._load(slot, self.model.save(source.sequence), n)
        if n and self._prefixes.wants(request.tokens[:n]):
            self._prefixes.keep(request.tokens[:n], self.model.save(slot.sequence), sent_by)
        return n

    def _load(self, slot: Slot, state: bytes, n: int) -> int:
        """Make `slot` hold the first `n` tokens of a saved state; returns 0 if that failed."""
        self._empty(slot)
        if self.model.load(slot.sequence, state) and self.model.truncate(slot.sequence, n):
            return n
        return 0

    def _empty(self, slot: Slot) -> None:
        self.model.clear(slot.sequence)
        slot.tokens, slot.n_decoded, slot.conversation, slot.n_shared = [], 0, None, None

    # -- plan

    def _plan(self) -> dict[int, int]:
        running = [slot for slot in self._slots if slot.job]
        if not running:
            return {}
        behind = self._follow(running) if self.model.can_share else set()
        n_echo = sum(1 for s in running if s.job and s.job.request.scores_prompt)
        work = [
            Work(
                slot.sequence,
                slot.n_pending,
                job.answering and slot.n_pending == 1,
                job.arrival,
                _to_score(slot, job.request, n_echo)
                if job.request.scores_prompt
                else self._to_keep(slot, job),
            )
            for slot in running
            if (job := slot.job) and slot.sequence not in behind
        ]
        return self._scheduler.plan(work)

    def _to_keep(self, slot: Slot, job: Job) -> int:
        """Tokens up to where the state of this slot is a beginning to keep; very many if it will not be."""
        n = job.request.n_shared or 0
        if n < MIN_SHARED or n <= slot.n_decoded or not self._beginnings.wants(slot.tokens[:n]):
            return 1 << 30
        return n - slot.n_decoded

    def _follow(self, running: list[Slot]) -> set[int]:
        """Copy beginnings that another slot has read meanwhile; return who should wait for one being read.

        A slot only waits for one that the order puts before it, so somebody always goes on.
        """
        readers = sorted(
            (s for s in running if s.job and not s.job.answering and not s.job.request.scores_prompt),
            key=lambda s: (s.n_pending, s.job.arrival if s.job else 0),
        )
        behind: set[int] = set()
        for i, slot in enumerate(readers):
            for other in running:
                assert slot.job is not None
                if other is slot or slot.sequence in behind:
                    continue
                n = min(_common(other, other.tokens, slot.job.request), len(slot.tokens) - 1)
                if n - slot.n_decoded < MIN_SHARED:
                    continue
                if other.n_decoded >= n:
                    self._take(slot, other, n)
                elif other in readers[:i]:
                    behind.add(slot.sequence)
        return behind

    def _take(self, slot: Slot, other: Slot, n: int) -> None:
        assert slot.job is not None
        request, tokens = slot.job.request, slot.tokens
        slot.job.n_cached = slot.n_decoded = self._share(other, slot, request, n)
        slot.tokens, slot.conversation, slot.n_shared = tokens, request.conversation, request.n_shared

    # -- decode

    def _decode(self, plan: dict[int, int]) -> None:
        self._adapt_threads()
        slots = [self._slots[i] for i in plan]
        chunks = [_chunk(slot, plan[slot.sequence]) for slot in slots]
        n_answering = sum(1 for s in slots if s.job and s.job.answering and s.n_pending == 1)
        n_prompt = sum(plan.values()) - n_answering
        begin = time.monotonic()
        try:
            ends = self.model.decode(chunks)
        except DecodeFailed as error:
            for slot in slots:
                self._fail_slot(slot, error)
                self._empty(slot)
            return
        self._absorb(slots, chunks, ends)
        self._scheduler.observe(n_answering, n_prompt, time.monotonic() - begin)
        self._totals["steps"] += 1
        self._totals["prompt"] += n_prompt

    def _rewrite(self) -> None:
        """Read the next piece of what a conversation's slot is to hold. Short, so that nobody waits long."""
        with self._lock:
            conversation, tokens = next(iter(self._rewrites.items()))
        own = [s for s in self._slots if s.conversation == conversation]
        slot = max(own, key=lambda s: common_length(s.resident, tokens), default=None)
        n = common_length(slot.resident, tokens) if slot else 0
        piece = tokens[n : n + self._scheduler.aside_tokens()]
        if slot is None or not piece or not self.model.truncate(slot.sequence, n):
            self._rewrites.pop(conversation, None)
            return
        slot.tokens, slot.n_decoded = tokens[: n + len(piece)], n
        try:
            self.model.decode([Chunk(slot.sequence, n, piece, 0)])
            slot.n_decoded += len(piece)
        except DecodeFailed:
            self._empty(slot)
            self._rewrites.pop(conversation, None)

    # -- absorb

    def _absorb(self, slots: list[Slot], chunks: list[Chunk], ends: list[int]) -> None:
        for slot, chunk, end in zip(slots, chunks, ends):
            slot.n_decoded += len(chunk.tokens)
            job = slot.job
            assert job is not None
            if job.request.scores_prompt and not job.answering and chunk.outputs == len(chunk.tokens):
                self._echo(slot, job, chunk, end)
            n_kept = job.request.n_shared or 0
            if slot.n_decoded == n_kept >= MIN_SHARED and self._beginnings.wants(slot.resident):
                self._beginnings.keep(slot.resident, self.model.save(slot.sequence))
            if slot.n_pending == 0:
                try:
                    self._next_token(slot, job, end)
                except MedgeError as error:
                    self._fail_slot(slot, error)

    def _echo(self, slot: Slot, job: Job, chunk: Chunk, end: int) -> None:
        n_top = job.request.n_top_logprobs or 0
        prompt = job.request.tokens
        if chunk.start == job.request.score_from == 0:
            job.prompt_logprobs.append(
                TokenLogprob(prompt[0], self.model.piece(prompt[0], special=True), None)
            )
        first = end - len(chunk.tokens) + 1
        for i, position in enumerate(range(chunk.start, chunk.start + len(chunk.tokens))):
            if position + 1 < len(prompt):
                row = self.model.logits(first + i)
                job.prompt_logprobs.append(self.model.logprob(row, prompt[position + 1], n_top))

    def _next_token(self, slot: Slot, job: Job, end: int) -> None:
        request = job.request
        if request.max_tokens == 0:
            self._emit(job, "")
            self._finish(slot, job, "length")
            return
        row = self.model.logits(end)
        n_top = request.n_top_logprobs or 0
        if request.n_top_logprobs is not None:
            clean = row.copy()  # sampling may change the row
        constraint = None if job.thinking else job.constraint
        # After thoughts the model owes an answer, and may not end before its first word.
        if request.ignore_eos or (job.thoughts and not job.thinking and not job.answered and not constraint):
            self.model.forbid_end(row)
        if constraint:
            constraint.apply(row)
        assert job.sampler is not None
        token = job.sampler.sample(row)
        if constraint:
            constraint.accept(token)
        if self.model.is_end(token) and not request.ignore_eos:
            if job.thoughts and job.thinking:
                job.thoughts.end = "end"
                self._close_thoughts(slot, job, job.thoughts)
            else:
                # With a prompt that is scored the end is scored too: its clients leave out the last token,
                # and would otherwise leave out the prompt's.
                scored = (self.model.logprob(clean, token, n_top),) if request.scores_prompt else ()
                if scored or (request.echo and not job.echoed):
                    self._emit(job, "", scored)
                self._finish(slot, job, "stop")
            return
        job.token_times.append(time.monotonic() - job.submitted)
        self._totals["generated"] += 1
        slot.tokens.append(token)
        if job.thoughts and job.thinking:
            self._think(slot, job, job.thoughts, token)
            return
        logprobs: tuple[TokenLogprob, ...] = ()
        if request.n_top_logprobs is not None:
            logprobs = (self.model.logprob(clean, token, n_top),)
        self._emit(job, self._visible(job, job.text.feed(self.model.piece(token))), logprobs)
        if job.text.stopped:
            self._finish(slot, job, "stop")
        elif job.n_generated == request.max_tokens or len(slot.tokens) >= self.config.n_ctx:
            self._finish(slot, job, "length")
        elif job.repetition and job.repetition.feed(token):
            job.loop = True
            self._finish(slot, job, "length")

    def _think(self, slot: Slot, job: Job, thoughts: Thoughts, token: int) -> None:
        # A mark can be a control token, whose text is not shown otherwise.
        text = thoughts.feed(token, self.model.piece(token, special=True))
        if text:
            self._events.append(Delta(job.request.id, "", 1, thoughts=text))
        if thoughts.end:
            self._close_thoughts(slot, job, thoughts)

    def _close_thoughts(self, slot: Slot, job: Job, thoughts: Thoughts) -> None:
        """Begin the answer: with what the model itself has written, or with what it should have."""
        if thoughts.end == "closed":
            if job.constraint:  # which begins after whatever else the token held
                slot.tokens += thoughts.thinking.gap
            elif rest := self._visible(job, job.text.feed(thoughts.rest.encode())):
                self._events.append(Delta(job.request.id, rest))
            return
        if text := thoughts.finish():
            self._events.append(Delta(job.request.id, "", thoughts=text))
        slot.tokens += thoughts.thinking.close

    def _visible(self, job: Job, text: str) -> str:
        """New text of an answer, without the white space between thoughts and their answer."""
        if job.thoughts and not job.answered:
            text = text.lstrip()
        job.answered = job.answered or bool(text)
        return text

    def _emit(self, job: Job, text: str, logprobs: tuple[TokenLogprob, ...] = ()) -> None:
        prompt_logprobs, job.prompt_logprobs = tuple(job.prompt_logprobs), []
        if job.request.echo and not job.echoed:
            text, job.echoed = job.request.prompt_text + text, True
        if text or logprobs or prompt_logprobs:
            self._events.append(Delta(job.request.id, text, 1, logprobs, prompt_logprobs))

    # -- the ends

    def _finish(self, slot: Slot, job: Job, reason: FinishReason) -> None:
        rest = self._visible(job, job.text.finish())
        if rest:
            self._events.append(Delta(job.request.id, rest))
        if job.text.stopped:
            reason = "stop"
        times = job.token_times
        timing = Timing(
            queued_s=job.started - job.submitted,
            ttft_s=times[0] if times else None,
            total_s=time.monotonic() - job.submitted,
            token_times_s=tuple(times),
            n_prompt=len(job.request.tokens),
            n_cached=job.n_cached,
            n_generated=len(times),
            peak_memory_bytes=peak_bytes(),
        )
        self._totals["cached"] += job.n_cached
        self._release(slot)
        n_thoughts, end = (job.thoughts.n_tokens, job.thoughts.end) if job.thoughts else (0, None)
        self._end(job, Done(job.request.id, reason, timing, n_thoughts, end, job.loop))

    def _fail_slot(self, slot: Slot, error: MedgeError) -> None:
        job = slot.job
        assert job is not None
        self._release(slot)
        self._fail(job, error)

    def _fail(self, job: Job, error: MedgeError) -> None:
        self._end(job, Failed(job.request.id, error))

    def _end(self, job: Job, event: Event) -> None:
        if job.sampler:
            job.sampler.close()
        with self._lock:
            self._alive.discard(job.request.id)
            self._cancelled.discard(job.request.id)
        self._events.append(event)

    def _release(self, slot: Slot) -> None:
        slot.tokens = slot.resident
        slot.job = None
        slot.last_used = time.monotonic()

    # -- checks

    def _check(self, request: Request) -> None:
        n, limit = len(request.tokens), self.config.n_ctx
        if n == 0:
            raise InvalidRequest("The prompt has no tokens; send some text.", "prompt")
        room = 0 if request.max_tokens == 0 else 1
        if request.thinking:
            room += len(request.thinking.close)
        if n + room > limit:
            raise ContextLengthExceeded(
                f"The prompt has {n} tokens; a slot holds {limit}, prompt and answer together. "
                f"Shorten it to {limit - max(1, room)} or less, or start the server with a larger --ctx.",
                "messages",
            )
        self.model.check_tokens(request.tokens)
        self.model.check_tokens([token for token, _ in request.sampling.logit_bias])


def _best_slot(free: Sequence[Slot], request: Request) -> Slot:
    """A free slot that this request continues, else the one that was left alone longest."""

    def worth(slot: Slot) -> int:
        n = _common(slot, slot.resident, request)
        # Half of what it holds: else the history of a conversation would be lost for a common greeting.
        return n if n * 2 >= slot.n_decoded else 0

    # A beginning that nobody has asked with shall not cost anybody his history.
    unasked = request.n_shared == len(request.tokens)
    return max(free, key=lambda s: (unasked and s.is_spare, worth(s), s.n_decoded == 0, -s.last_used))


def _common(slot: Slot, held: Sequence[int], request: Request) -> int:
    """How many of a slot's tokens a request may take for its own."""
    n = common_length(held, request.tokens)
    if request.conversation is not None and request.conversation == slot.conversation:
        return n
    limits = [limit for limit in (slot.n_shared, request.n_shared) if limit is not None]
    return min([n, *limits])


def _chunk(slot: Slot, n: int) -> Chunk:
    tokens = slot.tokens[slot.n_decoded : slot.n_decoded + n]
    last = slot.n_decoded + n == len(slot.tokens)
    job = slot.job
    echo = (
        job is not None
        and job.request.scores_prompt
        and not job.answering
        and slot.n_decoded >= job.request.score_from - 1
    )
    return Chunk(slot.sequence, slot.n_decoded, tokens, n if echo else int(last))


def _to_score(slot: Slot, request: Request, n_scoring: int) -> int:
    """Prompt tokens to read at most: up to where scoring begins, then as many as there are rows for."""
    before = request.score_from - 1 - slot.n_decoded
    return before if before > 0 else max(1, N_EXTRA_OUTPUTS // n_scoring)


def _late(job: Job, now: float) -> bool:
    return job.deadline is not None and now > job.deadline


def _end_of(job: Job, now: float) -> MedgeError:
    if _late(job, now):
        return DeadlineExceeded(
            f"The request was not finished after {job.request.deadline_s:g} s, its deadline; "
            "ask for fewer tokens, or give it more time."
        )
    return Cancelled("The request was cancelled.")


def _seeded(sampling: Sampling) -> Sampling:
    return sampling if sampling.seed is not None else replace(sampling, seed=random.getrandbits(32))


def _state(slot: Slot) -> SlotState:
    if slot.job is None:
        return SlotState("idle", slot.n_decoded)
    return SlotState("answering" if slot.job.answering else "reading", slot.n_decoded)
