"""A GGUF as the base: unpacked to a model folder in Hugging Face's form, which the other steps read.

transformers can read a GGUF too, but gives every byte-level tokenizer the pre-tokenizer of GPT-2, and with
it other token ids.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import torch
from huggingface_hub import metadata_save
from safetensors.torch import save_file

from .errors import InvalidBase
from .families import ARCHITECTURES, HEAD, Family
from .progress import Report, silent
from .vocabulary import PRE_TOKENIZERS

SHARD_BYTES = 1 << 30


def unpack(source: Path, folder: Path, on_progress: Report = silent) -> None:
    """Write config, tokenizer and BF16 weights of `source` into `folder`.

    Raises:
        InvalidBase: it is no GGUF, or of a family that is not supported.
    """
    reader, values, config = _read(source)
    family = Family.of(config)
    folder.mkdir(parents=True, exist_ok=True)
    _write_json(folder / "config.json", config)
    told = {"license": values.get("general.license"), "language": values.get("general.languages")}
    metadata_save(folder / "README.md", {key: value for key, value in told.items() if value})
    _write_tokenizer(folder, source, values)
    _write_weights(folder, reader, family, on_progress)


def read_config(source: Path) -> dict[str, Any]:
    """What config.json would say.

    Raises:
        InvalidBase: it is no GGUF, or of a family that is not supported.
    """
    return _read(source)[2]


def _read(source: Path) -> tuple[gguf.GGUFReader, dict[str, Any], dict[str, Any]]:
    try:
        reader = gguf.GGUFReader(source)
    except (OSError, ValueError, IndexError) as error:
        raise InvalidBase(f"{source} cannot be read as GGUF ({error}); download it again.") from None
    values = {name: field.contents() for name, field in reader.fields.items()}
    return reader, values, _config(source, values, {t.name for t in reader.tensors})


def _config(source: Path, values: dict[str, Any], tensors: set[str]) -> dict[str, Any]:
    kind = values.get("general.architecture")
    if kind not in ARCHITECTURES:
        raise InvalidBase(f"{source} is a {kind!r} model; export knows {', '.join(ARCHITECTURES)}.")
    if "rope_freqs.weight" in tensors or f"{kind}.rope.scaling.type" in values:
        raise InvalidBase(
            f"{source} scales its rotary positions; take the original model folder as --base instead."
        )
    try:
        n_head, n_embd = values[f"{kind}.attention.head_count"], values[f"{kind}.embedding_length"]
        return {
            "model_type": kind,
            "architectures": [
                {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM"}.get(kind, "Qwen3ForCausalLM")
            ],
            "_name_or_path": values.get("general.name", source.stem),
            "num_hidden_layers": values[f"{kind}.block_count"],
            "hidden_size": n_embd,
            "intermediate_size": values[f"{kind}.feed_forward_length"],
            "num_attention_heads": n_head,
            "num_key_value_heads": values.get(f"{kind}.attention.head_count_kv", n_head),
            "head_dim": values.get(f"{kind}.attention.key_length", n_embd // n_head),
            "max_position_embeddings": values[f"{kind}.context_length"],
            "rms_norm_eps": values[f"{kind}.attention.layer_norm_rms_epsilon"],
            "rope_theta": values.get(f"{kind}.rope.freq_base", 10_000.0),
            "vocab_size": len(values["tokenizer.ggml.tokens"]),
            "tie_word_embeddings": "output.weight" not in tensors,
            "bos_token_id": values.get("tokenizer.ggml.bos_token_id"),
            "eos_token_id": values.get("tokenizer.ggml.eos_token_id"),
            "dtype": "bfloat16",
        }
    except KeyError as error:
        raise InvalidBase(f"{source} lacks {error}; download it again.") from None


def _write_tokenizer(folder: Path, source: Path, values: dict[str, Any]) -> None:
    pre = values.get("tokenizer.ggml.pre")
    words = next((words for words, name in PRE_TOKENIZERS.items() if name == pre), None)
    if values.get("tokenizer.ggml.model") != "gpt2" or words is None:
        raise InvalidBase(
            f"{source}: tokenizer {values.get('tokenizer.ggml.model')!r} with pre-tokenizer {pre!r}; "
            f"export knows byte-level BPE with {', '.join(PRE_TOKENIZERS.values())}."
        )
    tokens, types = values["tokenizer.ggml.tokens"], values["tokenizer.ggml.token_type"]
    added = [
        {
            "id": i, "content": text, "special": kind == gguf.TokenType.CONTROL, "normalized": False,
            "single_word": False, "lstrip": False, "rstrip": False,
        }
        for i, (text, kind) in enumerate(zip(tokens, types))
        if kind in (gguf.TokenType.CONTROL, gguf.TokenType.USER_DEFINED)
    ]  # fmt: skip
    add_bos = bool(values.get("tokenizer.ggml.add_bos_token", False))
    bos = values.get("tokenizer.ggml.bos_token_id")
    _write_json(folder / "tokenizer.json", {
        "version": "1.0", "truncation": None, "padding": None, "normalizer": None,
        "added_tokens": added,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [_step(word) for word in words]},
        "post_processor": _begin_with(tokens[bos], bos) if add_bos and bos is not None else None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False,
            "ignore_merges": pre == "llama-bpe",
            "vocab": {text: i for i, text in enumerate(tokens) if types[i] != gguf.TokenType.UNUSED},
            "merges": [merge.split(" ") for merge in values["tokenizer.ggml.merges"]],
        },
    })  # fmt: skip
    settings: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
    }
    for name, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")):
        token = values.get(f"tokenizer.ggml.{key}_token_id")
        if token is not None:
            settings[f"{name}_token"] = tokens[token]
    if template := values.get("tokenizer.chat_template"):
        settings["chat_template"] = template
    _write_json(folder / "tokenizer_config.json", settings)


def _step(word: str) -> dict[str, Any]:
    if word == "digits":
        return {"type": "Digits", "individual_digits": True}
    if word.startswith("bytes"):
        return {
            "type": "ByteLevel",
            "add_prefix_space": False,
            "trim_offsets": True,
            "use_regex": word == "bytes:words",
        }
    regex = word.removeprefix("split:")
    return {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}


def _begin_with(text: str, token: int) -> dict[str, Any]:
    first = {"SpecialToken": {"id": text, "type_id": 0}}
    a, b = ({"Sequence": {"id": name, "type_id": 0}} for name in "AB")
    return {
        "type": "TemplateProcessing", "single": [first, a], "pair": [first, a, b],
        "special_tokens": {text: {"id": text, "ids": [token], "tokens": [text]}},
    }  # fmt: skip


def _write_weights(folder: Path, reader: gguf.GGUFReader, family: Family, on_progress: Report) -> None:
    stored = {tensor.name: tensor for tensor in reader.tensors}
    names = [n for n in (*family.shapes(), HEAD) if family.tensor_name(n) in stored]
    where: dict[str, str] = {}
    for number, shard in enumerate(_shards(names, stored, family)):
        tensors = {}
        for name in shard:
            source = stored[family.tensor_name(name)]
            values = torch.from_numpy(gguf.quants.dequantize(source.data, source.tensor_type).copy())
            tensors[name] = family.unpermute(name, values).to(torch.bfloat16).contiguous()
            on_progress(len(where) + len(tensors), len(names))
        file = f"model-{number:05d}.safetensors"
        save_file(tensors, folder / file, metadata={"format": "pt"})
        where |= dict.fromkeys(tensors, file)
    _write_json(folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": where})


def _shards(names: list[str], stored: dict[str, Any], family: Family) -> Iterator[list[str]]:
    shard: list[str] = []
    size = 0
    for name in names:
        shard.append(name)
        size += 2 * int(stored[family.tensor_name(name)].n_elements)
        if size >= SHARD_BYTES:
            yield shard
            shard, size = [], 0
    if shard:
        yield shard


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=1), "utf-8")
