"""The model families that can be exported: their dimensions, rotary positions and tensor names in GGUF.

A family that is not here is refused by name; guessing would give a model that talks nonsense.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import gguf
import torch
from optimum.utils import NormalizedTextConfig

from .errors import InvalidBase

# model_type of config.json -> architecture of GGUF
ARCHITECTURES = {
    "llama": gguf.MODEL_ARCH.LLAMA,
    "qwen2": gguf.MODEL_ARCH.QWEN2,
    "qwen3": gguf.MODEL_ARCH.QWEN3,
}


# A tied head is the embedding once more, and checkpoints may leave it out.
HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


class LlamaNames(NormalizedTextConfig):  # type: ignore[misc]
    """Names of the dimensions that optimum's own class does not have."""

    N_CTX = "max_position_embeddings"
    N_FF = "intermediate_size"
    NUM_KV_HEADS = "num_key_value_heads"
    RMS_EPS = "rms_norm_eps"


@dataclass(frozen=True)
class Family:
    """What a config says, in GGUF's terms.

    Attributes:
        permuted: queries and keys are stored with the two halves of each head interleaved, as the
            original Llama code rotates them.
    """

    arch: gguf.MODEL_ARCH
    n_layers: int
    n_embd: int
    n_ff: int
    n_head: int
    n_head_kv: int
    head_dim: int
    n_vocab: int
    n_ctx: int
    rms_eps: float
    rope: dict[str, Any]
    tied: bool

    @property
    def permuted(self) -> bool:
        return bool(self.arch == gguf.MODEL_ARCH.LLAMA)

    @property
    def name(self) -> str:
        return str(gguf.MODEL_ARCH_NAMES[self.arch])

    @classmethod
    def of(cls, config: dict[str, Any]) -> Family:
        """Read the dimensions.

        Raises:
            InvalidBase: the family is not supported, or a dimension is missing or impossible.
        """
        kind = config.get("model_type")
        if kind not in ARCHITECTURES:
            raise InvalidBase(
                f"config.json: model_type is {kind!r}; export knows {', '.join(ARCHITECTURES)}. "
                "Convert other families with llama.cpp's own converter."
            )
        names = LlamaNames(_Attributes(config))
        try:
            n_head, n_embd = int(names.num_attention_heads), int(names.hidden_size)
            family = cls(
                arch=ARCHITECTURES[kind],
                n_layers=int(names.num_layers),
                n_embd=n_embd,
                n_ff=int(names.n_ff),
                n_head=n_head,
                n_head_kv=int(config.get("num_key_value_heads") or n_head),
                head_dim=int(config.get("head_dim") or n_embd // n_head),
                n_vocab=int(names.vocab_size),
                n_ctx=int(names.n_ctx),
                rms_eps=float(names.rms_eps),
                rope=_rope(config),
                tied=bool(config.get("tie_word_embeddings", False)),
            )
        except (AttributeError, TypeError, ValueError, ZeroDivisionError) as error:
            raise InvalidBase(
                f"config.json: a dimension is missing or wrong ({error}); download it again."
            ) from None
        _refuse_variants(config, family)
        return family

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Every tensor that a checkpoint of this family has, without biases and a head of its own."""
        q, kv = self.n_head * self.head_dim, self.n_head_kv * self.head_dim
        shapes: dict[str, tuple[int, ...]] = {
            EMBEDDING: (self.n_vocab, self.n_embd),
            "model.norm.weight": (self.n_embd,),
        }
        for i in range(self.n_layers):
            layer = f"model.layers.{i}."
            shapes |= {
                f"{layer}input_layernorm.weight": (self.n_embd,),
                f"{layer}post_attention_layernorm.weight": (self.n_embd,),
                f"{layer}self_attn.q_proj.weight": (q, self.n_embd),
                f"{layer}self_attn.k_proj.weight": (kv, self.n_embd),
                f"{layer}self_attn.v_proj.weight": (kv, self.n_embd),
                f"{layer}self_attn.o_proj.weight": (self.n_embd, q),
                f"{layer}mlp.gate_proj.weight": (self.n_ff, self.n_embd),
                f"{layer}mlp.up_proj.weight": (self.n_ff, self.n_embd),
                f"{layer}mlp.down_proj.weight": (self.n_embd, self.n_ff),
            }
            if self.arch == gguf.MODEL_ARCH.QWEN2:
                shapes |= {
                    f"{layer}self_attn.{n}_proj.bias": (d,) for n, d in (("q", q), ("k", kv), ("v", kv))
                }
            if self.arch == gguf.MODEL_ARCH.QWEN3:
                shapes |= {f"{layer}self_attn.{n}_norm.weight": (self.head_dim,) for n in "qk"}
        return shapes

    @cached_property
    def _names(self) -> Any:
        return gguf.get_tensor_name_map(self.arch, self.n_layers)

    def tensor_name(self, name: str) -> str:
        """The name in GGUF.

        Raises:
            InvalidBase: the family has no such tensor.
        """
        found = self._names.get_name(name, try_suffixes=(".weight", ".bias"))
        if found is None:
            raise InvalidBase(f"The base has a tensor {name!r}, which {self.name} models do not have.")
        return str(found)

    def permute(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """A tensor in the order in which GGUF holds it: see `permuted`."""
        if not self.permuted or not name.endswith(("q_proj.weight", "k_proj.weight")):
            return tensor
        heads = self.n_head if "q_proj" in name else self.n_head_kv
        halves = tensor.reshape(heads, 2, self.head_dim // 2, *tensor.shape[1:])
        return halves.transpose(1, 2).reshape(tensor.shape)

    def unpermute(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """The inverse of `permute`."""
        if not self.permuted or not name.endswith(("q_proj.weight", "k_proj.weight")):
            return tensor
        heads = self.n_head if "q_proj" in name else self.n_head_kv
        pairs = tensor.reshape(heads, self.head_dim // 2, 2, *tensor.shape[1:])
        return pairs.transpose(1, 2).reshape(tensor.shape)

    def rope_factors(self) -> torch.Tensor | None:
        """What Llama 3 divides its rotary frequencies by, of shape (head_dim / 2,); None elsewhere.

        Source: the Llama 3.1 release; long waves are slowed by `factor`, short ones kept, between them
        a linear blend.
        """
        if self.rope["type"] != "llama3":
            return None
        rope = self.rope
        low, high = rope["low_freq_factor"], rope["high_freq_factor"]
        original, factor = rope["original_max_position_embeddings"], rope["factor"]
        frequencies = rope["theta"] ** -(
            torch.arange(0, self.head_dim, 2, dtype=torch.float64) / self.head_dim
        )
        waves = original * frequencies / (2 * math.pi)  # waves within the original context
        blend = ((waves - low) / (high - low)).clamp(0, 1)
        return (1 / ((1 - blend) / factor + blend)).float()


def plain_name(path: str) -> str | None:
    """The checkpoint's name of a parameter or module of a loaded model, without what peft puts around it.

    None for what peft adds, and for what it has replaced.
    """
    path = path.removeprefix("base_model.model.")
    if ".lora_" in path or ".original_module" in path:
        return None
    return path.replace(".base_layer", "").replace(".modules_to_save.default", "")


class _Attributes:
    def __init__(self, values: dict[str, Any]) -> None:
        self.__dict__.update(values)


def _rope(config: dict[str, Any]) -> dict[str, Any]:
    """Rotary settings, from `rope_parameters` (transformers 5) or `rope_scaling` and `rope_theta`."""
    given = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    kind = given.pop("rope_type", given.pop("type", "default"))
    rope = {
        "type": kind,
        "theta": float(given.pop("rope_theta", config.get("rope_theta", 10_000.0))),
        **given,
    }
    needed = {
        "default": (),
        "linear": ("factor",),
        "yarn": ("factor", "original_max_position_embeddings"),
        "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    }
    if kind not in needed:
        raise InvalidBase(
            f"config.json: rotary positions of type {kind!r}; export knows {', '.join(needed)}."
        )
    if missing := [name for name in needed[kind] if name not in rope]:
        raise InvalidBase(f"config.json: rotary positions of type {kind!r} need {', '.join(missing)}.")
    return rope


def _refuse_variants(config: dict[str, Any], family: Family) -> None:
    """Settings that change what a layer computes, and that the GGUF architecture does not have."""
    if config.get("hidden_act", "silu") != "silu":
        raise InvalidBase(
            f"config.json: hidden_act is {config['hidden_act']!r}; {family.name} in GGUF has silu."
        )
    if config.get("use_sliding_window"):
        raise InvalidBase("config.json: use_sliding_window is on, which is not supported; turn it off.")
    if family.arch != gguf.MODEL_ARCH.LLAMA and config.get("mlp_bias"):
        raise InvalidBase("config.json: mlp_bias is on, which is not supported.")
    if (
        family.n_head % family.n_head_kv
        or min(family.n_layers, family.n_ff, family.n_vocab, family.n_ctx) < 1
    ):
        raise InvalidBase(
            f"config.json: {family.n_head} heads, {family.n_head_kv} key-value heads, "
            f"{family.n_layers} layers cannot be; download it again."
        )
