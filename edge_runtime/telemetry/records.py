"""One line of JSON for each request that ended: times and counts, never its text.

Files are turned over by size and age, and the oldest go, so that a kiosk never fills its disk with them.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from ..engine.request import Done, Failed

log = logging.getLogger("medge.records")

VERSION = 1
NAME = "requests"
MAX_BYTES = 4 << 20  # about 10,000 requests
MAX_AGE_S = 7 * 86_400
MAX_FILES = 12


class Records:
    """Writes them.

    Args:
        folder: made if it is not there.
        facts: what is the same for all, such as the model.
        now: seconds since 1970.
    """

    def __init__(self, folder: Path, facts: Mapping[str, Any], now: Callable[[], float] = time.time) -> None:
        self._path = folder / f"{NAME}.jsonl"
        self._facts = {"version": VERSION, **facts}
        self._now = now
        self._began: float | None = None  # of the file that is written
        self._told = False

    def write(self, event: Done | Failed, machine: Mapping[str, Any]) -> None:
        """Add a request. A disk that is full or read-only is told of once; answers do not depend on it.

        Args:
            machine: how the machine was when the request ended, such as its temperature.
        """
        record = {"time": round(self._now(), 3), **self._facts, **of_event(event), **machine}
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._turn_over()
            with self._path.open("ab+") as file:
                file.write(b"\n" * _torn(file) + json.dumps(record).encode() + b"\n")
        except OSError as error:
            if not self._told:
                log.warning("Requests are not recorded: %s: %s.", self._path, error.strerror)
            self._told = True

    def _turn_over(self) -> None:
        now = self._now()
        if self._began is None:  # another process may have begun it
            self._began = _first_time(self._path) or now
        try:
            size = self._path.stat().st_size
        except FileNotFoundError:
            self._began = now
            return
        if size < MAX_BYTES and now - self._began < MAX_AGE_S:
            return
        self._path.replace(self._path.with_name(f"{NAME}-{int(now * 1000):015}.jsonl"))
        self._began = now
        for old in files(self._path.parent)[: -MAX_FILES + 1]:
            old.unlink(missing_ok=True)


def _torn(file: BinaryIO) -> bool:
    """Whether the last line has no end, which a power cut or a full disk can leave."""
    if not file.seek(0, os.SEEK_END):
        return False
    file.seek(-1, os.SEEK_END)
    return file.read(1) != b"\n"


def of_event(event: Done | Failed) -> dict[str, Any]:
    """What a record says of a request; None where there was nothing to measure."""
    if isinstance(event, Failed):
        return {"end": event.error.code}
    t = event.timing
    gaps = np.diff(t.token_times_s)
    p50, p99 = np.quantile(gaps, (0.5, 0.99)) if gaps.size else (None, None)
    return {
        "end": event.finish_reason,
        "queued_s": _rounded(t.queued_s),
        "ttft_s": _rounded(t.ttft_s),
        "total_s": _rounded(t.total_s),
        "itl_p50_s": _rounded(p50),
        "itl_p99_s": _rounded(p99),
        "tokens_per_s": _rounded(t.tokens_per_s),
        "n_prompt": t.n_prompt,
        "n_cached": t.n_cached,
        "n_generated": t.n_generated,
        "peak_memory_bytes": t.peak_memory_bytes,
    }


def _rounded(value: Any) -> float | None:
    return None if value is None else round(float(value), 5)


def files(folder: Path) -> list[Path]:
    """Those that are there, the oldest first."""
    old = sorted(folder.glob(f"{NAME}-*.jsonl"))
    current = folder / f"{NAME}.jsonl"
    return [*old, current] if current.exists() else old


@dataclass
class Found:
    """Records that were read.

    Attributes:
        n_unreadable: lines that are no records, such as one that a power cut ended.
        n_other: records of versions that this one does not know.
    """

    records: list[dict[str, Any]]
    n_unreadable: int = 0
    n_other: int = 0


def read(folder: Path, since: float = 0.0) -> Found:
    """All records from `since` on, in seconds since 1970."""
    found = Found([])
    for path in files(folder):
        with suppress(OSError):
            for record in within(path):
                if record is None:
                    found.n_unreadable += 1
                elif record["version"] != VERSION:
                    found.n_other += 1
                elif record["time"] >= since:
                    found.records.append(record)
    return found


def within(path: Path) -> Iterator[dict[str, Any] | None]:
    """The records of a file, of any version; None for a line that is none.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        yield from (_parsed(line) for line in file if line != b"\n")


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    known = isinstance(record, dict) and isinstance(record.get("time"), (int, float))
    return record if known and isinstance(record.get("version"), int) else None


def _first_time(path: Path) -> float | None:
    try:
        with path.open("rb") as file:
            record = _parsed(file.readline())
    except OSError:
        return None
    return record["time"] if record else None


def percentiles(records: list[dict[str, Any]]) -> Iterator[tuple[str, int, tuple[float, ...]]]:
    """For each thing that was measured: its name, how often, and its 5th, 50th, 95th and 99th percentile."""
    for name in (
        "queued_s",
        "ttft_s",
        "itl_p50_s",
        "itl_p99_s",
        "tokens_per_s",
        "total_s",
        "n_prompt",
        "n_generated",
    ):
        values = [r[name] for r in records if isinstance(r.get(name), (int, float))]
        if values:
            yield name, len(values), tuple(quantiles(values).values())


def quantiles(values: Sequence[float] | NDArray[np.float64]) -> dict[str, float]:
    """Their 5th, 50th, 95th and 99th percentile by name."""
    return dict(zip(("p5", "p50", "p95", "p99"), np.quantile(values, (0.05, 0.5, 0.95, 0.99)).tolist()))
