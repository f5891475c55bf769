"""What will fit, before loading: the parts of a model's memory, and whether there is room for them."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..errors import NotEnoughMemory
from .memory import available_bytes

# Measured: the engine's process with the library loaded, and the web process.
PROCESS_BYTES = 150 << 20

# Left to the system, so that the kernel does not have to choose what to kill.
RESERVE_BYTES = 200 << 20


@dataclass(frozen=True)
class Plan:
    """Bytes by part. `compute_bytes` and `mask_bytes` are upper bounds; the others are exact.

    Attributes:
        mask_bytes: who may look at whom; grows with the context, as KV does.
        kv: type of the KV memory.
        whole: all of a text is computed at once, so that `compute_bytes` grows with the context too.
        context: the settings that make a context, for the remedy if it does not fit.
    """

    weights_bytes: int
    kv_bytes: int
    prefix_bytes: int
    compute_bytes: int
    mask_bytes: int = 0
    kv: str = "f16"
    process_bytes: int = PROCESS_BYTES
    whole: bool = False
    context: str = "--slots times --ctx"

    @property
    def total_bytes(self) -> int:
        return (
            self.weights_bytes
            + self.kv_bytes
            + self.prefix_bytes
            + self.compute_bytes
            + self.mask_bytes
            + self.process_bytes
        )


def make_plan(
    *,
    weights_bytes: int,
    kv_bytes_per_token: float,
    n_slots: int,
    n_ctx: int,
    prefix_tokens: int,
    n_batch: int,
    n_vocab: int,
    n_embd: int,
    kv: str = "f16",
) -> Plan:
    """The memory of a model that is read into memory (not mapped) and runs on the CPU.

    Args:
        kv_bytes_per_token: keys and values of all layers for one token.
        n_ctx: tokens a slot.
        kv: its type, for the remedy if it does not fit.
    """
    n_outputs = n_slots + 40
    return Plan(
        weights_bytes=weights_bytes,
        kv_bytes=int(n_slots * n_ctx * kv_bytes_per_token),
        prefix_bytes=int(prefix_tokens * kv_bytes_per_token),
        compute_bytes=n_batch * n_embd * 4 * 10 + 2 * n_outputs * n_vocab * 4,
        mask_bytes=n_batch * (n_slots * n_ctx + prefix_tokens) * 4,
        kv=kv,
    )


def make_embedding_plan(
    *,
    weights_bytes: int,
    kv_bytes_per_token: float,
    n_ctx: int,
    n_batch: int,
    n_vocab: int,
    n_embd: int,
    n_head: int,
    flash_attention: bool,
    whole: bool,
    kv: str = "f16",
) -> Plan:
    """The memory of an embedding model; see `make_plan`.

    Args:
        n_ctx: tokens of a text; slots share them.
        n_vocab: counts for each token of a batch: llama.cpp computes logits of all, or where a model has
            none, still keeps room for them.
        n_head: without flash attention there is a score for each pair of tokens and head, twice.
        whole: all of a text is one batch.
    """
    n_batch = n_ctx if whole else n_batch
    # Beside a text that is half read there is room for a batch of others.
    n_beside = 0 if whole else n_batch
    pair_bytes = 4 if flash_attention else 4 * (1 + 2 * n_head)
    n_logits = 2 if kv_bytes_per_token else 1
    token_bytes = n_embd * 4 * 10 + n_logits * n_vocab * 4
    return Plan(
        weights_bytes=weights_bytes,
        kv_bytes=int(n_ctx * kv_bytes_per_token),
        prefix_bytes=0,
        compute_bytes=n_batch * token_bytes + int(n_beside * (kv_bytes_per_token + n_batch * pair_bytes)),
        mask_bytes=n_batch * n_ctx * pair_bytes,
        kv=kv,
        whole=whole,
        context="--ctx",
    )


def require_room(plan: Plan, available: int | None = None) -> None:
    """Refuse what would not fit.

    Raises:
        NotEnoughMemory: with the parts, and what would make it fit.
    """
    free = available_bytes() if available is None else available
    room = free - RESERVE_BYTES
    if plan.total_bytes <= room:
        return
    computing = plan.compute_bytes + plan.mask_bytes
    raise NotEnoughMemory(
        f"The model needs {_mib(plan.total_bytes)} (weights {_mib(plan.weights_bytes)}, KV memory "
        f"{_mib(plan.kv_bytes)}, shared prefixes {_mib(plan.prefix_bytes)}, computing "
        f"{_mib(computing)}, the programs {_mib(plan.process_bytes)}); {_mib(max(0, room))} are "
        f"free. {_remedy(plan, room)}"
    )


def _remedy(plan: Plan, room: int) -> str:
    kv = plan.kv_bytes + plan.prefix_bytes
    grows = kv + plan.mask_bytes + (plan.compute_bytes if plan.whole else 0)
    fixed = plan.total_bytes - grows
    if fixed >= room:
        return "Even without KV memory it does not fit: take a smaller model, or end other programs."
    # A value and its scale in q8_0 take 34 bytes for 32 values.
    if plan.kv == "f16" and plan.total_bytes - kv + kv * 17 // 32 <= room:
        return f"With --kv q8_0 it fits; or make {plan.context} smaller."
    smaller = grows / (room - fixed)
    also = ", or less with --kv q8_0" if plan.kv == "f16" and kv else ""
    return f"Make {plan.context} at least {math.ceil(smaller * 10) / 10:,.1f} times smaller{also}."


def _mib(n: int) -> str:
    return f"{n / (1 << 20):,.0f} MiB"
