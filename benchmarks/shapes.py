"""A synthetic checkpoint with the exact shapes of a published model.

For memory and speed, which do not depend on the values of weights. The text of such a model is noise, and
accuracy is not claimed. Weights are random with a seed, of the size that keeps activations in range; every
output says `synthetic`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Optional

import torch
import typer
from rich.console import Console
from safetensors.torch import save_file
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from export.__main__ import Display
from export.families import HEAD, Family
from export.progress import Report, silent
from export.vocabulary import QWEN

SHARD_BYTES = 1 << 30

# Dimensions from the models' own config.json.
MODELS: dict[str, dict[str, Any]] = {
    "DeepSeek-R1-Distill-Qwen-7B": {
        "model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "hidden_size": 3584,
        "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28,
        "num_key_value_heads": 4, "vocab_size": 152_064, "max_position_embeddings": 131_072,
        "rms_norm_eps": 1e-6, "rope_theta": 10_000.0, "tie_word_embeddings": False,
    },
    "DeepSeek-R1-Distill-Qwen-1.5B": {
        "model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "hidden_size": 1536,
        "intermediate_size": 8960, "num_hidden_layers": 28, "num_attention_heads": 12,
        "num_key_value_heads": 2, "vocab_size": 151_936, "max_position_embeddings": 131_072,
        "rms_norm_eps": 1e-6, "rope_theta": 10_000.0, "tie_word_embeddings": False,
    },
}  # fmt: skip

# What the tokenizer is trained on: enough for some merges. All other rows of the embedding stay unused.
TEXT = ["The patient has a fever of 38.9 degrees and a dry cough.", "Give paracetamol every 6 hours."]


def write(folder: Path, name: str, seed: int = 0, on_progress: Report = silent, **changes: Any) -> Path:
    """Write the checkpoint, a shard at a time, and return its folder.

    Args:
        name: one of MODELS.
        changes: to its config, such as fewer layers.
    """
    config = MODELS[name] | {"dtype": "bfloat16", "hidden_act": "silu"} | changes
    family = Family.of(config)
    shapes = family.shapes() | ({} if family.tied else {HEAD: (family.n_vocab, family.n_embd)})
    folder.mkdir(parents=True, exist_ok=True)
    _write_tokenizer(folder)
    config |= {"bos_token_id": 0, "eos_token_id": 2, "_name_or_path": f"{name}-synthetic"}
    (folder / "config.json").write_text(json.dumps(config, indent=1), "utf-8")
    about = f"Synthetic: random weights (seed {seed}) in the shapes of {name}."
    (folder / "README.md").write_text(f"---\nlicense: cc0-1.0\n---\n{about}\n", "utf-8")
    generator = torch.Generator().manual_seed(seed)
    total = sum(math.prod(shape) for shape in shapes.values())
    shard: dict[str, torch.Tensor] = {}
    where: dict[str, str] = {}
    done = size = 0
    for i, (tensor, shape) in enumerate(shapes.items(), 1):
        shard[tensor] = _values(shape, generator)
        size += 2 * math.prod(shape)
        if size >= SHARD_BYTES or i == len(shapes):
            file = f"model-{len(set(where.values())) + 1:05d}.safetensors"
            save_file(shard, folder / file, metadata={"format": "pt"})
            where |= dict.fromkeys(shard, file)
            shard, size = {}, 0
        done += math.prod(shape)
        on_progress(done, total)
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {"total_size": 2 * total}, "weight_map": where}), "utf-8"
    )
    return folder


def write_adapter(folder: Path, name: str, seed: int = 1, rank: int = 16) -> Path:
    """Write a random LoRA adapter of all matrices of the layers, in peft's form."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    matrices = {
        n: shape for n, shape in Family.of(MODELS[name]).shapes().items() if n.endswith("proj.weight")
    }
    for weight, (n_out, n_in) in matrices.items():
        module = "base_model.model." + weight.removesuffix(".weight")
        tensors[f"{module}.lora_A.weight"] = _values((rank, n_in), generator)
        tensors[f"{module}.lora_B.weight"] = _values((n_out, rank), generator) / 100
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    targets = sorted({weight.split(".")[-2] for weight in matrices})
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": 2 * rank,
              "target_modules": targets, "base_model_name_or_path": f"{name}-synthetic"}  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(config), "utf-8")
    return folder


def _values(shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    if len(shape) == 1:
        return torch.ones(shape, dtype=torch.bfloat16)
    scale = 1 / math.sqrt(shape[-1])
    return torch.randn(shape, generator=generator, dtype=torch.bfloat16).mul_(scale)


def train_tokenizer(texts: Sequence[str], split: Sequence[Any], n_tokens: int) -> Tokenizer:
    """A byte-level tokenizer of a few words. Token 0 may begin a text, token 2 ends an answer.

    Args:
        split: the pre-tokenizers, one after the other.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(list(split))
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=n_tokens,
            special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return tokenizer


def by_regex(pattern: str) -> list[Any]:
    """Pre-tokenizers that cut as Llama 3 and Qwen do."""
    return [
        pre_tokenizers.Split(Regex(pattern), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]


def _write_tokenizer(folder: Path) -> None:
    """As Qwen's, with few words."""
    tokenizer = train_tokenizer(TEXT, by_regex(QWEN), 400)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|endoftext|>", "eos_token": "<|im_end|>",
        "chat_template": "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
                         "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    }  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), "utf-8")


def main(
    folder: Annotated[Path, typer.Argument(help="Where the checkpoint goes: 15 GB for 7B.")],
    name: Annotated[str, typer.Option(help=f"One of {', '.join(MODELS)}.")] = next(iter(MODELS)),
    seed: int = 0,
    adapter: Annotated[Optional[Path], typer.Option(help="Write a random adapter as well, here.")] = None,  # noqa: UP045
) -> None:
    """Write a synthetic checkpoint with the exact shapes of a published model."""
    if name not in MODELS:
        raise typer.BadParameter(f"{name} is not among {', '.join(MODELS)}", param_hint="--name")
    with Display() as display, display.step("weights") as report:
        write(folder, name, seed, report)
    if adapter:
        write_adapter(adapter, name, seed + 1)
    Console(stderr=True).print(f"{folder}: synthetic weights in the shapes of {name}.", highlight=False)


if __name__ == "__main__":
    typer.run(main)
