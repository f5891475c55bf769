"""How fast does distill train, beside TRL's SFTTrainer?

The same base, LoRA, rows, batch and precision, each in a process of its own, in turn: A B B A. Tokens are
those of the examples, padding not counted. Both read the same batches, of like length. One JSON line a run.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Annotated, Any, Optional

import typer
from rich.console import Console
from transformers.trainer_callback import TrainerCallback

from distill import config, model, train
from distill.data import IGNORE
from distill.progress import Progress
from distill.stages import Run

from . import facts

RESULTS = Path(__file__).parent / "results" / "training.jsonl"
SIDES = ("ours", "trl")
err = Console(stderr=True)


def main(
    file: Annotated[Path, typer.Argument(help="A run's TOML file, see distill/configs.")],
    name: Annotated[str, typer.Option(help="Which of its models; without a teacher.")] = "plain",
    batch: Annotated[int, typer.Option(help="Examples a step.", min=1)] = 4,
    steps: Annotated[int, typer.Option(help="Measured steps of a run, after two that are not.", min=1)] = 8,
    side: Annotated[Optional[str], typer.Option(hidden=True)] = None,  # noqa: UP045
    results: Annotated[Path, typer.Option(help="JSON lines are added here.")] = RESULTS,
) -> None:
    """Measure training tokens a second."""
    if side:
        print(json.dumps(_one(side, file, name, batch, steps)))
        return
    if not find_spec("trl"):
        raise typer.BadParameter("TRL is not installed: pip install trl")
    found: dict[str, list[float]] = {side: [] for side in SIDES}
    for side in (*SIDES, *reversed(SIDES)):
        command = [sys.executable, "-m", "benchmarks.training", file, "--name", name, "--side", side,
                   "--batch", batch, "--steps", steps]  # fmt: skip
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
        if done.returncode:
            raise typer.BadParameter(f"{side} failed: {done.stderr.strip()[-500:]}")
        told = json.loads(done.stdout.strip().splitlines()[-1])
        found[side].append(told["tokens_per_s"])
        err.print(f"{side}: {told['tokens_per_s']:.0f} tokens/s, loss {told['loss']:.3f}", highlight=False)
    ratio = median(found["ours"]) / median(found["trl"])
    line = {"model": name, "batch": batch, "steps": steps, "tokens_per_s": found, "ratio": ratio}
    facts.append(results, [facts.about() | line])
    Console().print(f"ours / TRL: {ratio:.2f}", highlight=False)


def _one(side: str, file: Path, name: str, batch: int, steps: int) -> dict[str, Any]:
    run = Run(config.load(file), Progress())
    given = run.config.models[name]
    taught = given.training.model_copy(update={"batch": batch, "micro_batch": batch, "patience": 0})
    given = given.model_copy(update={"training": taught, "distillation": None})
    examples, _ = run.examples(given)
    order = train.ByLength([len(example.tokens) for example in examples], batch, run.config.seed)
    examples = [examples[at] for at in order]
    dtype = model.dtype_of(taught.precision)
    student = model.adapt(model.load(given.base, dtype), given.lora, given.base, run.config.seed)
    clock = _Clock(steps)
    with tempfile.TemporaryDirectory() as folder:
        arguments = train.arguments_of(taught, Path(folder), run.config.seed, dtype, len(examples))
        arguments.max_steps, arguments.save_strategy, arguments.eval_strategy = steps + 2, "no", "no"
        arguments.load_best_model_at_end = False
        make = _ours if side == "ours" else _trl
        trainer = make(student, arguments, examples, run.pad(given.base), clock)
        result = trainer.train()
    return {"tokens_per_s": clock.tokens / clock.seconds, "loss": result.training_loss}


class _Clock(TrainerCallback):  # type: ignore[misc]
    """Times the steps after the first two, and counts what they read."""

    def __init__(self, steps: int) -> None:
        self.steps, self.seconds, self.tokens, self.read = steps, 0.0, 0, 0
        self.made: list[int] = []  # tokens of batches that were put together and not read yet

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self.read = self.made.pop(0) if self.made else 0
        self._began = time.perf_counter()

    def on_step_end(self, arguments: Any, state: Any, *_: Any, **__: Any) -> None:
        if state.global_step > 2:
            self.seconds += time.perf_counter() - self._began
            self.tokens += self.read


def _counted(collate: Any, clock: _Clock) -> Any:
    """The collator runs before a step begins; what it made is what the next step reads."""

    def counting(items: Any) -> Any:
        found = collate(items)
        clock.made.append(int(found["attention_mask"].sum()))
        return found

    return counting


def _ours(student: Any, arguments: Any, examples: Any, pad: int, clock: _Clock) -> Any:
    class InOrder(train.Student):
        def _get_train_sampler(self, *_: Any) -> Any:
            return range(len(examples))

    return InOrder(
        None, None, model=student, args=arguments, train_dataset=train.Examples(examples),
        data_collator=_counted(train.Collator(pad), clock), callbacks=[clock],
    )  # fmt: skip


def _trl(student: Any, arguments: Any, examples: Any, pad: int, clock: _Clock) -> Any:
    from datasets import Dataset
    from datasets.table import InMemoryTable
    from trl import SFTConfig, SFTTrainer
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    columns = {
        "input_ids": [list(e.tokens) for e in examples],
        "labels": [[IGNORE] * e.n_prompt + list(e.tokens[e.n_prompt :]) for e in examples],
    }
    same = (
        "output_dir", "seed", "per_device_train_batch_size", "gradient_accumulation_steps", "max_steps",
        "learning_rate", "lr_scheduler_type", "warmup_steps", "weight_decay", "max_grad_norm", "bf16", "fp16",
        "save_strategy", "use_cpu", "report_to", "logging_steps", "dataloader_pin_memory",
    )  # fmt: skip
    settings = SFTConfig(
        **{name: getattr(arguments, name) for name in same}, train_sampling_strategy="sequential",
        max_length=None, gradient_checkpointing=False,
        dataset_kwargs={"skip_prepare_dataset": True},
    )  # fmt: skip
    dataset = Dataset(InMemoryTable.from_pydict(columns), fingerprint="rows")
    collate = DataCollatorForLanguageModeling(pad_token_id=pad)
    return SFTTrainer(
        model=student, args=settings, train_dataset=dataset,
        data_collator=_counted(collate, clock), callbacks=[clock],
    )  # fmt: skip


if __name__ == "__main__":
    typer.run(main)
