"""Writes model folders in Hugging Face's form, of every family that can be exported.

Random weights, and a tokenizer trained on a few sentences.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, pre_tokenizers, processors
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

from benchmarks.shapes import by_regex, train_tokenizer
from export.vocabulary import LLAMA3, QWEN

TEXT = [
    "The patient has a fever of 38.9 degrees and a dry cough for 12 days.",
    "Give paracetamol 15 mg/kg every 6 hours; look for signs of dehydration.",
    "It's the patient's third visit; they'll measure HbA1c and creatinine again.",
    "患者三天前开始发热，伴有咳嗽。", "¿Cuáles son los síntomas? Fièvre élevée.",
    "Sodium 128 mmol/L, potassium 6.1 mmol/L, pH 7.31, pCO₂ 7.3 kPa",
] * 3  # fmt: skip

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# Writes the first token itself, as that of Llama 3 does.
LLAMA3_CHAT = "{{ bos_token }}" + CHATML

FAMILIES = ("smollm", "llama3", "qwen2", "qwen3")


@functools.cache
def _tokenizer(family: str) -> str:
    smollm = [
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False),
    ]
    split = smollm if family == "smollm" else by_regex(LLAMA3 if family == "llama3" else QWEN)
    tokenizer = train_tokenizer(TEXT, split, 600)
    if family == "llama3":
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)]
        )
    text: str = tokenizer.to_str()
    return text


def _coarse(values: torch.Tensor) -> torch.Tensor:
    """Rounded so that BF16 has room for sums."""
    return (values * 32).round() / 32


def _config(family: str, n_vocab: int, **changes: Any) -> PretrainedConfig:
    sizes = {
        "vocab_size": n_vocab, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 512,
        "bos_token_id": 0, "eos_token_id": 2, "tie_word_embeddings": family in ("smollm", "qwen3"),
    } | changes  # fmt: skip
    if family == "qwen2":
        sizes.pop("head_dim")
        return Qwen2Config(**sizes)
    if family == "qwen3":
        return Qwen3Config(**sizes)
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": 10_000.0}
    if family == "llama3":
        rope = {
            "rope_type": "llama3", "rope_theta": 500_000.0, "factor": 8.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 64,
        }  # fmt: skip
    return LlamaConfig(**{"rope_parameters": rope} | sizes)


def write(folder: Path, family: str, *, seed: int = 0, max_shard_size: str = "50GB", **changes: Any) -> Path:
    """Write a model folder and return it.

    Args:
        family: one of FAMILIES.
        changes: to the config.
    """
    text = _tokenizer(family)
    bos = "<|endoftext|>"
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(text),
        bos_token=bos,
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
    )
    tokenizer.chat_template = LLAMA3_CHAT if family == "llama3" else CHATML
    config = _config(family, 640, **changes)  # some more rows than tokens, as Qwen has
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                # Far larger than at the start of training, so that attention and answers are decided.
                gain = 8.0 if "embed" in name else 2.0
                parameter.copy_(_coarse(torch.randn_like(parameter) * gain / parameter.shape[1] ** 0.5))
            else:
                parameter.add_(_coarse(torch.randn_like(parameter) * 0.1))
    model.to(torch.bfloat16).save_pretrained(folder, max_shard_size=max_shard_size)
    tokenizer.save_pretrained(folder)
    return folder


def write_adapter(folder: Path, base: Path, *, seed: int = 1, **settings: Any) -> Path:
    """Write a random LoRA adapter for `base`, strong enough to be seen.

    What it changes is exact in BF16, so that a comparison sees mistakes and no rounding.
    """
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    given = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"]} | settings
    adapted = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **given))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                kept = torch.rand_like(parameter) < (0.25 if "lora_A" in name else 0.5)
                parameter.copy_(torch.randn_like(parameter).sign() * kept / (1 if "lora_A" in name else 16))
    adapted.save_pretrained(folder)
    return folder


def edit_json(path: Path, **changes: Any) -> None:
    values = json.loads(path.read_text("utf-8")) | changes
    path.write_text(json.dumps(values), "utf-8")
