"""The load generator: a closed loop of clients that stream chat completions and note the times.

It shares the cores with the server under test, so a chunk costs it a search, not a JSON parse.
Knows OpenAI's API only: not which server answers, nor what the prompts mean.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from statistics import median

import aiohttp

from edge_runtime.errors import Unavailable

from .workloads import Kind, Prompt

# A key inside a JSON string would have its quotes escaped, so these only match real keys.
# Thoughts count as text: a reader sees them, and R1 models begin with them.
HAS_TEXT = re.compile(rb'"(?:content|reasoning_content)":\s*"(?!")')
HAS_USAGE = re.compile(rb'"usage":\s*\{')
HAS_ERROR = re.compile(rb'^(?:error:|data:\s*\{\s*"error")')

Figures = dict[str, float | int | None]


@dataclass
class Answer:
    """One request as its client saw it. Times are `time.perf_counter()` seconds.

    Attributes:
        chunk_times: one for each chunk that held text. A chunk may hold several tokens.
        n_prompt, n_completion: tokens, as counted by the server.
        error: None if the answer came whole.
    """

    kind: Kind
    sent: float
    chunk_times: list[float] = field(default_factory=list)
    ended: float = 0.0
    n_prompt: int = 0
    n_completion: int = 0
    error: str | None = None

    @property
    def ttft_s(self) -> float:
        return self.chunk_times[0] - self.sent

    @property
    def itl_s(self) -> list[float]:
        return [later - earlier for earlier, later in itertools.pairwise(self.chunk_times)]

    @property
    def e2e_s(self) -> float:
        return self.ended - self.sent


@dataclass(frozen=True)
class Load:
    """What one run measured.

    Attributes:
        started: `time.perf_counter()` seconds when the first request was sent.
        wall_s: from then to the end of the last answer.
        client_cpu_share: CPU seconds of this process per second, its memory sampler included.
    """

    answers: list[Answer]
    started: float
    wall_s: float
    client_cpu_share: float


@dataclass(frozen=True)
class Asking:
    """How every prompt is sent: always `max_tokens` long, greedy, streamed.

    Attributes:
        base_url: without `/v1`.
        timeout_s: for one request, from sent to ended.
    """

    base_url: str
    max_tokens: int
    timeout_s: float
    on_answer: Callable[[], None] = lambda: None


def run_load(asking: Asking, prompts: Sequence[Prompt], n_clients: int) -> Load:
    """Sends all prompts in order; each client takes the next one as soon as it has its answer.

    Raises:
        Unavailable: the server does not say which model it serves.
    """
    return asyncio.run(_closed_loop(asking, prompts, n_clients))


async def _closed_loop(asking: Asking, prompts: Sequence[Prompt], n_clients: int) -> Load:
    answers: list[Answer] = []

    async def client(session: aiohttp.ClientSession, model: str, queue: Iterator[Prompt]) -> None:
        for prompt in queue:
            answers.append(await _ask(session, asking, model, prompt))
            asking.on_answer()

    async with aiohttp.ClientSession(
        # A connection for each request: llama-server closes after a stream without saying so, and
        # a POST that meets the closed connection is not sent again.
        connector=aiohttp.TCPConnector(limit=0, force_close=True),
        timeout=aiohttp.ClientTimeout(total=asking.timeout_s),
    ) as session:
        model = await _model_name(session, asking.base_url)
        queue = iter(prompts)
        cpu_before, start = time.process_time(), time.perf_counter()
        await asyncio.gather(*(client(session, model, queue) for _ in range(n_clients)))
        wall_s = time.perf_counter() - start
        cpu_s = time.process_time() - cpu_before
    return Load(answers, start, wall_s, cpu_s / wall_s)


async def _model_name(session: aiohttp.ClientSession, base_url: str) -> str:
    url = f"{base_url}/v1/models"
    try:
        async with session.get(url) as response:
            response.raise_for_status()
            return str(json.loads(await response.read())["data"][0]["id"])
    except (aiohttp.ClientError, asyncio.TimeoutError, LookupError, TypeError, ValueError) as error:
        raise Unavailable(f"{url} does not name a model ({error!r}).") from error


async def _ask(session: aiohttp.ClientSession, asking: Asking, model: str, prompt: Prompt) -> Answer:
    body = {
        "model": model,
        "messages": prompt.messages,
        "max_tokens": asking.max_tokens,
        "temperature": 0,
        "ignore_eos": True,  # not OpenAI's: without it the servers would answer different lengths
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    answer = Answer(prompt.kind, sent=time.perf_counter())
    try:
        async with session.post(f"{asking.base_url}/v1/chat/completions", json=body) as response:
            if response.status != 200:
                answer.error = f"HTTP {response.status}: {(await response.text())[:300]}"
            else:
                await _read_stream(response.content, answer)
    except asyncio.TimeoutError:
        answer.error = f"no complete answer in {asking.timeout_s:g} s"
    except (aiohttp.ClientError, OSError, ValueError, LookupError) as error:
        answer.error = f"{type(error).__name__}: {error}"
    answer.ended = time.perf_counter()
    return answer


async def _read_stream(content: aiohttp.StreamReader, answer: Answer) -> None:
    unfinished = b""
    is_done = False
    async for data in content.iter_any():
        now = time.perf_counter()
        *lines, unfinished = (unfinished + data).split(b"\n")
        for line in lines:
            if HAS_TEXT.search(line):
                answer.chunk_times.append(now)
            if HAS_USAGE.search(line):
                usage = json.loads(line.removeprefix(b"data:"))["usage"]
                answer.n_prompt = usage["prompt_tokens"]
                answer.n_completion = usage["completion_tokens"]
            elif HAS_ERROR.match(line):
                answer.error = line[:300].decode(errors="replace")
            elif line.startswith(b"data: [DONE]"):
                is_done = True
    if answer.error is None:
        if not is_done:
            answer.error = "the stream ended before [DONE]"
        elif not answer.chunk_times:
            answer.error = "the answer held no text"
        elif not answer.n_completion:
            answer.error = "the stream held no usage, so its tokens cannot be counted"


def percentile(values: Sequence[float], q: float) -> float | None:
    """The q-th percentile, 0 to 100, by linear interpolation; None if there are no values."""
    if not values:
        return None
    ordered = sorted(values)
    place = (len(ordered) - 1) * q / 100
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def figures(load: Load, max_tokens: int) -> Figures:
    """One number for each name, in seconds and tokens; None where nothing was measured.

    Failed requests are counted in `n_errors` and in nothing else. ITL is between chunks, so
    `tokens_per_chunk` stands beside it: 1 where every token is sent on its own.
    """
    whole = [answer for answer in load.answers if answer.error is None]
    gaps = [gap for answer in whole for gap in answer.itl_s]
    n_tokens = sum(answer.n_completion for answer in whole)
    n_chunks = sum(len(answer.chunk_times) for answer in whole)
    found: Figures = {
        "tokens_per_s": n_tokens / load.wall_s if whole else None,
        "itl_p50_s": percentile(gaps, 50),
        "itl_p99_s": percentile(gaps, 99),
        "itl_max_s": max(gaps, default=None),
        "e2e_p50_s": percentile([answer.e2e_s for answer in whole], 50),
        "wall_s": load.wall_s,
        "client_cpu_share": load.client_cpu_share,
        "tokens_per_chunk": n_tokens / n_chunks if n_chunks else None,
        "n_requests": len(load.answers),
        "n_errors": len(load.answers) - len(whole),
        "n_cut_short": sum(answer.n_completion < max_tokens for answer in whole),
    }
    for name, answers in (
        ("", whole),
        ("_short", [answer for answer in whole if answer.kind == "short"]),
        ("_long", [answer for answer in whole if answer.kind == "long"]),
    ):
        ttfts = [answer.ttft_s for answer in answers]
        found[f"ttft{name}_p50_s"] = percentile(ttfts, 50)
        found[f"ttft{name}_p95_s"] = percentile(ttfts, 95)
        n_prompts = [answer.n_prompt for answer in answers]
        found[f"prompt_tokens{name}_p50"] = median(n_prompts) if n_prompts else None
    return found
