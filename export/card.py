"""model.json: what a GGUF is, what it was made from, and what it was checked for."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gguf

from .errors import ExportError, GateFailed
from .native import N_CTX, Model
from .progress import Report, silent

if TYPE_CHECKING:  # it needs torch, which a machine that only verifies has not
    from .families import Family

FORMAT = 1
COMMANDS = {"serve": "medge serve --model model.gguf", "verify": "python -m export verify model.gguf"}
# How far another machine's arithmetic may lie from ours: nats a token.
PROBE_TOLERANCE = 0.1
# A large model on two cores reads some tokens a second; texts are cut into tokens at once.
N_COMPUTED = 4
CONTEXTS = (2048, 4096, 16_384)
VERSIONS = ("llama-cpp-python", "gguf", "torch", "transformers", "peft", "safetensors")


def sha256(path: Path, on_progress: Report = silent) -> str:
    digest = hashlib.sha256()
    total, done = path.stat().st_size, 0
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
            done += len(block)
            on_progress(done // 1_000_000, total // 1_000_000)
    return digest.hexdigest()


def digests(path: Path, on_progress: Report = silent) -> dict[str, str]:
    """SHA-256 of a file, or of all files of a folder, by name."""
    files = sorted(p for p in path.iterdir() if p.is_file()) if path.is_dir() else [path]
    return {file.name: sha256(file, on_progress) for file in files}


def probes(model: Path, texts: Sequence[str]) -> list[dict[str, Any]]:
    """What the model makes of short texts: token ids, and nats a token of the first N_COMPUTED.

    `verify` computes them again.
    """
    found: list[dict[str, Any]] = []
    with Model(model, mapped=False) as opened:
        for text in texts:
            tokens = opened.tokenize(text)[:N_CTX]
            nll = _nll(opened, tokens) if len(found) < N_COMPUTED else None
            found.append({"text": text, "tokens": tokens, "nll": nll})
    return found


def _nll(model: Model, tokens: list[int]) -> float:
    return -model.log_likelihoods(tokens[:1], [tokens[1:]])[0]


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


def write(path: Path, card: Any) -> None:
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(card, indent=2, ensure_ascii=False) + "\n", "utf-8")
    partial.replace(path)


def verify(model: Path, on_progress: Report = silent) -> dict[str, Any]:
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
    _compare(model, card)
    return card


def types_of(model: Path) -> dict[str, str]:
    """The type of every tensor of a GGUF."""
    return {t.name: t.tensor_type.name for t in gguf.GGUFReader(model).tensors}


def _compare(model: Path, card: dict[str, Any]) -> None:
    """The file says of itself what the card says, and computes here what it computed there."""
    try:
        types = types_of(model)
        for name, kind in card["types"].items():
            if types.get(name) != kind:
                raise GateFailed(
                    f"{model}: {name} is {types.get(name, 'missing')}, the card says {kind}; export it again."
                )
        with Model(model, mapped=False) as opened:
            for probe in card["probes"]:
                text, tokens = probe["text"], opened.tokenize(probe["text"])[:N_CTX]
                if tokens != probe["tokens"]:
                    raise GateFailed(f"{model} cuts {text!r} into other tokens here than its card says.")
                if probe["nll"] is None:
                    continue
                found = _nll(opened, tokens)
                if not abs(found - probe["nll"]) <= PROBE_TOLERANCE:  # NaN fails too
                    raise GateFailed(
                        f"{model} computes {found:.3f} nats a token of {text!r} here, its card says "
                        f"{probe['nll']:.3f}; this machine's llama.cpp computes something else."
                    )
    except (LookupError, TypeError, AttributeError) as error:
        raise ExportError(f"{model.with_suffix('.json')} is no card of an export ({error!r}).") from None
