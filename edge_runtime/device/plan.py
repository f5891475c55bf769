"""What a model will take, by part, and whether there is room for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from .memory import available_bytes, pss_bytes
from .nvidia import gpus
from .tegra import board

# Measured: the engine's process with the library loaded (35 MiB) and the web process (70, and 20 for the
# rules that questions are routed by), and what llama.cpp keeps of each token of a vocabulary: its text, its
# number, the merges that lead to it.
PROCESS_BYTES = 125 << 20
WORD_BYTES = 330

# Measured: what llama.cpp notes of each token that a context can hold, beside its keys and values.
NOTE_BYTES = 52

# Left to the system, so that the kernel does not have to choose what to kill.
RESERVE_BYTES = 200 << 20


@dataclass(frozen=True)
class Plan:
    """Bytes by part.

    Attributes:
        weights_bytes, kv_bytes, compute_bytes: in the machine's memory.
        prefix_bytes: what prompts have in common, full.
        process_bytes: Python, libraries and vocabulary.
        gpu_bytes: weights, KV and computing on GPUs.
        exact: what llama.cpp itself plans; otherwise `compute_bytes` is an upper bound.
    """

    weights_bytes: int
    kv_bytes: int
    prefix_bytes: int
    compute_bytes: int
    process_bytes: int
    gpu_bytes: int = 0
    exact: bool = False

    @property
    def parts(self) -> dict[str, int]:
        """What is in the machine's memory, by its name for people."""
        return {
            "weights": self.weights_bytes,
            "KV memory": self.kv_bytes,
            "shared prefixes": self.prefix_bytes,
            "computing": self.compute_bytes,
            "the programs": self.process_bytes,
        }

    @property
    def total_bytes(self) -> int:
        """In the machine's memory."""
        return sum(self.parts.values())


@dataclass(frozen=True)
class Budget:
    """What may be taken.

    Attributes:
        memory_bytes: of the machine's memory.
        gpu_bytes: of the GPUs'; None where no GPU tells, and then nothing is checked there.
        unified: the GPU takes the machine's memory.
    """

    memory_bytes: int
    gpu_bytes: int | None = None
    unified: bool = False

    def has_room_for(self, plan: Plan) -> bool:
        if self.unified:
            return plan.total_bytes + plan.gpu_bytes <= self.memory_bytes
        on_gpu = self.gpu_bytes is None or plan.gpu_bytes <= self.gpu_bytes
        return on_gpu and plan.total_bytes <= self.memory_bytes


def facts(plan: Plan, room: Budget) -> dict[str, Any]:
    """What programs read of a plan, and whether there is room for it."""
    return {
        "total_bytes": plan.total_bytes,
        "gpu_bytes": plan.gpu_bytes,
        "fits": room.has_room_for(plan),
        "exact": plan.exact,
        "parts": plan.parts,
    }


def budget() -> Budget:
    """What is free now, less the reserve for the system, and what this process has: a plan counts it too."""
    free = available_bytes(reserve=RESERVE_BYTES) + (pss_bytes() or 0)
    found = gpus()
    if board() or any(gpu.memory_bytes is None for gpu in found):
        return Budget(free, unified=True)
    return Budget(free, sum(gpu.free_bytes or 0 for gpu in found) if found else None)


def bound(
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
    """What a model takes at most that is read into memory (not mapped) and runs on the CPU.

    Args:
        kv_bytes_per_token: keys and values of all layers for one token.
        n_ctx: tokens a slot.
    """
    n_outputs = n_slots + 40
    mask_bytes = n_batch * (n_slots * n_ctx + prefix_tokens) * 4  # who may look at whom
    return Plan(
        weights_bytes=weights_bytes,
        kv_bytes=int(n_slots * n_ctx * (kv_bytes_per_token + NOTE_BYTES)),
        prefix_bytes=int(prefix_tokens * kv_bytes_per_token),
        compute_bytes=n_batch * n_embd * 4 * 10 + 2 * n_outputs * n_vocab * 4 + mask_bytes,
        process_bytes=PROCESS_BYTES + n_vocab * WORD_BYTES,
    )


def embedding_bound(
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
) -> Plan:
    """What an embedding model takes at most; see `bound`.

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
    beside_bytes = int(n_beside * (kv_bytes_per_token + n_batch * pair_bytes))
    return Plan(
        weights_bytes=weights_bytes,
        kv_bytes=int(n_ctx * (kv_bytes_per_token + NOTE_BYTES)) if kv_bytes_per_token else 0,
        prefix_bytes=0,
        compute_bytes=n_batch * token_bytes + beside_bytes + n_batch * n_ctx * pair_bytes,
        process_bytes=PROCESS_BYTES + n_vocab * WORD_BYTES,
    )


@dataclass(frozen=True)
class Buffers:
    """What a context takes beside the weights, in bytes.

    Attributes:
        kv: of all sequences together.
        compute: by the device that llama.cpp names, such as "CPU" or "CUDA0".
        output: logits of one step, beside those that are being computed.
        flash_attention: whether it would be on.
        n_layers_gpu: layers that would lie on a GPU.
    """

    kv: int
    compute: Mapping[str, int]
    output: int
    flash_attention: bool
    n_layers_gpu: int


class Weight(Protocol):
    @property
    def name(self) -> str: ...
    @property
    def n_bytes(self) -> int: ...


def on_gpu(tensors: Sequence[Weight], n_layers: int, n_offloaded: int) -> tuple[int, int]:
    """Bytes of the weights in the machine's memory, and on GPUs.

    Args:
        n_offloaded: of n_layers + 1: llama.cpp begins with the output, and goes on from the last layer.
    """
    if not n_offloaded:
        return sum(tensor.n_bytes for tensor in tensors), 0
    sizes = {tensor.name: tensor.n_bytes for tensor in tensors}
    first = n_layers + 1 - n_offloaded
    moved = sum(
        size
        for name, size in sizes.items()
        if name.startswith("output") or (name.startswith("blk.") and int(name.split(".")[1]) >= first)
    )
    # A head that is the embedding too is there twice.
    tied = 0 if "output.weight" in sizes else sizes.get("token_embd.weight", 0)
    return sum(sizes.values()) - moved, moved + tied


def exact(at_most: Plan, buffers: Buffers, tensors: Sequence[Weight], n_layers: int, n_tokens: int) -> Plan:
    """The plan, with what llama.cpp says that a context of `n_tokens` takes instead of a bound."""
    here, there = on_gpu(tensors, n_layers, buffers.n_layers_gpu)
    kv_there = buffers.kv * min(buffers.n_layers_gpu, n_layers) // n_layers
    # CUDA_Host and others of that kind lie in the machine's memory.
    computing_here = sum(n for name, n in buffers.compute.items() if name == "CPU" or name.endswith("_Host"))
    return replace(
        at_most,
        weights_bytes=here,
        kv_bytes=buffers.kv - kv_there + (n_tokens * NOTE_BYTES if buffers.kv else 0),
        compute_bytes=computing_here + buffers.output,
        gpu_bytes=there + kv_there + sum(buffers.compute.values()) - computing_here,
        exact=True,
    )


def mib(n: int) -> str:
    return f"{n / (1 << 20):,.0f} MiB"
