"""Whole exports of tiny models, and faults that the gates must find."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from edge_runtime.models.adapter import merge
from export import parity, recipe
from export.__main__ import app
from export.budget import Budget
from export.checkpoint import Checkpoint
from export.compare import Difference
from export.convert import convert
from export.errors import ExportError, GateFailed, InvalidBase, InvalidRecipe
from export.families import Family
from export.hub import locate
from export.merge import Adapter, Merged
from export.native import Model, quantize
from export.pipeline import Export, Options
from export.progress import Progress
from export.provenance import Provenance, read_provenance, stamped
from export.reference import Reference
from export.unpack import unpack
from export.vocabulary import Vocabulary, read_vocabulary
from tests import tiny_checkpoint
from tests.hub import Hub
from tests.tiny_checkpoint import FAMILIES, TEXT

ORIGIN = Provenance("t", "apache-2.0", ("en", "fr"))


VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    # As many key heads as query heads: the matrix of keys is square, too.
    "square": ("qwen2", {"num_key_value_heads": 4}),
    "yarn": (
        "qwen2",
        {
            "rope_parameters": {
                "rope_type": "yarn", "rope_theta": 10_000.0, "factor": 4.0,
                "original_max_position_embeddings": 32,
            }
        },
    ),
    "linear": ("smollm", {"rope_parameters": {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 4.0}}),
}  # fmt: skip


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
            family, sizes = VARIANTS.get(name, (name, {}))
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
    convert(weights or made.weights, family or made.family, vocabulary or made.vocabulary, ORIGIN, path)
    with parity.opened(path, made.reference) as model:
        return parity.check(made.reference, model, TEXT, n_tokens=400)


@pytest.mark.parametrize("name", [*FAMILIES, "yarn", "linear"])
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


@pytest.fixture(scope="module")
def exported(made: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model and its card."""
    folder = tmp_path_factory.mktemp("exported")
    out = folder / "out"
    Export(
        Options(made("smollm").base, out, None, None, skip=frozenset({"parity", "retention"})), Progress()
    ).run()
    return out


def test_the_command_leaves_a_model_and_its_card(made: Any, tmp_path: Path) -> None:
    this = made("smollm")
    out, rows = tmp_path / "out", texts(tmp_path / "rows.jsonl")
    own = loose_recipe(tmp_path / "loose.toml")
    words = ("--base", this.base, "--adapter", this.adapter, "--calibration", rows, "--eval", rows,
             "--target", own, "--out", out, "--keep-bf16")  # fmt: skip
    run = export(*words)
    assert run.returncode == 0, run.stderr
    assert sorted(p.name for p in out.iterdir()) == ["model-bf16.gguf", "model.gguf", "model.json"]
    card = json.loads((out / "model.json").read_text())
    assert card["parity"]["problems"] == [] and card["retention"]["n_positions"] > 100
    kinds = {t.name: t.tensor_type.name for t in gguf.GGUFReader(out / "model.gguf").tensors}
    assert kinds["blk.0.attn_q.weight"] == "IQ4_NL" and kinds["token_embd.weight"] == "Q8_0"
    assert stamped(out / "model.gguf") == {
        "parity.top1": pytest.approx(card["parity"]["top1"]),
        "parity.mean_kl": pytest.approx(card["parity"]["mean_kl"], abs=1e-9),
        "retention.perplexity_ratio": pytest.approx(card["retention"]["perplexity_ratio"]),
        "retention.mean_kl": pytest.approx(card["retention"]["mean_kl"]),
    }
    assert stamped(out / "model-bf16.gguf") == stamped(out / "model.gguf")
    assert set(card["sources"]) == {"base", "adapter", "calibration", "evaluation"}
    assert export("verify", out / "model.gguf").returncode == 0
    with (out / "model.gguf").open("r+b") as file:
        file.seek(-10, 2)
        file.write(b"damaged")
    run = export("verify", out / "model.gguf")
    assert run.returncode == 1 and "SHA-256" in run.stderr and "Traceback" not in run.stderr


