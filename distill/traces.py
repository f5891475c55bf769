"""A teacher's written answers, from any endpoint that speaks OpenAI's chat completions.

Many requests are in flight at once; memory stays flat, because rows are asked one after the other and every
answer is written to traces.jsonl when it comes. Killed and run again, it asks only for what is missing.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from .config import Traces
from .data import Row
from .errors import TeacherFailed
from .progress import Report, silent
from .verify import judge

# Changes when the words of a prompt do (data.Row.prompt).
PROMPT_VERSION = 1
RETRIED = {408, 409, 425, 429, 500, 502, 503, 504}
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 60.0
# So many questions in a row that could not be asked mean that the endpoint is gone.
MAX_FAILED = 20


@dataclass
class Tally:
    """What became of the samples."""

    asked: int = 0
    accepted: int = 0
    failed: int = 0
    retries: int = 0
    completion_tokens: int = 0
    rejected: Counter[str] = field(default_factory=Counter)

    def add(self, trace: dict[str, Any]) -> None:
        self.asked += 1
        self.completion_tokens += trace["completion_tokens"] or 0
        if trace["rejected"]:
            self.rejected[trace["rejected"]] += 1
        else:
            self.accepted += 1

    def as_json(self) -> dict[str, Any]:
        return asdict(self) | {"rejected": dict(self.rejected.most_common())}


class _Unusable(Exception):
    """This question gets no answer; the message says why."""


class Teacher:
    """Asks for what is missing in `path`, and writes what comes."""

    def __init__(self, given: Traces, path: Path, on_progress: Report = silent) -> None:
        self.given, self.path, self.on_progress = given, path, on_progress
        self.tally = Tally()
        self.failures: Counter[str] = Counter()
        self._failed_in_a_row = 0

    def ask(self, rows: Sequence[Row]) -> Tally:
        """Ask for every sample of every row.

        Raises:
            TeacherFailed: the endpoint is not there, or refuses; what it has answered is kept.
        """
        done = set()
        for trace in read_traces(self.path):
            done.add((trace["id"], trace["sample"]))
            self.tally.add(trace)
        total = len(rows) * self.given.samples
        work = ((row, n) for row in rows for n in range(self.given.samples) if (row.id, n) not in done)
        asyncio.run(self._ask_all(work, total))
        if self.failures:
            reason, _ = self.failures.most_common(1)[0]
            raise TeacherFailed(
                f"{self.tally.failed} of {total} samples could not be had from {self.given.endpoint}, "
                f"mostly: {reason}. What came is kept; the same command asks for the rest."
            )
        return self.tally

    async def _ask_all(self, work: Iterator[tuple[Row, int]], total: int) -> None:
        key = os.environ.get(self.given.api_key_env or "", "")
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        connector = aiohttp.TCPConnector(limit=self.given.in_flight)
        timeout = aiohttp.ClientTimeout(total=self.given.timeout_s)
        with self.path.open("a", encoding="utf-8") as file:
            async with aiohttp.ClientSession(
                connector=connector, timeout=timeout, headers=headers
            ) as session:

                async def worker() -> None:
                    for row, n in work:  # shared: each takes the next
                        await self._ask_one(session, file, row, n, total)

                workers = [asyncio.create_task(worker()) for _ in range(min(self.given.in_flight, total))]
                try:
                    await asyncio.gather(*workers)
                finally:
                    for task in workers:
                        task.cancel()
                    await asyncio.gather(*workers, return_exceptions=True)

    async def _ask_one(self, session: aiohttp.ClientSession, file: Any, row: Row, n: int, total: int) -> None:
        began = time.time()
        try:
            choice, usage = await self._post(session, self._body(row, n))
        except _Unusable as error:
            self.failures[str(error)] += 1
            self.tally.failed += 1
            self._failed_in_a_row += 1
            if self._failed_in_a_row >= MAX_FAILED:
                raise TeacherFailed(
                    f"The last {MAX_FAILED} questions got no answer from {self.given.endpoint}: {error}. "
                    "What came is kept; run again when it is there."
                ) from None
            return
        self._failed_in_a_row = 0
        message = choice["message"]
        judged = judge(
            row,
            message.get("content") or "",
            message.get("reasoning_content") or message.get("reasoning"),
            choice.get("finish_reason"),
            self.given,
        )
        trace = {
            "id": row.id, "sample": n, "model": self.given.model, "prompt_version": PROMPT_VERSION,
            "temperature": self.given.temperature, "top_p": self.given.top_p, "seed": self._seed(row, n),
            **asdict(judged),
            "completion_tokens": usage.get("completion_tokens"), "seconds": round(time.time() - began, 3),
        }  # fmt: skip
        file.write(json.dumps(trace, ensure_ascii=False) + "\n")
        file.flush()
        self.tally.add(trace)
        self.on_progress(self.tally.asked, total)

    def _body(self, row: Row, n: int) -> dict[str, Any]:
        return {
            "model": self.given.model,
            "messages": [{"role": "user", "content": row.prompt("reason")}],
            "temperature": self.given.temperature,
            "top_p": self.given.top_p,
            "max_tokens": self.given.max_tokens,
            "seed": self._seed(row, n),
        }

    def _seed(self, row: Row, n: int) -> int:
        return random.Random(f"{row.id}:{n}").getrandbits(31)

    async def _post(self, session: aiohttp.ClientSession, body: dict[str, Any]) -> tuple[Any, Any]:
        """One choice and the usage.

        Raises:
            _Unusable: after the retries.
            TeacherFailed: trying again cannot help.
        """
        reason, pause = "", FIRST_PAUSE_S
        for attempt in range(self.given.retries + 1):
            if attempt:
                self.tally.retries += 1
                # Spread out, so that many do not come back at once.
                await asyncio.sleep(min(pause, LONGEST_PAUSE_S) * random.uniform(0.5, 1))
                pause *= 2
            try:
                async with session.post(f"{self.given.endpoint}/chat/completions", json=body) as response:
                    text = await response.text()
                    if response.status in RETRIED:
                        reason = f"status {response.status}"
                        pause = max(pause, _seconds(response.headers.get("Retry-After")))
                        continue
                    if response.status != 200:
                        raise TeacherFailed(
                            f"{self.given.endpoint} refuses with status {response.status}: {text[:200]!r}. "
                            "Check the model's name, the key and the limits under [traces]."
                        )
            except asyncio.TimeoutError:
                reason = f"no answer within {self.given.timeout_s:g} s"
                continue
            except (aiohttp.ClientError, UnicodeDecodeError) as error:
                reason = f"{type(error).__name__}: {error}"
                continue
            try:
                value = json.loads(text)
                choice = value["choices"][0]
                if not isinstance(choice["message"].get("content"), (str, type(None))):
                    raise TypeError("content")
                return choice, value.get("usage") or {}
            except (ValueError, LookupError, TypeError, AttributeError):
                reason = f"no chat completion: {text[:80]!r}"
        raise _Unusable(reason)


def read_traces(path: Path) -> Iterator[dict[str, Any]]:
    """The complete lines of a file; a line that a kill cut is taken off its end."""
    if not path.exists():
        return
    with path.open("rb+") as file:
        end = 0
        for line in file:
            if not line.endswith(b"\n"):
                break
            end += len(line)
            yield json.loads(line)
        file.truncate(end)


def accepted(path: Path, per_question: int) -> dict[str, list[tuple[str, str]]]:
    """At most so many verified thoughts and answers of each question, the shortest first."""
    found: dict[str, list[tuple[str, str]]] = {}
    for trace in read_traces(path):
        if not trace["rejected"]:
            found.setdefault(trace["id"], []).append((trace["reasoning"], trace["answer"]))
    return {id: sorted(of, key=lambda t: len(t[0]) + len(t[1]))[:per_question] for id, of in found.items()}


def _seconds(said: str | None) -> float:
    """Of a Retry-After header; dates are not waited for."""
    try:
        return max(0.0, float(said or 0))
    except ValueError:
        return 0.0
