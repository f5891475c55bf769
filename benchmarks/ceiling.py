"""What could this machine do at most, and how much of that does medge reach?

Reading speed and arithmetic of this machine, measured here; the bytes and operations that one token needs,
from the model's header; and the speeds that medge has with it.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Annotated, Optional

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from edge_runtime.device.machine import default_threads
from edge_runtime.errors import InvalidSetting, MedgeError
from edge_runtime.models import embedded, gguf

from . import facts
from .paper import Case, Side, measure
from .quiet import Watched

RESULTS = Path(__file__).parent / "results" / "ceiling.jsonl"
# Much more than any cache holds, so that memory is what is read.
READ_BYTES = 1 << 30
MATRIX = 2048
N_TRIES = 5


@dataclass(frozen=True)
class Need:
    """What one token takes.

    Attributes:
        bytes_read: weights and KV memory, for a token alone; a prompt shares the weights' among its tokens.
        operations: multiplications and additions.
    """

    bytes_read: float
    operations: float

    @classmethod
    def of(cls, header: gguf.GGUF, n_before: float, kv: gguf.KVType = "f16") -> Need:
        """For a token with `n_before` others before it."""
        matrices = {t.name: t for t in header.tensors if len(t.shape) == 2}
        # Of the embedding one row is read, unless it is the output too.
        lookup = {"token_embd.weight"} if "output.weight" in matrices else set()
        read = [t for t in header.tensors if t.name not in lookup]
        used = [t for name, t in matrices.items() if name not in lookup]
        attention = 2 * n_before * header.n_layers * header.n_head * (header.head_dim_k + header.head_dim_v)
        return cls(
            sum(t.n_bytes for t in read) + n_before * header.kv_bytes_per_token(kv),
            2.0 * sum(prod(t.shape) for t in used) + attention,
        )


def best(once: Callable[[], float]) -> float:
    """The shortest time of some tries: what the machine can do, whatever disturbed the others."""
    return min(once() for _ in range(N_TRIES))


def read_bandwidth(n_threads: int) -> float:
    """Bytes a second that all threads together read from memory."""
    parts = [np.ones(READ_BYTES // 4 // n_threads, np.float32) for _ in range(n_threads)]

    def once() -> float:
        began = time.perf_counter()
        list(pool.map(lambda part: np.dot(part, part), parts))
        return time.perf_counter() - began

    with ThreadPoolExecutor(n_threads) as pool:
        return sum(part.nbytes for part in parts) / best(once)


def arithmetic() -> float:
    """Operations a second of float32 matrices, by the BLAS that numpy brings, on all cores."""
    a = np.ones((MATRIX, MATRIX), np.float32)

    def once() -> float:
        began = time.perf_counter()
        np.dot(a, a)
        return time.perf_counter() - began

    return 2 * float(MATRIX) ** 3 / best(once)


def main(
    model: Annotated[Optional[Path], typer.Argument(help="GGUF; the embedded model if left out.")] = None,  # noqa: UP045
    case: Annotated[str, typer.Option(help="Tokens read + written.")] = "256+64",
    threads: Annotated[int, typer.Option(min=1)] = default_threads(),
    out: Annotated[Path, typer.Option(help="JSON lines are added here.")] = RESULTS,
) -> None:
    """Measure this machine, and what share of the possible medge reaches with a model."""
    try:
        path = model or embedded.prepare()
        header, asked = gguf.read(path), Case.of(case)
        if header.embeddings:
            raise InvalidSetting(f"{path} is an embedding model; the speed of answers is measured here.")
        with Watched() as watched:
            bandwidth, operations = read_bandwidth(threads), arithmetic()
        alone = watched.facts["quiet"]
        found = measure(Side("medge", "medge", path), asked, header.n_vocab, threads, seed=0)
    except MedgeError as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(1) from error
    reading = Need.of(header, asked.n_prompt / 2)
    writing = Need.of(header, asked.n_prompt + asked.n_answer / 2)
    line = facts.about() | {
        "model": header.name, "case": case, "n_threads": threads, "quiet": alone and found["quiet"],
        "read_bytes_per_s": bandwidth, "operations_per_s": operations,
        "bytes_a_token": writing.bytes_read, "operations_a_token": reading.operations,
        "prompt_tokens_per_s": asked.n_prompt / found["prompt_s"], "tokens_per_s": 1 / found["token_s"],
    }  # fmt: skip
    line["of_bandwidth"] = line["tokens_per_s"] * writing.bytes_read / bandwidth
    line["of_arithmetic"] = line["prompt_tokens_per_s"] * reading.operations / operations
    facts.append(out, [line])
    shown = Table("", title=f"{header.name}, {case} tokens", title_justify="left", box=None, pad_edge=False)
    for name in ("a token takes", "machine", "at most", "medge", "of that"):
        shown.add_column(name, justify="right")
    shown.add_row(
        "answer", f"{writing.bytes_read / 1e6:,.0f} MB read", f"{bandwidth / 1e9:.1f} GB/s",
        f"{bandwidth / writing.bytes_read:,.1f} tok/s", f"{line['tokens_per_s']:,.1f} tok/s",
        f"{line['of_bandwidth']:.0%}",
    )  # fmt: skip
    shown.add_row(
        "prompt", f"{reading.operations / 1e9:,.2f} G float32", f"{operations / 1e9:,.0f} G/s",
        f"{operations / reading.operations:,.0f} tok/s", f"{line['prompt_tokens_per_s']:,.0f} tok/s",
        f"{line['of_arithmetic']:.0%}",
    )  # fmt: skip
    Console().print(shown)
    if not line["quiet"]:
        Console().print("[yellow]The machine was not quiet: repeat this when nothing else runs.[/]")


if __name__ == "__main__":
    typer.run(main)
