"""Whole runs of a tiny model."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer

from distill import model as models
from distill import train
from distill.errors import DistillError, InvalidConfig
from distill.evaluate import nats
from tests import tiny_checkpoint
from tests.distill import rows

ONE_THREAD = os.environ | {"OMP_NUM_THREADS": "1"}
TEACHER = """
[models.teacher]
base = "BASE"
method = "full"
training = { batch = 4, micro_batch = 2, epochs = 8, learning_rate = 3e-3, evaluate_every = 5, patience = 0 }
"""
STUDENT = """
[models.student]
base = "BASE"
lora = { rank = 8, alpha = 16 }
distillation = { teacher = "teacher", weight = 0.5, top_k = 16 }
training = { batch = 4, micro_batch = 4, epochs = 4, learning_rate = 1e-2, evaluate_every = 5, patience = 0 }
"""
TEN_ROWS = """
[models.student]
base = "BASE"
lora = { rank = 16, alpha = 32, targets = "all" }
training = { batch = 5, micro_batch = 5, epochs = 60, learning_rate = 1e-2, evaluate_every = 60 }
"""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint.write(tmp_path_factory.mktemp("base"), "smollm")


def test_ten_rows_are_learned_by_heart(base: Path, tmp_path: Path) -> None:
    stages = rows.run(rows.config(tmp_path, base, TEN_ROWS))
    stages.train("student")
    given = stages.config.models["student"]
    learned = models.load_trained(tmp_path / "out/student", given, torch.float32)
    examples, counts = stages.examples(given)
    assert counts.examples == 10
    sums, n = nats(learned, examples, stages.pad(str(base)))
    before, _ = nats(models.load(str(base), torch.float32).eval(), examples, stages.pad(str(base)))
    assert sum(before) / sum(n) > 3 and sum(sums) / sum(n) < 0.1


def test_teacher_logits_student_and_table(base: Path, tmp_path: Path) -> None:
    stages = rows.run(rows.config(tmp_path, base, TEACHER + STUDENT))
    for name in ("teacher", "student"):
        stages.logits(name)
        stages.train(name)
    found = stages.evaluate()
    assert list(found) == ["base", "teacher", "student"]
    nll = {name: answers["dev.jsonl"].nll for name, answers in found.items()}
    assert nll["teacher"] < nll["base"] and nll["student"] < nll["base"]
    assert len(found["student"]["mcq.jsonl"].right_text) == 5 and found["base"]["mcq.jsonl"].majority == 1.0
    told = json.loads((tmp_path / "out/student/run.json").read_text())
    assert told["examples"]["answer_tokens"] and told["tokens_per_s"] > 0 and told["steps"] == 10
    assert any("from_teacher" in entry for entry in told["log"])
    for picture in ("out/student/curves.png", "out/curves.png"):
        assert (tmp_path / picture).stat().st_size > 10_000
    assert AutoTokenizer.from_pretrained(tmp_path / "out/teacher/model").chat_template
    card = (tmp_path / "out/student/adapter/README.md").read_text()
    assert "Taught by teacher: forward_kl" in card and "Not a medical device" in card
    adapter = load_file(tmp_path / "out/student/adapter/adapter_model.safetensors")
    assert {name.split(".")[-3] for name in adapter} == {"q_proj", "k_proj", "v_proj", "o_proj"}


@pytest.mark.slow
def test_the_whole_command(base: Path, tmp_path: Path) -> None:
    config = rows.config(tmp_path, base, TEACHER + STUDENT)
    command = [sys.executable, "-m", "distill", "run", str(config)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=ONE_THREAD)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "nats per answer token" in done.stdout and "right answers" in done.stdout
    told = json.loads((tmp_path / "out/evaluation.json").read_text())
    assert set(told["nll"]["dev.jsonl"]) == {"base", "teacher", "student"}
    assert told["questions"]["all"]["student"]["n"] == 5
    assert "student mcq" in done.stderr and "logits teacher" in done.stderr


def test_what_was_forgotten(base: Path, tmp_path: Path) -> None:
    text = tmp_path / "general.txt"
    config = rows.config(tmp_path, base, DROPOUT, data='general = ["general.txt"]')
    with pytest.raises(InvalidConfig, match=r"general\.txt cannot be read"):
        rows.run(config)
    text.write_text("A river carries sand to the sea, and the sea gives it back to the shore. " * 40)
    rows.run(config).train("student")
    first = rows.run(config).evaluate()
    assert first["base"]["general.txt"].n_tokens and first["student"]["general.txt"].nll > 0
    text.write_text("Bread needs flour, water, salt, and time. " * 40)
    second = rows.run(config).evaluate()
    for name in ("base", "student"):
        assert second[name]["general.txt"].nats != first[name]["general.txt"].nats
        assert second[name]["dev.jsonl"] == first[name]["dev.jsonl"]


DROPOUT = """
[models.student]
base = "BASE"
lora = { rank = 4, dropout = 0.2 }
training = { batch = 4, micro_batch = 2, epochs = 5, learning_rate = 1e-2, evaluate_every = 3 }
"""


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "out/student/adapter/adapter_model.safetensors")


@pytest.fixture
def killed(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Interrupts a training after so many steps."""

    def at(step: int) -> None:
        def stop(self: Any, arguments: Any, state: Any, *_: Any, **__: Any) -> None:
            if state.global_step == step:
                raise KeyboardInterrupt

        monkeypatch.setattr(train.Times, "on_step_end", stop)

    return at


