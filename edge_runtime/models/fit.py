"""Settings that fit: what an engine is given, what it will take, and what to give up if that is too much."""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ..config import Settings
from ..device.plan import Budget, Buffers, Plan, bound, budget, embedding_bound, exact, mib
from ..errors import InvalidSetting, NotEnoughMemory
from ..program import command
from .embedded import cache_dir
from .gguf import GGUF

# Tokens that a simulation may hold: llama.cpp makes its notes of each, half a gigabyte then.
MAX_SIMULATED = 10_000_000

# It takes under a second; longer than this it hangs.
SIMULATION_S = 60

# A shorter context than this is of little use; the smallest batch that flash attention is quick with.
MIN_CTX = 512
MIN_BATCH = 64


def engine_config(header: GGUF, settings: Settings) -> dict[str, Any]:
    """Keyword arguments of `EngineConfig`, or for an embedding model of `EmbedderConfig`."""
    config: dict[str, Any] = {
        "path": header.path,
        "n_slots": settings.slots,
        "n_ctx": header.context(settings.ctx),
        "n_threads": settings.threads,
        "kv": settings.kv,
        "flash_attention": settings.flash_attention,
        "n_gpu_layers": settings.gpu_layers,
        "n_batch": settings.batch,
    }
    if header.embeddings:
        return config | {"whole": header.whole}
    return config | {
        "max_waiting": settings.queue + settings.slots,
        "step_limit_s": settings.step_limit_ms / 1000,
        "prefix_tokens": settings.prefix_tokens,
        "beginnings": _beginnings(header, settings) if settings.prefix_disk_mb else None,
        "beginnings_bytes": settings.prefix_disk_mb * 1_000_000,
    }


def _beginnings(header: GGUF, settings: Settings) -> Path:
    """A folder for states that only this file, this build and these settings can read."""
    file = header.path.stat()
    facts = (
        header.path.resolve(), file.st_size, file.st_mtime_ns, version("llama_cpp_python"), settings.kv,
        settings.flash_attention, settings.gpu_layers,
    )  # fmt: skip
    return cache_dir() / "beginnings" / hashlib.sha256(repr(facts).encode()).hexdigest()[:16]


def at_most(header: GGUF, settings: Settings) -> Plan:
    """From the header alone: at least what it will take, on a machine without GPU."""
    sizes: dict[str, Any] = {
        "weights_bytes": header.weight_bytes,
        "kv_bytes_per_token": header.kv_bytes_per_token(settings.kv),
        "n_ctx": header.context(settings.ctx),
        "n_batch": settings.batch,
        "n_vocab": header.n_vocab,
        "n_embd": header.n_embd,
    }
    if not header.embeddings:
        return bound(**sizes, n_slots=settings.slots, prefix_tokens=settings.prefix_tokens)
    flash = settings.flash_attention
    return embedding_bound(**sizes, n_head=header.n_head, flash_attention=flash, whole=header.whole)


def plans(header: GGUF, choices: Sequence[Settings], room: Budget) -> list[Plan]:
    """What llama.cpp would reserve for each of these settings, which takes under a second and loads nothing.

    It is not asked of what cannot fit by its weights and KV memory alone. There, and where it gives up, the
    header's bound is what is known.
    """
    made = [at_most(header, settings) for settings in choices]
    configs = [engine_config(header, settings) for settings in choices]
    n_tokens = [config["n_ctx"] * (1 if header.embeddings else config["n_slots"]) for config in configs]
    asked = [
        i
        for i, plan in enumerate(made)
        if plan.weights_bytes + plan.kv_bytes <= room.memory_bytes and n_tokens[i] <= MAX_SIMULATED
    ]
    if not asked:
        return made
    starts = [{"embeddings": header.embeddings, "config": configs[i]} for i in asked]
    simulation = [*command("edge_runtime.engine.simulate"), json.dumps(starts, default=str)]
    try:
        told = subprocess.run(simulation, capture_output=True, text=True, timeout=SIMULATION_S).stdout
    except subprocess.TimeoutExpired:
        told = ""
    for i, line in zip(asked, told.splitlines()):
        buffers = Buffers(**json.loads(line))
        made[i] = exact(made[i], buffers, header.tensors, header.n_layers, n_tokens[i])
    return made


def ladder(header: GGUF, settings: Settings) -> Iterator[Settings]:
    """Settings that take less and less, beginning with the given ones; each gives up one thing more."""

    def less(**changed: Any) -> Settings:
        nonlocal settings
        settings = settings.model_copy(update=changed)
        return settings

    yield settings
    if settings.kv == "f16" and settings.flash_attention:
        with suppress(InvalidSetting):
            if header.kv_bytes_per_token("q8_0"):
                yield less(kv="q8_0")
    if settings.prefix_tokens and not header.embeddings:
        yield less(prefix_tokens=0)
    while settings.slots > 1 and not header.embeddings:
        yield less(slots=settings.slots // 2)
    while header.context(settings.ctx) >= 2 * MIN_CTX:
        yield less(ctx=header.context(settings.ctx) // 2)
    while settings.batch >= 2 * MIN_BATCH:
        yield less(batch=settings.batch // 2)


def require_room(header: GGUF, settings: Settings, room: Budget | None = None) -> Settings:
    """The settings, or with --fit the first of the ladder for which there is room.

    Raises:
        NotEnoughMemory: with the parts, and what would fit.
    """
    room = room or budget()
    if room.has_room_for(at_most(header, settings)):
        return settings
    rungs = list(ladder(header, settings))
    made = plans(header, rungs, room)
    fitting = next((i for i, plan in enumerate(made) if room.has_room_for(plan)), None)
    if fitting == 0 or (fitting is not None and settings.fit):
        return rungs[fitting]
    parts = ", ".join(f"{name} {mib(size)}" for name, size in made[0].parts.items())
    needs = f"The model needs {mib(made[0].total_bytes)} ({parts}); {mib(room.memory_bytes)} are free."
    if fitting is None:
        raise NotEnoughMemory(
            f"{needs} Even with {given_up(settings, rungs[-1])} it needs {mib(made[-1].total_bytes)}: "
            "take a smaller model, or end other programs."
        )
    raise NotEnoughMemory(
        f"{needs} With {given_up(settings, rungs[fitting])} it takes {mib(made[fitting].total_bytes)} and "
        "fits; --fit does that."
    )


def given_up(before: Settings, after: Settings) -> str:
    """What changed, as flags."""
    names = ("kv", "prefix_tokens", "slots", "ctx", "batch", "gpu_layers")
    changed = [name for name in names if getattr(before, name) != getattr(after, name)]
    return " ".join(f"--{name.replace('_', '-')} {getattr(after, name)}" for name in changed)