@pytest.mark.parametrize("name", FAMILIES)
def test_types_by_what_was_measured(made: Any, tmp_path: Path, name: str) -> None:
    """Within the budget, and nearer to the trained model the larger it is."""
    this = made(name)
    rows, own = texts(tmp_path / "rows.jsonl"), loose_recipe(tmp_path / "loose.toml")

    def run(budget: Budget) -> dict[str, Any]:
        options = Options(this.base, tmp_path / "out", rows, rows, this.adapter, None, str(own), budget)
        return Export(options, Progress()).run()

    lost = []
    for bits in (5.9, 7.5):
        card = run(Budget(bits=bits))
        tensors = gguf.GGUFReader(tmp_path / "out/model.gguf").tensors
        held = 8 * sum(int(t.n_bytes) for t in tensors) / sum(int(t.n_elements) for t in tensors)
        assert bits - 0.5 < held <= bits
        written = recipe.load(str(tmp_path / "out/recipe.toml"))
        assert {n: (k,) for n, k in card["types"].items()} == written.tensors
        lost.append(card["retention"]["mean_kl"])
    assert lost[1] < lost[0]
    most = card["file"]["bytes"] - 1000
    assert run(Budget(max_bytes=most))["file"]["bytes"] <= most
    with pytest.raises(InvalidRecipe, match="more than the budget"):
        run(Budget(max_bytes=20_000))


def test_a_failed_gate_leaves_no_model_and_the_next_run_goes_on(made: Any, tmp_path: Path) -> None:
    this = made("qwen3")
    out, rows = tmp_path / "out", texts(tmp_path / "rows.jsonl")
    own = loose_recipe(tmp_path / "own.toml")
    loose = own.read_text("utf-8")
    own.write_text(loose.replace("max_mean_kl = 9", "max_mean_kl = 0"), "utf-8")
    words = ("--base", this.base, "--adapter", this.adapter, "--calibration", rows, "--eval", rows,
             "--target", own, "--recipe", "auto", "--bits", 6, "--out", out)  # fmt: skip
    run = export(*words)
    assert run.returncode == 1 and "mean KL" in run.stderr and "Traceback" not in run.stderr
    assert not list(out.glob("*.gguf")) and not list(out.glob("*.json"))
    own.write_text(loose, "utf-8")
    run = export(*words)
    assert run.returncode == 0, run.stderr
    for step in ("convert", "parity", "imatrix", "quantize"):
        assert f"{step} (done before)" in run.stderr
    assert "ffn_up 0-0" in run.stdout  # why which matrix got which type
    assert sorted(p.name for p in out.iterdir()) == ["model.gguf", "model.json", "recipe.toml"]


@pytest.mark.parametrize("name", ["smollm", "qwen2", "qwen3"])
def test_a_gguf_as_base_is_the_same_model(made: Any, tmp_path: Path, name: str) -> None:
    """Converted, unpacked and converted again: the same tensors and the same tokenizer."""
    this = made(name)
    first, second = tmp_path / "first.gguf", tmp_path / "second.gguf"
    convert(this.weights, this.family, this.vocabulary, ORIGIN, first)
    unpack(first, tmp_path / "folder")
    again = Checkpoint(tmp_path / "folder")
    family = Family.of(again.config)
    vocabulary = read_vocabulary(again.folder, family.n_vocab, again.config)
    convert(again, family, vocabulary, read_provenance(again.folder, again.config, None, None), second)
    a, b = gguf.GGUFReader(first), gguf.GGUFReader(second)
    assert [t.name for t in a.tensors] == [t.name for t in b.tensors]
    assert all((x.data == y.data).all() for x, y in zip(a.tensors, b.tensors))
    # Equal as text: what will be measured is still NaN.
    assert [(k, repr(f.contents())) for k, f in sorted(a.fields.items())] == [
        (k, repr(f.contents())) for k, f in sorted(b.fields.items())
    ]