def test_resumed_is_as_if_never_stopped(base: Path, tmp_path: Path, killed: Any, monkeypatch: Any) -> None:
    once, twice = tmp_path / "once", tmp_path / "twice"
    for folder in (once, twice):
        folder.mkdir()
    rows.run(rows.config(once, base, DROPOUT)).train("student")
    with monkeypatch.context():
        killed(8)  # in the third epoch, two steps after a checkpoint
        with pytest.raises(KeyboardInterrupt):
            rows.run(rows.config(twice, base, DROPOUT)).train("student")
    monkeypatch.undo()
    # What a kill while it was written leaves.
    (twice / "out/student/checkpoints/checkpoint-8").mkdir()
    rows.run(rows.config(twice, base, DROPOUT)).train("student")
    whole, parts = weights(once), weights(twice)
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    ran, again = (json.loads((folder / "out/student/run.json").read_text()) for folder in (once, twice))
    assert len(again["log"]) >= 5
    assert again["development_loss_before"] == ran["development_loss_before"] > again["development_loss"]


@pytest.mark.slow
def test_killed_while_it_trains(base: Path, tmp_path: Path) -> None:
    longer = DROPOUT.replace("epochs = 5", "epochs = 40")
    once, twice = tmp_path / "once", tmp_path / "twice"
    for folder in (once, twice):
        folder.mkdir()
    rows.run(rows.config(once, base, longer)).train("student")
    command = [sys.executable, "-m", "distill", "train", str(rows.config(twice, base, longer))]
    checkpoints = twice / "out/student/checkpoints"
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=ONE_THREAD)
    until = time.monotonic() + 120
    while train.last_checkpoint(checkpoints) is None and process.poll() is None:
        assert time.monotonic() < until
        time.sleep(0.01)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL and not (twice / "out/student/run.json").exists()
    again = subprocess.run(command, capture_output=True, text=True, env=ONE_THREAD, timeout=300)
    assert again.returncode == 0, again.stderr[-2000:]
    whole, parts = weights(once), weights(twice)
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_the_same_seed_gives_the_same_weights(base: Path, tmp_path: Path) -> None:
    found = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        (tmp_path / name).mkdir()
        rows.run(rows.config(tmp_path / name, base, DROPOUT, seed=seed)).train("student")
        found.append(weights(tmp_path / name))
    a, b, c = found
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert any(not torch.equal(a[name], c[name]) for name in a)


@pytest.mark.slow
def test_two_processes_learn_what_one_does(base: Path, tmp_path: Path) -> None:
    plain = DROPOUT.replace("dropout = 0.2", "dropout = 0.0")
    for name, n in (("one", 1), ("two", 2)):
        (tmp_path / name).mkdir()
        path = rows.config(tmp_path / name, base, plain)
        # A multiple of the batch: what is left over at an epoch's end is filled up with other rows for two.
        rows.write(tmp_path / name / "train.jsonl", [rows.row(i, rows.QUESTIONS[i]) for i in range(8)])
        launch = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", str(n)]
        options = ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
        options += ["--multi_gpu"] if n > 1 else []
        command = [*launch, *options, "-m", "distill", "train", str(path)]
        done = subprocess.run(command, capture_output=True, text=True, env=ONE_THREAD, timeout=300)
        assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads((tmp_path / "two/out/student/run.json").read_text())["devices"] == 2
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    for name in one:
        assert torch.allclose(one[name], two[name], atol=2e-3), name


def test_a_loss_that_is_no_number_stops(base: Path, tmp_path: Path) -> None:
    wild = DROPOUT.replace("1e-2", "1e30")
    with pytest.raises(DistillError, match=r"The loss is (nan|inf) at step \d+. Take a lower learning_rate"):
        rows.run(rows.config(tmp_path, base, wild)).train("student")


def test_trained_once_is_not_trained_again(base: Path, tmp_path: Path, killed: Any) -> None:
    path = rows.config(tmp_path, base, DROPOUT)
    rows.run(path).train("student")
    killed(1)
    rows.run(path).train("student")
    with pytest.raises(DistillError, match="holds a training with other settings"):
        rows.run(rows.config(tmp_path, base, DROPOUT, seed=1)).train("student")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("rank = 4", 'targets = ["query"]'), r"LoRA target 'query' matches no matrix of .*q_proj"),
        (("rank = 4", 'layers = "5"'), "numbers from 0 to 1"),
        (("batch = 4", "batch = 5"), "batch = 5 is no multiple of micro_batch = 2"),
        (('base = "BASE"', 'base = "nowhere.gguf"'), "python -m export unpack"),
        (("evaluate_every = 3", "quantized_base = true"), "needs CUDA and bitsandbytes"),
    ],
)
def test_what_cannot_be_trained_is_named(
    base: Path, tmp_path: Path, change: tuple[str, str], said: str
) -> None:
    models = DROPOUT.replace(*change)
    with pytest.raises(DistillError, match=said):
        rows.run(rows.config(tmp_path, base, models)).train("student")


def test_more_tokens_than_the_context(base: Path, tmp_path: Path) -> None:
    with pytest.raises(DistillError, match=r"max_tokens = 1024 is more than the 512"):
        rows.run(rows.config(tmp_path, base, DROPOUT, data="max_tokens = 1024")).train("student")


def test_a_teacher_with_other_tokens_is_refused(base: Path, tmp_path: Path) -> None:
    other = tiny_checkpoint.write(tmp_path / "other", "llama3")
    taught = f'distillation = {{ teacher = "{other}" }}\n'
    with pytest.raises(DistillError, match=r"have different tokenizers .* \(traces\)"):
        rows.run(rows.config(tmp_path, base, DROPOUT + taught)).logits("student")
