"""What a run will need, from dimensions alone: nothing is loaded.

Activations as in Korthikanti et al. (arXiv 2205.05198), without the scores of attention, which fused kernels
do not keep. Operations: 2 for each weight and token forward, as many for the gradients of activations, as
many again for those of trained matrices, and 2 more where activations are computed twice.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .config import Config, Machine, Model, Shape
from .data import Row
from .errors import InvalidConfig

CHARS_PER_TOKEN = 4
ACTIVATION_BYTES = 34  # a token, layer and unit of width, in 16 bits


@dataclass(frozen=True)
class Plan:
    """Bytes on each device, and seconds on all of them together."""

    name: str
    parameters: int
    trained: int
    weights: int
    gradients: int
    optimizer: int
    activations: int
    logits: int
    tokens: int
    seconds: float

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizer + self.activations + self.logits


def plan(config: Config, train: Sequence[Row]) -> list[Plan]:
    """What training each model takes.

    Raises:
        InvalidConfig: a model's dimensions are not known here, or there is no table [machine].
    """
    if not config.machine:
        raise InvalidConfig("A plan needs the table [machine]: devices, memory_gb and tflops of each.")
    return [_of(name, model, config, train) for name, model in config.models.items()]


def utilization(machine: Machine, model: Model, parameters: int, tokens_per_s: float, devices: int) -> float:
    """The share of the devices' peak that training reaches (model FLOPs utilisation).

    What has to be computed counts, and not what is computed twice to save memory.
    """
    return tokens_per_s * _passes(model) * parameters / (devices * machine.tflops * 1e12)


def _passes(model: Model) -> int:
    """Operations for each token and weight, computed once each."""
    return 6 if model.method == "full" else 4


def _of(name: str, model: Model, config: Config, rows: Sequence[Row]) -> Plan:
    machine, options = config.machine, model.training
    assert machine
    shape = model.shape or _read_shape(name, model.base)
    parameters, matrices = _count(shape), _matrices(shape)
    if model.method == "full":
        trained = parameters
    else:
        layers = _n_layers(model.lora.layers, shape.layers)
        wanted = {"attention": ("q", "k", "v", "o"), "all": tuple(matrices)}.get(
            model.lora.targets if isinstance(model.lora.targets, str) else "", model.lora.targets
        )
        trained = layers * sum(model.lora.rank * sum(matrices[target]) for target in wanted)
    wide = options.precision in ("float32", "auto") or model.method == "full"
    per_weight = 0.5 + 0.0625 if options.quantized_base else 4.0 if wide else 2.0
    sharded = machine.devices if machine.fsdp else 1
    tokens_at_once = options.micro_batch * config.data.max_tokens
    per_layer = ACTIVATION_BYTES * tokens_at_once * shape.hidden
    kept = 2 * tokens_at_once * shape.hidden * shape.layers + per_layer
    activations = kept if options.gradient_checkpointing else per_layer * shape.layers
    if config.traces and model.traces:
        tokens = len(rows) * config.traces.keep * min(machine.tokens_per_trace, config.data.max_tokens)
    else:
        tokens = sum(
            min((len(row.asked) + len(row.answer)) // CHARS_PER_TOKEN, config.data.max_tokens) for row in rows
        )
    tokens = math.ceil(tokens * options.epochs)
    flops = tokens * (_passes(model) + 2 * options.gradient_checkpointing) * parameters
    return Plan(
        name,
        parameters,
        trained,
        weights=math.ceil(parameters * per_weight / sharded),
        gradients=math.ceil(4 * trained / sharded),
        optimizer=math.ceil(8 * trained / sharded),
        activations=activations,
        # Of every answer token in 32 bits, with its gradient.
        logits=8 * tokens_at_once * shape.vocab,
        tokens=tokens,
        seconds=flops / (machine.devices * machine.tflops * 1e12 * machine.utilization),
    )


def _count(shape: Shape) -> int:
    of_layer = sum(n_in * n_out for n_in, n_out in _matrices(shape).values()) + 2 * shape.hidden
    biases = sum(_matrices(shape)[name][1] for name in "qkv") if shape.biases else 0
    embeddings = shape.vocab * shape.hidden * (1 if shape.tied else 2)
    return shape.layers * (of_layer + biases) + embeddings + shape.hidden


def _matrices(shape: Shape) -> dict[str, tuple[int, int]]:
    """Width in and out of each matrix of a layer."""
    queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    return {
        "q": (shape.hidden, queries), "k": (shape.hidden, keys), "v": (shape.hidden, keys),
        "o": (queries, shape.hidden), "gate": (shape.hidden, shape.intermediate),
        "up": (shape.hidden, shape.intermediate), "down": (shape.intermediate, shape.hidden),
    }  # fmt: skip


def _n_layers(said: str, n: int) -> int:
    from .model import layers

    found = layers(said, n)
    return n if found is None else len(found)


def _read_shape(name: str, base: str) -> Shape:
    from transformers import AutoConfig

    try:
        found: Any = AutoConfig.from_pretrained(base)
    except Exception as error:  # of the network, the file system, the file
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InvalidConfig(
            f"The dimensions of {base} are not known here ({reason:.120}); give them under "
            f"models.{name}.shape."
        ) from None
    return Shape(
        layers=found.num_hidden_layers, hidden=found.hidden_size, intermediate=found.intermediate_size,
        heads=found.num_attention_heads, kv_heads=found.num_key_value_heads, vocab=found.vocab_size,
        head_dim=getattr(found, "head_dim", None) or found.hidden_size // found.num_attention_heads,
        tied=found.tie_word_embeddings, biases=found.model_type == "qwen2",
    )  # fmt: skip
