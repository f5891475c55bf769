"""Students and teachers in torch: from a folder in Hugging Face's form, or the hub."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from .config import Lora, Model
from .errors import InvalidModel

# What transformers says of its own future is nothing that a user could act on.
warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
transformers_logging.set_verbosity_error()

ATTENTION = ("q", "k", "v", "o")
PROJECTIONS = {
    **{name: f"{name}_proj" for name in ATTENTION},
    "gate": "gate_proj", "up": "up_proj", "down": "down_proj",
}  # fmt: skip


def load_tokenizer(base: str) -> Any:
    """Raises InvalidModel."""
    return _said(base, lambda: AutoTokenizer.from_pretrained(base))


def load(base: str, dtype: torch.dtype, quantized: bool = False) -> Any:
    """The model with plain weights, or held in 4 bits (NF4) on CUDA.

    Raises:
        InvalidModel: transformers cannot load it.
    """
    options = {"quantization_config": _four_bits()} if quantized else {}
    return _said(base, lambda: AutoModelForCausalLM.from_pretrained(base, dtype=dtype, **options))


def _four_bits() -> Any:
    if not torch.cuda.is_available() or not find_spec("bitsandbytes"):
        raise InvalidModel("quantized_base needs CUDA and bitsandbytes; without them leave it out.")
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16
    )


def _said(base: str, make: Callable[[], Any]) -> Any:
    if base.lower().endswith(".gguf"):
        # transformers reads it, but with other token ids for most tokenizers.
        raise InvalidModel(
            f"{base} is a GGUF; write it as a folder first: python -m export unpack {base} FOLDER"
        )
    try:
        return make()
    except Exception as error:  # from the network, the file system, the tokenizer: no class in common
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InvalidModel(f"transformers cannot load {base}: {reason:.200}") from None


def adapt(model: Any, given: Lora, base: str, seed: int) -> Any:
    """The model with a new adapter; everything else is frozen.

    Raises:
        InvalidModel: targets or layers that match nothing.
    """
    names = {
        name.rsplit(".", 1)[-1] for name, part in model.named_modules() if isinstance(part, torch.nn.Linear)
    }
    if given.targets == "all":
        wanted = sorted(names - {"lm_head"})
    else:
        chosen = ATTENTION if given.targets == "attention" else given.targets
        wanted = [PROJECTIONS.get(name, name) for name in chosen]
    if missing := [name for name in wanted if name not in names]:
        raise InvalidModel(
            f"LoRA target {missing[0]!r} matches no matrix of {base}, which has {', '.join(sorted(names))}."
        )
    torch.manual_seed(seed)
    return get_peft_model(
        model,
        LoraConfig(
            task_type="CAUSAL_LM",
            r=given.rank,
            lora_alpha=given.alpha,
            lora_dropout=given.dropout,
            use_rslora=given.rslora,
            target_modules=wanted,
            layers_to_transform=layers(given.layers, model.config.num_hidden_layers),
            base_model_name_or_path=base,
        ),
    )


def layers(said: str, n: int) -> list[int] | None:
    """The layers that "last third" or "20-29" means; None for all.

    Raises:
        InvalidModel: it is none of these forms, or names layers that are not there.
    """
    if said == "all":
        return None
    words = said.split()
    parts = {"half": 2, "third": 3, "quarter": 4}
    if len(words) == 2 and words[0] in ("first", "last") and words[1] in parts:
        count = max(1, round(n / parts[words[1]]))
        return list(range(count)) if words[0] == "first" else list(range(n - count, n))
    first, dash, last = said.partition("-")
    if first.isdecimal() and (last.isdecimal() or not dash):
        found = list(range(int(first), int(last or first) + 1))
        if found and found[-1] < n:
            return found
    raise InvalidModel(
        f'LoRA layers {said!r}: say "all", "last third" (or half, quarter, first), or numbers from 0 to '
        f'{n - 1} such as "20-29".'
    )


def load_trained(folder: Path, given: Model, dtype: torch.dtype) -> Any:
    """What a training has left, to be used."""
    if given.method == "full":
        return load(str(folder / "model"), dtype).eval()
    return PeftModel.from_pretrained(load(given.base, dtype), str(folder / "adapter")).eval()


def dtype_of(precision: str) -> torch.dtype:
    """What a precision means on this machine: bfloat16 where it is multiplied natively."""
    if precision != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[precision]
    if torch.cuda.is_available():
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if native else torch.float32


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
