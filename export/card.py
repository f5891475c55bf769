"""model.json: what a GGUF is, what it was made from, and what it was checked for."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import gguf

from .errors import ExportError, GateFailed
from .families import Family

FORMAT = 1
CONTEXTS = (2048, 4096, 16_384)
VERSIONS = ("llama-cpp-python", "gguf", "torch", "transformers", "peft", "safetensors")


def sha256(path: Path, on_progress: Callable[[int, int], None] = lambda done, total: None) -> str:
    digest = hashlib.sha256()
    total, done = path.stat().st_size, 0
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
            done += len(block)
            on_progress(done, total)
    return digest.hexdigest()


def versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    for name in VERSIONS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def memory(family: Family, model_bytes: int) -> dict[str, int]:
    """Bytes by context for one sequence: weights and f16 KV. The runtime's plan knows the rest."""
    per_token = 2 * 2 * family.n_layers * family.n_head_kv * family.head_dim
    return {str(n): model_bytes + n * per_token for n in CONTEXTS if n <= family.n_ctx}


def write(path: Path, card: dict[str, Any]) -> None:
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(card, indent=2, ensure_ascii=False) + "\n", "utf-8")
    partial.replace(path)


def verify(model: Path, on_progress: Callable[[int, int], None] = lambda done, total: None) -> dict[str, Any]:
    """Check a GGUF against the card beside it.

    Raises:
        ExportError: there is no card, or it cannot be read.
        GateFailed: the file is not the one that the card describes.
    """
    path = model.with_suffix(".json")
    try:
        card: dict[str, Any] = json.loads(path.read_text("utf-8"))
        expected, size = card["file"]["sha256"], card["file"]["bytes"]
        actual = model.stat().st_size
    except FileNotFoundError as error:
        raise ExportError(f"{error.filename} is missing; the model and its card belong together.") from None
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise ExportError(f"{path} is no card of an export ({error}); export the model again.") from None
    if actual != size:
        raise GateFailed(f"{model} has {actual:,} bytes, its card says {size:,}; copy it again.")
    found = sha256(model, on_progress)
    if found != expected:
        raise GateFailed(f"{model} has SHA-256 {found[:16]}…, its card says {expected[:16]}…; copy it again.")
    gguf.GGUFReader(model)
    return card
