"""Whole exports of tiny models, and faults that the gates must find."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch

from export import parity
from export.checkpoint import Checkpoint
from export.convert import convert
from export.errors import GateFailed, InvalidBase
from export.families import Family
from export.merge import Adapter, Merged
from export.reference import Reference
from export.unpack import unpack
from export.vocabulary import Vocabulary, read_vocabulary
from tests import tiny_checkpoint
from tests.tiny_checkpoint import FAMILIES, TEXT


@dataclass
class Made:
    base: Path
    adapter: Path
    reference: Reference
    family: Family
    vocabulary: Vocabulary
    weights: Any


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Made]:
    found: dict[str, Made] = {}

    def make(name: str) -> Made:
        if name not in found:
            # As many key heads as query heads: the matrix of keys is square, too.
            family, sizes = ("qwen2", {"num_key_value_heads": 4}) if name == "square" else (name, {})
            base = tiny_checkpoint.write(tmp_path_factory.mktemp(name), family, **sizes)
            adapter = tiny_checkpoint.write_adapter(tmp_path_factory.mktemp(f"{name}-adapter"), base)
            checkpoint = Checkpoint(base)
            family = Family.of(checkpoint.config)
            vocabulary = read_vocabulary(base, family.n_vocab, checkpoint.config)
            weights = Merged(checkpoint, Adapter(adapter))
            found[name] = Made(base, adapter, Reference(base, adapter), family, vocabulary, weights)
        return found[name]

    return make


def gate(
    made: Made, path: Path, weights: Any = None, family: Any = None, vocabulary: Any = None
) -> parity.Parity:
    """Convert, with faults in it where given, and compare with the model as it was trained."""
    convert(
        weights or made.weights, family or made.family, vocabulary or made.vocabulary, {"name": "t"}, path
    )
    with parity.opened(path, made.reference) as model:
        return parity.check(made.reference, model, TEXT, n_tokens=400)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_passes_the_parity_gate(made: Any, tmp_path: Path, name: str) -> None:
    found = gate(made(name), tmp_path / "model.gguf")
    assert found.top1 is not None and found.top1 >= 0.999
    assert found.mean_kl is not None and found.mean_kl <= 1e-6
    assert found.n_greedy == 4


class Changed:
    """Weights with a fault."""

    def __init__(self, weights: Any, change: Callable[[str, torch.Tensor], torch.Tensor]) -> None:
        self._weights, self._change = weights, change
        self.shapes = weights.shapes

    def tensor(self, name: str) -> torch.Tensor:
        return self._change(name, self._weights.tensor(name)).contiguous()


def transposed(part: str) -> Callable[[Made], dict[str, Any]]:
    def change(name: str, tensor: torch.Tensor) -> torch.Tensor:
        return tensor[: tensor.shape[1], :].T if name.endswith(f"0.self_attn.{part}_proj.weight") else tensor

    return lambda made: {"weights": Changed(made.weights, change)}


class Unpermuted(Family):
    @property
    def permuted(self) -> bool:
        return False


def twice(made: Made) -> dict[str, Any]:
    adapter = Adapter(made.adapter)

    def change(name: str, tensor: torch.Tensor) -> torch.Tensor:
        pair = adapter.pairs.get(name)
        return (tensor.float() + adapter.delta(pair)).to(tensor.dtype) if pair else tensor

    return {"weights": Changed(made.weights, change)}


def altered_vocabulary(**changes: Any) -> Callable[[Made], dict[str, Any]]:
    return lambda made: {"vocabulary": dataclasses.replace(made.vocabulary, **changes)}


def altered_rope(**rope: Any) -> Callable[[Made], dict[str, Any]]:
    return lambda made: {"family": dataclasses.replace(made.family, rope=rope)}


def swapped_end(made: Made) -> dict[str, Any]:
    return altered_vocabulary(special=made.vocabulary.special | {"eos": 1})(made)


def missing_merge(made: Made) -> dict[str, Any]:
    return altered_vocabulary(merges=made.vocabulary.merges[1:])(made)


def unpermuted(made: Made) -> dict[str, Any]:
    return {
        "family": Unpermuted(**{f.name: getattr(made.family, f.name) for f in dataclasses.fields(Family)})
    }


FAULTS: dict[str, tuple[str, Callable[[Made], dict[str, Any]], str]] = {
    "wrong pre-tokenizer": ("llama3", altered_vocabulary(pre="qwen2"), "token"),
    "missing merge rule": ("qwen3", missing_merge, "token"),
    "double BOS": (
        "llama3",
        altered_vocabulary(chat_template="{{ bos_token }}" + tiny_checkpoint.LLAMA3_CHAT),
        "BOS|becomes",
    ),
    "BOS where there is none": ("qwen2", altered_vocabulary(add_bos=True), "becomes"),
    "swapped end token": ("qwen2", swapped_end, "end"),
    "transposed q": ("qwen3", transposed("q"), "probable"),
    "transposed k": ("square", transposed("k"), "probable"),
    "unpermuted llama heads": ("smollm", unpermuted, "probable"),
    "wrong rope base": ("qwen2", altered_rope(type="default", theta=1_000_000.0), "probable"),
    "rope scaling forgotten": ("llama3", altered_rope(type="default", theta=500_000.0), "probable"),
    "adapter applied twice": ("smollm", twice, "probable"),
    "adapter not applied": ("smollm", lambda made: {"weights": Checkpoint(made.base)}, "probable"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_planted_faults_are_found(made: Any, tmp_path: Path, fault: str) -> None:
    name, plant, words = FAULTS[fault]
    this = made(name)
    with pytest.raises(GateFailed, match=words):
        gate(this, tmp_path / "model.gguf", **plant(this))


def test_a_tied_head_taken_as_zero_is_found(made: Any, tmp_path: Path) -> None:
    this = made("smollm")

    class WithHead(Changed):
        def tensor(self, name: str) -> torch.Tensor:
            if name == "lm_head.weight":
                return torch.zeros(self.shapes["model.embed_tokens.weight"])
            return super().tensor(name)

    weights = WithHead(this.weights, lambda name, tensor: tensor)
    weights.shapes = {
        **this.weights.shapes,
        "lm_head.weight": this.weights.shapes["model.embed_tokens.weight"],
    }
    with pytest.raises(GateFailed, match="probable"):
        gate(this, tmp_path / "model.gguf", weights=weights)


def export(*words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "export", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=None)


def texts(path: Path) -> Path:
    path.write_text("\n".join(json.dumps({"question": q, "answer": q[::-1]}) for q in TEXT), "utf-8")
    return path


def loose_recipe(path: Path) -> Path:
    """Random weights lose much more than trained ones."""
    text = Path("export/recipes/cpu.toml").read_text("utf-8").split("[gates]")[0]
    path.write_text(
        text + "[gates]\nmax_perplexity_ratio = 9\nmax_mean_kl = 9\nmin_top1 = 0\nmax_accuracy_loss = 1\n"
    )
    return path


def test_the_command_leaves_a_model_and_its_card(made: Any, tmp_path: Path) -> None:
    this = made("smollm")
    out, rows = tmp_path / "out", texts(tmp_path / "rows.jsonl")
    recipe = loose_recipe(tmp_path / "loose.toml")
    words = ("--base", this.base, "--adapter", this.adapter, "--calibration", rows, "--eval", rows,
             "--target", recipe, "--out", out, "--keep-bf16")  # fmt: skip
    run = export(*words)
    assert run.returncode == 0, run.stderr
    assert sorted(p.name for p in out.iterdir()) == ["model-bf16.gguf", "model.gguf", "model.json"]
    card = json.loads((out / "model.json").read_text())
    assert card["parity"]["problems"] == [] and card["retention"]["n_positions"] > 100
    kinds = {t.name: t.tensor_type.name for t in gguf.GGUFReader(out / "model.gguf").tensors}
    assert kinds["blk.0.attn_q.weight"] == "Q4_0" and kinds["token_embd.weight"] == "Q8_0"
    assert export("verify", out / "model.gguf").returncode == 0
    with (out / "model.gguf").open("r+b") as file:
        file.seek(-10, 2)
        file.write(b"damaged")
    run = export("verify", out / "model.gguf")
    assert run.returncode == 1 and "SHA-256" in run.stderr and "Traceback" not in run.stderr


def test_a_failed_gate_leaves_no_model_and_the_next_run_goes_on(made: Any, tmp_path: Path) -> None:
    this = made("qwen3")
    out, rows = tmp_path / "out", texts(tmp_path / "rows.jsonl")
    recipe = loose_recipe(tmp_path / "own.toml")
    loose = recipe.read_text("utf-8")
    recipe.write_text(loose.replace("max_mean_kl = 9", "max_mean_kl = 0"), "utf-8")
    words = ("--base", this.base, "--adapter", this.adapter, "--calibration", rows, "--eval", rows,
             "--target", recipe, "--out", out)  # fmt: skip
    run = export(*words)
    assert run.returncode == 1 and "mean KL" in run.stderr and "Traceback" not in run.stderr
    assert not list(out.glob("*.gguf")) and not list(out.glob("*.json"))
    recipe.write_text(loose, "utf-8")
    run = export(*words)
    assert run.returncode == 0, run.stderr
    for step in ("convert", "parity", "imatrix", "quantize"):
        assert f"{step} (done before)" in run.stderr
    assert sorted(p.name for p in out.iterdir()) == ["model.gguf", "model.json"]


@pytest.mark.parametrize("name", ["smollm", "qwen2", "qwen3"])
def test_a_gguf_as_base_is_the_same_model(made: Any, tmp_path: Path, name: str) -> None:
    """Converted, unpacked and converted again: the same tensors and the same tokenizer."""
    this = made(name)
    first, second = tmp_path / "first.gguf", tmp_path / "second.gguf"
    convert(this.weights, this.family, this.vocabulary, {"name": "t"}, first)
    unpack(first, tmp_path / "folder")
    again = Checkpoint(tmp_path / "folder")
    family = Family.of(again.config)
    convert(again, family, read_vocabulary(again.folder, family.n_vocab, again.config), {"name": "t"}, second)
    a, b = gguf.GGUFReader(first), gguf.GGUFReader(second)
    assert [t.name for t in a.tensors] == [t.name for t in b.tensors]
    assert all((x.data == y.data).all() for x, y in zip(a.tensors, b.tensors))
    assert {k: f.contents() for k, f in a.fields.items()} == {k: f.contents() for k, f in b.fields.items()}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--out", "x"), "--base is needed"),
        (("--base", "nowhere", "--out", "x", "--eval", "ROWS"), "nowhere does not exist"),
        (("--base", "BASE", "--out", "x"), "--eval FILE is needed"),
        (("--base", "BASE", "--out", "x", "--eval", "ROWS", "--target", "tpu"), "no such recipe"),
        (("--base", "BASE", "--out", "x", "--eval", "ROWS", "--skip", "all"), "no such gate"),
        (
            ("--base", "BASE", "--adapter", "BASE", "--out", "x", "--eval", "ROWS"),
            "adapter_config.json is missing",
        ),
    ],
)
def test_wrong_words_are_one_sentence(made: Any, tmp_path: Path, words: tuple[str, ...], said: str) -> None:
    given = {"BASE": made("qwen2").base, "ROWS": texts(tmp_path / "rows.jsonl"), "x": tmp_path / "x"}
    run = export(*(given.get(word, word) for word in words))
    assert run.returncode == 1 and said in " ".join(run.stderr.split())
    assert "Traceback" not in run.stderr


def test_weights_that_are_not_numbers_are_refused(made: Any, tmp_path: Path) -> None:
    this = made("qwen2")
    broken = Changed(this.weights, lambda n, t: t * float("nan") if n == "model.norm.weight" else t)
    with pytest.raises(InvalidBase, match=r"model\.norm\.weight.*NaN"):
        convert(broken, this.family, this.vocabulary, {"name": "t"}, tmp_path / "model.gguf")
    assert not list(tmp_path.iterdir())
