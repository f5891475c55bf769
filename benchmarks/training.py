"""How fast does distill train, beside TRL's SFTTrainer, and beside itself with a teacher's cached logits?

The same base, LoRA, rows, batch and precision, each in a process of its own, in turn: A B B A. Tokens are
those of the examples, padding not counted. Both read the same batches, of like length. One JSON line a run.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from enum import Enum
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Annotated, Any, Optional

import typer
from rich.console import Console
from transformers.trainer_callback import TrainerCallback

from distill import config, model, train
from distill.data import IGNORE, Example, chunks
from distill.logits import Cache
from distill.progress import Progress
from distill.stages import Run

from . import facts

RESULTS = Path(__file__).parent / "results" / "training.jsonl"
err = Console(stderr=True)


class Side(str, Enum):
    ours = "ours"
    trl = "trl"
    logits = "logits"


def main(
    file: Annotated[Path, typer.Argument(help="A run's TOML file, see distill/configs.")],
    name: Annotated[
        str, typer.Option(help="Which of its models; with logits, one that has a teacher.")
    ] = "plain",
    against: Annotated[
        Side, typer.Option(help="What ours on the rows alone is compared with: trl, or ours with the logits.")
    ] = Side.trl,
    batch: Annotated[int, typer.Option(help="Examples a step.", min=1)] = 4,
    steps: Annotated[int, typer.Option(help="Measured steps of a run, after two that are not.", min=1)] = 8,
    side: Annotated[Optional[Side], typer.Option(hidden=True)] = None,  # noqa: UP045
    results: Annotated[Path, typer.Option(help="JSON lines are added here.")] = RESULTS,
) -> None:
    """Measure training tokens a second."""
    if side:
        print(json.dumps(_one(side, file, name, batch, steps)))
        return
    if against is Side.trl and not find_spec("trl"):
        raise typer.BadParameter("TRL is not installed: pip install trl")
    found: dict[Side, list[dict[str, float]]] = {Side.ours: [], against: []}
    for side in (*found, *reversed(found)):
        command = [sys.executable, "-m", "benchmarks.training", file, "--name", name, "--side", side.value,
                   "--batch", batch, "--steps", steps]  # fmt: skip
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
        if done.returncode:
            raise typer.BadParameter(f"{side.value} failed: {done.stderr.strip()[-500:]}")
        told = json.loads(done.stdout.strip().splitlines()[-1])
        found[side].append(told)
        words = ", ".join(f"{what} {value:,.4g}" for what, value in told.items())
        err.print(f"{side.value}: {words}", highlight=False)
    speeds = {side.value: [told["tokens_per_s"] for told in runs] for side, runs in found.items()}
    ratio = median(speeds["ours"]) / median(speeds[against.value])
    line = {"model": name, "batch": batch, "steps": steps, "tokens_per_s": speeds, "ratio": ratio}
    read = [told["read_tokens_per_s"] for told in found[against] if "read_tokens_per_s" in told]
    facts.append(results, [facts.about() | line | ({"read_tokens_per_s": read} if read else {})])
    Console().print(f"ours / {against.value}: {ratio:.2f}", highlight=False)


def _one(side: Side, file: Path, name: str, batch: int, steps: int) -> dict[str, float]:
    run = Run(config.load(file), Progress())
    given = run.config.models[name]
    cache = run.cached(name) if side is Side.logits else None
    taught = given.training.model_copy(update={"batch": batch, "micro_batch": batch, "patience": 0})
    examples, _ = run.examples(given)
    order = train.ByLength([len(example.tokens) for example in examples], batch, run.config.seed)
    examples = [examples[at] for at in order]
    reading = _reading(cache, examples, batch, run.pad(given.base)) if cache else {}
    dtype = model.dtype_of(taught.precision)
    student = model.adapt(model.load(given.base, dtype), given.lora, given.base, run.config.seed)
    clock = _Clock()
    with tempfile.TemporaryDirectory() as folder:
        arguments = train.arguments_of(taught, Path(folder), run.config.seed, dtype, len(examples))
        arguments.max_steps, arguments.save_strategy, arguments.eval_strategy = steps + 2, "no", "no"
        arguments.load_best_model_at_end = False
        options = {"model": student, "args": arguments, "callbacks": [clock]}
        if side is Side.trl:
            trainer = _trl(options, examples, run.pad(given.base))
        else:
            trainer = _ours(
                options, examples, run.pad(given.base), given.distillation if cache else None, cache
            )
        trainer.data_collator = _counted(trainer.data_collator, clock)
        result = trainer.train()
    return {"tokens_per_s": clock.tokens / clock.seconds, "loss": result.training_loss} | reading


def _reading(cache: Cache, examples: list[Example], batch: int, pad: int) -> dict[str, float]:
    """Answer tokens a second when nothing else is done than putting batches together, logits and all."""
    items, collate = train.Examples(examples, cache), train.Collator(pad)
    began = time.perf_counter()
    for some in chunks(range(len(examples)), batch):
        collate([items[at] for at in some])
    n = sum(len(example.tokens) - example.n_prompt for example in examples)
    return {"read_tokens_per_s": n / (time.perf_counter() - began)}


class _Clock(TrainerCallback):  # type: ignore[misc]
    """Times what comes after the first two steps, reading included, and counts what they learn from."""

    def __init__(self) -> None:
        self.seconds, self.tokens = 0.0, 0
        self.made: list[int] = []  # tokens of batches that were put together and not learned yet

    def on_step_end(self, arguments: Any, state: Any, *_: Any, **__: Any) -> None:
        learned = self.made.pop(0)
        if state.global_step <= 2:
            self._began = time.perf_counter()
        else:
            self.seconds = time.perf_counter() - self._began
            self.tokens += learned


def _counted(collate: Any, clock: _Clock) -> Any:
    def counting(items: Any) -> Any:
        found = collate(items)
        clock.made.append(int(found["attention_mask"].sum()))
        return found

    return counting


def _ours(
    options: dict[str, Any], examples: list[Example], pad: int, taught: Any, cache: Cache | None
) -> Any:
    class InOrder(train.Student):
        def _get_train_sampler(self, *_: Any) -> Any:
            return range(len(examples))

    dataset = train.Examples(examples, cache)
    return InOrder(taught, None, train_dataset=dataset, data_collator=train.Collator(pad), **options)


def _trl(options: dict[str, Any], examples: list[Example], pad: int) -> Any:
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
        **{name: getattr(options["args"], name) for name in same}, train_sampling_strategy="sequential",
        max_length=None, gradient_checkpointing=False,
        dataset_kwargs={"skip_prepare_dataset": True},
    )  # fmt: skip
    return SFTTrainer(
        **(options | {"args": settings}),
        train_dataset=Dataset(InMemoryTable.from_pydict(columns), fingerprint="rows"),
        data_collator=DataCollatorForLanguageModeling(pad_token_id=pad),
    )


if __name__ == "__main__":
    typer.run(main)
