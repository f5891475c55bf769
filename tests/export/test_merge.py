from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from export.checkpoint import Checkpoint
from export.errors import InvalidAdapter, InvalidBase
from export.merge import WEIGHTS, Adapter, Merged
from tests import tiny_checkpoint
from tests.tiny_checkpoint import edit_json


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint.write(tmp_path_factory.mktemp("base"), "qwen2")


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"use_rslora": True},
        {"rank_pattern": {"q_proj": 8}, "alpha_pattern": {"layers.1.self_attn.v_proj": 32}},
        {"target_modules": ["gate_proj", "down_proj"], "layers_to_transform": [1]},
        {"target_modules": ["lm_head", "o_proj"]},
        {"modules_to_save": ["lm_head"]},
    ],
    ids=["plain", "rslora", "patterns", "mlp", "head", "saved-head"],
)
def test_merging_is_what_peft_does(base: Path, tmp_path: Path, settings: dict[str, Any]) -> None:
    """In bfloat16: equal to peft's own sum in float32, rounded once."""
    adapter = tiny_checkpoint.write_adapter(tmp_path, base, **settings)
    merged = Merged(Checkpoint(base), Adapter(adapter))
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    expected = PeftModel.from_pretrained(model, adapter).merge_and_unload().state_dict()
    changed = 0
    for name in merged:
        ours = merged.tensor(name)
        assert torch.equal(ours, expected[name].to(ours.dtype)), name
        changed += not torch.equal(ours, Checkpoint(base).tensor(name)) if name in base_names(base) else 0
    assert changed


def base_names(base: Path) -> set[str]:
    return set(Checkpoint(base))


def test_fan_in_fan_out_transposes_the_change(base: Path, tmp_path: Path) -> None:
    adapter = tiny_checkpoint.write_adapter(tmp_path, base, target_modules=["q_proj"])  # square, so it fits
    plain = Merged(Checkpoint(base), Adapter(adapter))
    edit_json(adapter / "adapter_config.json", fan_in_fan_out=True)
    turned = Merged(Checkpoint(base), Adapter(adapter))
    for name, pair in Adapter(adapter).pairs.items():
        weight = Checkpoint(base).tensor(name).float()
        change = Adapter(adapter).tensor(pair.b).float() @ Adapter(adapter).tensor(pair.a).float() * 2
        assert torch.equal(plain.tensor(name), (weight + change).to(torch.bfloat16))
        assert torch.equal(turned.tensor(name), (weight + change.T).to(torch.bfloat16))


def test_a_tied_head_that_is_changed_becomes_its_own(tmp_path: Path) -> None:
    base = tiny_checkpoint.write(tmp_path / "base", "smollm")
    adapter = tiny_checkpoint.write_adapter(tmp_path / "adapter", base, target_modules=["lm_head"])
    merged = Merged(Checkpoint(base), Adapter(adapter))
    head, embedding = merged.tensor("lm_head.weight"), merged.tensor("model.embed_tokens.weight")
    assert head.shape == embedding.shape and not torch.equal(head, embedding)
    assert torch.equal(embedding, Checkpoint(base).tensor("model.embed_tokens.weight"))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"peft_type": "IA3"}, "IA3"),
        ({"use_dora": True}, "use_dora"),
        ({"bias": "lora_only"}, "bias"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights"),
        ({"trainable_token_indices": [1, 2]}, "trainable_token_indices"),
        ({"r": 3}, "rank 4"),
        ({"lora_alpha": 0}, "lora_alpha"),
    ],
)
def test_what_cannot_be_merged_is_refused_by_name(
    base: Path, tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    adapter = tiny_checkpoint.write_adapter(tmp_path, base)
    edit_json(adapter / "adapter_config.json", **change)
    with pytest.raises(InvalidAdapter, match=words):
        Adapter(adapter)


def rewrite(adapter: Path, change: Any) -> None:
    save_file(change(load_file(adapter / WEIGHTS)), adapter / WEIGHTS)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda t: (
                t | {"base_model.model.model.layers.0.self_attn.q_proj.lora_magnitude_vector": torch.ones(4)}
            ),
            "magnitude",
        ),
        (
            lambda t: {n: v for n, v in t.items() if "0.self_attn.q_proj.lora_B" not in n},
            "without its lora_B",
        ),
        (lambda t: t | {"something.else": torch.ones(4)}, "something.else"),
        (lambda t: {}, "no tensors"),
    ],
    ids=["dora part", "half a pair", "stranger", "empty"],
)
def test_no_tensor_of_the_adapter_is_skipped(base: Path, tmp_path: Path, change: Any, words: str) -> None:
    adapter = tiny_checkpoint.write_adapter(tmp_path, base)
    rewrite(adapter, change)
    with pytest.raises(InvalidAdapter, match=words):
        Merged(Checkpoint(base), Adapter(adapter))


def test_an_adapter_for_another_base_is_refused(base: Path, tmp_path: Path) -> None:
    wider = tiny_checkpoint.write(tmp_path / "wider", "qwen2", hidden_size=96)
    deeper = tiny_checkpoint.write(tmp_path / "deeper", "qwen2", num_hidden_layers=3)
    for number, other in enumerate((wider, deeper)):
        adapter = tiny_checkpoint.write_adapter(tmp_path / f"adapter{number}", other)
        with pytest.raises(InvalidAdapter, match="another base"):
            Merged(Checkpoint(base), Adapter(adapter))


def test_shards_are_one_checkpoint(base: Path, tmp_path: Path) -> None:
    sharded = tiny_checkpoint.write(tmp_path, "qwen2", max_shard_size="100KB")
    assert len(list(sharded.glob("*.safetensors"))) > 2
    whole, parts = Checkpoint(base), Checkpoint(sharded)
    assert whole.shapes == parts.shapes
    assert all(torch.equal(whole.tensor(name), parts.tensor(name)) for name in whole)


@pytest.mark.parametrize("damage", ["missing", "cut", "moved", "config"])
def test_a_damaged_checkpoint_is_refused(tmp_path: Path, damage: str) -> None:
    folder = tiny_checkpoint.write(tmp_path, "qwen2", max_shard_size="100KB")
    first = min(folder.glob("*.safetensors"))
    if damage == "missing":
        first.unlink()
    elif damage == "cut":
        first.write_bytes(first.read_bytes()[:-100])
    elif damage == "moved":
        index = json.loads((folder / "model.safetensors.index.json").read_text())
        names = index["weight_map"]
        names["model.norm.weight"] = next(f for f in names.values() if f != names["model.norm.weight"])
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    else:
        (folder / "config.json").write_text("{")
    with pytest.raises(
        InvalidBase, match=first.name if damage in ("missing", "cut") else "download it again"
    ):
        Checkpoint(folder)
