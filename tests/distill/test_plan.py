from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

import distill
from distill import config, plan
from distill.__main__ import app
from distill.errors import InvalidConfig
from tests import tiny_checkpoint
from tests.distill import rows

CONFIGS = Path(distill.__file__).parent / "configs"
DATA = Path(__file__).parents[3] / "shared" / "data"


def test_parameters_of_a_published_model_are_counted() -> None:
    # 7,615,616,512 by its own index of weights.
    student = config.load(CONFIGS / "r1-70b-to-7b.toml").models["student"]
    assert student.shape and plan._count(student.shape) == 7_615_616_512


@pytest.mark.parametrize("family", tiny_checkpoint.FAMILIES[:3])
def test_parameters_of_a_folder_are_counted(tmp_path: Path, family: str) -> None:
    base = tiny_checkpoint.write(tmp_path, family)
    counted = AutoModelForCausalLM.from_pretrained(base).num_parameters()
    assert plan._count(plan._read_shape("m", str(base))) == counted


@pytest.mark.skipif(not DATA.is_dir(), reason=f"no medical questions in {DATA}")
def test_the_large_recipe_is_valid_and_fits() -> None:
    done = CliRunner().invoke(
        app, ["run", "--dry-run", str(CONFIGS / "r1-70b-to-7b.toml")], env={"COLUMNS": "200"}
    )
    assert done.exit_code == 0, done.stderr
    assert "of 7,616 M" in done.stdout and "no question is in both" in done.stdout


def test_what_does_not_fit_is_said(tmp_path: Path) -> None:
    base = tiny_checkpoint.write(tmp_path / "base", "smollm")
    machine = "[machine]\nmemory_gb = 0.0001\ntflops = 1\n"
    path = rows.config(tmp_path, base, machine + '[models.student]\nbase = "BASE"\n')
    done = CliRunner().invoke(app, ["run", "--dry-run", str(path)])
    assert done.exit_code == 1 and "student does not fit into 0.0001 GB" in done.stderr


def test_a_plan_without_dimensions_names_them(tmp_path: Path) -> None:
    path = rows.config(
        tmp_path, tmp_path / "nowhere", '[machine]\nmemory_gb = 8\ntflops = 1\n[models.m]\nbase = "BASE"\n'
    )
    with pytest.raises(InvalidConfig, match=r"dimensions of .*nowhere are not known here .* models.m.shape"):
        plan.plan(config.load(path), [])


def test_utilization_is_what_was_computed_of_what_could_be() -> None:
    machine = config.Machine(memory_gb=80, tflops=100)
    lora, full = (config.Model(base="x", method="lora"), config.Model(base="x", method="full"))
    assert plan.utilization(machine, lora, 10**9, 5000, 1) == pytest.approx(0.2)
    assert plan.utilization(machine, full, 10**9, 5000, 2) == pytest.approx(0.15)