@pytest.mark.parametrize("settings", [{}, {"use_rslora": True, "alpha_pattern": {"v_proj": 3}}])
@pytest.mark.parametrize("name", FAMILIES)
def test_an_adapter_as_a_file_of_its_own(made: Any, tmp_path: Path, name: str, settings: Any) -> None:
    """With the base's GGUF it is the trained model: beside it, and merged by the runtime."""
    this = made(name)
    modules = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "down_proj"]
    folder = tiny_checkpoint.write_adapter(
        tmp_path / "adapter", this.base, target_modules=modules, r=8, **settings
    )
    base, file = tmp_path / "base.gguf", tmp_path / "adapter.gguf"
    convert(Checkpoint(this.base), this.family, this.vocabulary, ORIGIN, base)
    run = export("lora", "--base", base if this.family.rope["type"] == "default" else this.base,
                 "--adapter", folder, "--out", file)  # fmt: skip
    assert run.returncode == 0, run.stderr
    reference = Reference(this.base, folder)
    expanded = tmp_path / "base-f32.gguf"
    quantize(base, expanded, {t.name: "F32" for t in gguf.GGUFReader(base).tensors if len(t.shape) > 1})
    merge(expanded, file, tmp_path / "merged.gguf", {"general.name": "both"})
    apart = []
    for path, lora in ((expanded, file), (tmp_path / "merged.gguf", None), (expanded, None)):
        difference = Difference()
        with Model(path, exact=True, lora=lora) as model:
            for tokens in parity.windows(reference.tokenize, TEXT, 400):
                theirs = reference.logits(tokens)
                difference.add(tokens, theirs, model.logits(tokens)[:, : theirs.shape[1]])
        apart.append(difference.mean_kl)
    assert apart[0] < 1e-4 and apart[1] < 1e-4 and apart[2] > 0.1


@pytest.mark.parametrize("settings", [{"modules_to_save": ["lm_head"]}, {"target_modules": ["lm_head"]}])
def test_what_an_adapter_file_cannot_hold_is_refused(made: Any, tmp_path: Path, settings: Any) -> None:
    this = made("smollm")
    folder = tiny_checkpoint.write_adapter(tmp_path / "adapter", this.base, **settings)
    run = export("lora", "--base", this.base, "--adapter", folder, "--out", tmp_path / "a.gguf")
    assert run.returncode == 1 and "lm_head" in run.stderr and "Traceback" not in run.stderr
    assert not list(tmp_path.glob("*.gguf"))


def test_a_base_by_its_name_on_the_hub(made: Any, hub: Hub, tmp_path: Path) -> None:
    base = made("qwen2").base
    hub.repositories["clinic/tiny"] = {p.name: p.read_bytes() for p in base.iterdir()} | {
        "README.md": b"---\nlicense: mit\nlanguage: en\n---\nA card.\n",
        "pytorch_model.bin": b"not wanted",
    }
    path, name = locate("clinic/tiny")
    options = Options(
        path, tmp_path / "out", None, None, hub_name=name, skip=frozenset({"parity", "retention"})
    )
    card = Export(options, Progress()).run()
    assert (card["base"], card["name"]) == ("clinic/tiny", "tiny")
    assert (card["license"], card["languages"]) == ("mit", ("en",))
    fields = gguf.GGUFReader(tmp_path / "out/model.gguf").fields
    assert fields["general.license"].contents() == "mit"
    assert fields["general.base_model.0.repo_url"].contents() == "https://huggingface.co/clinic/tiny"
    assert not any("pytorch_model.bin" in asked for asked in hub.asked)
    hub.close()  # from now on the cache
    assert locate("clinic/tiny")[0].is_dir()
    with pytest.raises(InvalidBase, match="connection"):
        locate("clinic/other")


