"""What will fit, before loading: the parts of a model's memory, and whether there is room for them."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import NotEnoughMemory
from .memory import available_bytes

# Measured: the engine's process with the library loaded, and the web process.
PROCESS_BYTES = 150 << 20

# Left to the system, so that the kernel does not have to choose what to kill.
RESERVE_BYTES = 200 << 20


@dataclass(frozen=True)
class Plan:
    """Bytes by part. `compute_bytes` is an upper bound; the others are exact."""

    weights_bytes: int
    kv_bytes: int
    prefix_bytes: int
    compute_bytes: int
    process_bytes: int = PROCESS_BYTES

    @property
    def total_bytes(self) -> int:
        return (
            self.weights_bytes + self.kv_bytes + self.prefix_bytes + self.compute_bytes + self.process_bytes
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
) -> Plan:
    """The memory of a model that is read into memory (not mapped) and runs on the CPU.

    Args:
        kv_bytes_per_token: keys and values of all layers for one token.
        n_ctx: tokens a slot.
    """
    n_outputs = n_slots + 40
    activations = n_batch * (n_embd * 4 * 10 + (n_slots * n_ctx + prefix_tokens) * 4)
    return Plan(
        weights_bytes=weights_bytes,
        kv_bytes=int(n_slots * n_ctx * kv_bytes_per_token),
        prefix_bytes=int(prefix_tokens * kv_bytes_per_token),
        compute_bytes=activations + 2 * n_outputs * n_vocab * 4,
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
    raise NotEnoughMemory(
        f"The model needs {_mib(plan.total_bytes)} (weights {_mib(plan.weights_bytes)}, KV memory "
        f"{_mib(plan.kv_bytes)}, shared prefixes {_mib(plan.prefix_bytes)}, computing "
        f"{_mib(plan.compute_bytes)}, the programs {_mib(plan.process_bytes)}); {_mib(max(0, room))} are "
        f"free. {_remedy(plan, room)}"
    )


def _remedy(plan: Plan, room: int) -> str:
    fixed = plan.total_bytes - plan.kv_bytes - plan.prefix_bytes
    if fixed > room:
        return "Even without KV memory it does not fit: take a smaller model, or end other programs."
    if fixed + (plan.kv_bytes + plan.prefix_bytes) * 17 // 32 <= room:
        return "With --kv q8_0 it fits; fewer --slots or a smaller --ctx help too."
    share = (room - fixed) / (plan.kv_bytes + plan.prefix_bytes)
    return f"Lower --slots times --ctx to {share:.0%} of what it is, or --kv q8_0 and less."


def _mib(n: int) -> str:
    return f"{n / (1 << 20):,.0f} MiB"
