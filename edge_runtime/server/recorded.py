"""What the recorded requests cost, while more are recorded. `medge stats` tells the same, and more.

Keeps a few numbers of each request: all records of a full folder would take hundreds of megabytes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..telemetry.records import VERSION, files, quantiles, within

NAMES = ("ttft_s", "itl_p50_s", "itl_p99_s", "tokens_per_s")


class Recorded:
    """Reads a file again only when it has changed. For one thread at a time.

    Args:
        folder: where records are kept.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._tables: dict[tuple[int, int, int], NDArray[np.float64]] = {}

    def figures(self) -> dict[str, Any]:
        """How many requests, since when (seconds since 1970), and percentiles of what was measured."""
        before, self._tables = self._tables, {}
        for path in files(self._folder):
            try:
                state = path.stat()
                key = (state.st_ino, state.st_size, state.st_mtime_ns)  # a file that is turned over keeps it
                self._tables[key] = before[key] if key in before else _table(path)
            except OSError:
                continue  # turned over or deleted meanwhile
        table = np.concatenate([np.empty((0, 1 + len(NAMES))), *self._tables.values()])
        return {
            "n": len(table),
            "since": float(table[0, 0]) if len(table) else None,
            "percentiles": {
                name: quantiles(told) | {"n": len(told)}
                for name, column in zip(NAMES, table[:, 1:].T)
                if (told := column[~np.isnan(column)]).size
            },
        }


def _table(path: Path) -> NDArray[np.float64]:
    """A row for each record of this version: the time and `NAMES`, NaN where nothing was measured."""
    rows = []
    for record in within(path):
        if record and record["version"] == VERSION:
            values = [record.get(name) for name in ("time", *NAMES)]
            rows.append([v if isinstance(v, (int, float)) else np.nan for v in values])
    table = np.array(rows, np.float64).reshape(-1, 1 + len(NAMES))
    return table[table[:, 0] >= 0]