def test_continuations_are_as_likely_together_as_alone(exported: Path) -> None:
    with Model(exported / "model.gguf", exact=True) as model:
        text = model.tokenize(TEXT[0])
        ends = [model.tokenize(words) for words in (TEXT[1], "No.", TEXT[2])]
        expected = []
        for end in ends:
            rows = torch.log_softmax(torch.from_numpy(model.logits(text + end))[len(text) - 1 : -1], -1)
            expected.append(float(rows[torch.arange(len(end)), end].mean()))
        assert model.log_likelihoods(text, ends) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda card: card["types"].update({"blk.0.attn_q.weight": "Q8_0"}), "attn_q.weight is IQ4_NL"),
        (lambda card: card["probes"][0].update(nll=1.0), "nats a token"),
        (lambda card: card["probes"][1].update(tokens=[1, 2]), "other tokens"),
        (lambda card: card.pop("probes"), "no card of an export"),
    ],
)
def test_verifying_again_on_a_machine_without_torch(
    exported: Path, tmp_path: Path, change: Any, said: str
) -> None:
    shutil.copytree(exported, tmp_path / "out")
    model = tmp_path / "out/model.gguf"
    without = "import sys; sys.modules['torch'] = None; from export.__main__ import app; app()"

    def verify() -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", without, "verify", str(model)]
        return subprocess.run(command, capture_output=True, text=True, timeout=60)

    assert verify().returncode == 0, verify().stderr
    card = json.loads(model.with_suffix(".json").read_text())
    change(card)
    model.with_suffix(".json").write_text(json.dumps(card))
    again = verify()
    assert again.returncode == 1 and said in " ".join(again.stderr.split()), again.stderr
    assert "Traceback" not in again.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--out", "x"), "--base is needed"),
        (("--base", "nowhere", "--out", "x", "--eval", "ROWS"), "nowhere does not exist"),
        (("--base", "BASE", "--out", "x"), "--eval FILE is needed"),
        (("--base", "BASE", "--out", "x", "--eval", "ROWS", "--target", "tpu"), "no such recipe"),
        (("--base", "BASE", "--out", "x", "--eval", "ROWS", "--skip", "all"), "no such gate"),
        (("--base", "BASE", "--out", "x", "--eval", "ROWS", "--recipe", "best"), "there are plain and auto"),
        (("--base", "BASE", "--out", "x", "--eval", "ROWS", "--bits", "5"), "needs --recipe auto"),
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
        convert(broken, this.family, this.vocabulary, ORIGIN, tmp_path / "model.gguf")
    assert not list(tmp_path.iterdir())


def test_a_gguf_is_unpacked_for_training(made: Any, tmp_path: Path) -> None:
    model, folder = tmp_path / "model.gguf", tmp_path / "base"
    gate(made("smollm"), model)
    assert CliRunner().invoke(app, ["unpack", str(model), str(folder)]).exit_code == 0
    assert AutoModelForCausalLM.from_pretrained(folder).config.model_type == "llama"
    again = CliRunner().invoke(app, ["unpack", str(model), str(folder)])
    assert again.exit_code == 1 and "exists and is no empty folder" in again.stderr


def _other_family(base: Path) -> None:
    tiny_checkpoint.edit_json(base / "config.json", model_type="mamba", architectures=["MambaForCausalLM"])


def _other_shape(base: Path) -> None:
    tiny_checkpoint.edit_json(base / "config.json", intermediate_size=160)


def _few_rows(base: Path) -> None:
    tiny_checkpoint.edit_json(base / "config.json", vocab_size=320)


def _other_cut(base: Path) -> None:
    cut = {"type": "Whitespace"}
    tiny_checkpoint.edit_json(base / "tokenizer.json", pre_tokenizer=cut)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (_other_family, r"mamba.*llama"),
        (_other_shape, r"(gate|up|down)_proj.*160"),
        (_few_rows, r"320"),
        (_other_cut, r"pre-tokenizer"),
    ],
)
def test_a_base_that_cannot_be_exported_is_refused(
    tmp_path: Path, damage: Callable[[Path], None], said: str
) -> None:
    base = tiny_checkpoint.write(tmp_path / "base", "smollm")
    damage(base)
    options = Options(base, tmp_path / "out", None, None, skip=frozenset({"parity", "retention"}))
    with pytest.raises(InvalidBase, match=said):
        Export(options, Progress()).run()
    assert not list(tmp_path.rglob("*.gguf"))


def test_a_disk_without_room_is_said_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = tiny_checkpoint.write(tmp_path / "base", "smollm")
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    options = Options(base, tmp_path / "out", None, None, skip=frozenset({"parity", "retention"}))
    with pytest.raises(ExportError, match=r"has 0\.0 GB free, the export takes"):
        Export(options, Progress()).run()
    assert not list(tmp_path.rglob("*.gguf"))
