"""One training, with transformers' Trainer: LoRA or all weights, on rows, with or without a teacher."""

from __future__ import annotations

import ctypes
import math
import os
import random
import resource
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import EarlyStoppingCallback, Trainer, TrainingArguments
from transformers.trainer_callback import TrainerCallback

from . import losses
from .config import Distillation, Model, Training
from .data import Example, batch, chunks
from .errors import DistillError
from .logits import Cache, at_answers, top


@dataclass(frozen=True)
class Material:
    """What a training reads.

    Attributes:
        watched: development examples for the loss that is looked at while training.
        cache: the teacher's expectations, or None.
        teacher: the teacher itself, if it runs beside the student.
    """

    train: Sequence[Example]
    watched: Sequence[Example]
    pad: int
    cache: Cache | None = None
    teacher: Any = None


class Examples:
    """Examples, with what the teacher says where it is known."""

    def __init__(self, examples: Sequence[Example], cache: Cache | None = None) -> None:
        self.examples, self.cache = examples, cache

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, at: int) -> dict[str, Any]:
        example = self.examples[at]
        return {"example": example} | ({"teacher": self.cache.read(example)} if self.cache else {})


class Collator:
    """Items to tensors; what a teacher says of the last n - 1 positions has shape (n_rows, n - 1, k)."""

    def __init__(self, pad: int) -> None:
        self.pad = pad

    def __call__(self, items: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        found = batch([item["example"] for item in items], self.pad)
        if "teacher" in items[0]:
            n = found["labels"].shape[1] - 1
            k = items[0]["teacher"][0].shape[1]
            ids, logp = torch.zeros(len(items), n, k, dtype=torch.int64), torch.zeros(len(items), n, k)
            for i, item in enumerate(items):
                of_ids, of_logp = item["teacher"]
                ids[i, n - len(of_ids) :] = torch.from_numpy(of_ids.astype("int64"))
                logp[i, n - len(of_ids) :] = torch.from_numpy(of_logp.astype("float32"))
            found |= {"teacher_ids": ids, "teacher_logp": logp}
        return found


class ByLength:
    """Examples of like length together, in an order that only seed and epoch decide.

    So it is the same for any number of processes, and after an interruption. Trainer's own grouping by length
    draws from the global random state, which is another one after a resume.
    """

    POOL = 50  # batches that are sorted together

    def __init__(self, lengths: Sequence[int], batch: int, seed: int) -> None:
        self._lengths, self._batch, self._seed, self._epoch = lengths, batch, seed, 0

    def set_epoch(self, epoch: int) -> None:
        self._epoch = epoch

    def __len__(self) -> int:
        return len(self._lengths)

    def __iter__(self) -> Iterator[int]:
        chance = random.Random(f"{self._seed}:{self._epoch}")
        order = list(range(len(self._lengths)))
        chance.shuffle(order)
        pools = chunks(order, self.POOL * self._batch)
        by_length = [at for pool in pools for at in sorted(pool, key=lambda at: self._lengths[at])]
        *batches, last = chunks(by_length, self._batch)
        chance.shuffle(batches)
        for some in (*batches, last):
            yield from some


class Student(Trainer):  # type: ignore[misc]
    """Trainer with our loss, computed only where there is an answer to learn."""

    control: Any  # Trainer's

    def __init__(self, taught: Distillation | None, teacher: Any, **options: Any) -> None:
        super().__init__(**options)
        self.taught, self.teacher = taught, teacher
        # Ours is a sum over the batch divided by all answer tokens of the step.
        self.model_accepts_loss_kwargs = True
        self._parts: dict[str, Tensor] = {}

    def _get_train_sampler(self, *_: Any) -> ByLength:
        lengths = [len(example.tokens) for example in self.train_dataset.examples]
        per_step = self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
        return ByLength(lengths, per_step, self.args.seed)

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        rows, apart, n = self._sums(model, inputs)
        total = num_items_in_batch if num_items_in_batch is not None else n
        loss = (rows + apart) / total
        if not torch.isfinite(loss):
            raise DistillError(
                f"The loss is {loss.item()} at step {self.state.global_step}. Take a lower learning_rate, or "
                'precision = "float32"; the last checkpoint is kept.'
            )
        for name, part in (("from_rows", rows), ("from_teacher", apart), ("n_answer_tokens", n)):
            self._parts[name] = self._parts.get(name, 0) + part.detach()
        # Trainer averages over processes; the total is that of all of them.
        loss = loss * self.accelerator.num_processes
        return (loss, None) if return_outputs else loss

    def _sums(self, model: Any, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Nats over all answer tokens of the batch, from rows and from the teacher, and their number."""
        given = dict(inputs)
        ids, logp = given.pop("teacher_ids", None), given.pop("teacher_logp", None)
        logits, targets, wanted = at_answers(model, self.model.get_output_embeddings(), given)
        if not self.taught:
            nats = losses.cross_entropy(logits, targets).sum()
            return nats, nats.new_zeros(()), wanted.sum()
        if ids is None or logp is None:
            ids, logp = top(self.teacher, given, self.taught.top_k, self.taught.temperature)
        else:
            ids, logp = ids[wanted], logp[wanted]
        rows, apart = losses.distillation(
            logits,
            targets,
            ids,
            logp,
            divergence=self.taught.divergence,
            weight=self.taught.weight,
            temperature=self.taught.temperature,
        )
        return rows.sum(), apart.sum(), wanted.sum()

    def log(self, logs: dict[str, float], *rest: Any) -> None:
        if "loss" in logs and self._parts:
            sums = {name: self.accelerator.reduce(part, "sum").item() for name, part in self._parts.items()}
            n = sums.pop("n_answer_tokens")
            if self.taught:
                logs |= {name: value / n for name, value in sums.items()}
            self._parts.clear()
        super().log(logs, *rest)

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Nats per answer token of the development rows that are watched."""
        self.model.eval()
        sums = torch.zeros(2, device=self.args.device)
        taught, self.taught = self.taught, None
        try:
            with torch.inference_mode(), self.accelerator.autocast():
                for inputs in self.get_eval_dataloader():
                    nats, _, n = self._sums(self.model, self._prepare_inputs(inputs))
                    sums += torch.stack([nats, n.to(nats.dtype)])
        finally:
            self.taught = taught
            self.model.train()
        nats, n = self.accelerator.reduce(sums, "sum").tolist()
        found = {"eval_loss": nats / n}
        self.log(found)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, found)
        return found


class Times(TrainerCallback):  # type: ignore[misc]
    """How long a step takes, without what is done between them."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.steps = 0

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self._began = time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.seconds += time.perf_counter() - self._began
        self.steps += 1


def keep_memory() -> None:
    """Tell glibc to keep what is freed.

    Every step takes the same gigabytes again, and fresh pages are zeroed first: on two cores that was a third
    of its time. Other C libraries do without.
    """
    with suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(-4, 0)  # M_MMAP_MAX: none of its own for large blocks
        libc.mallopt(-1, -1)  # M_TRIM_THRESHOLD: never given back


def train(
    model: Any, given: Model, material: Material, folder: Path, seed: int, dtype: torch.dtype
) -> dict[str, Any]:
    """Train until the rows are read or the development loss stops falling, and save the best.

    Goes on from the last complete checkpoint of `folder`. The weights are left in float32; `dtype` is what
    matrices are multiplied in.

    Returns:
        facts of the run, for run.json.
    """
    keep_memory()
    options = given.training
    arguments = arguments_of(options, folder, seed, dtype, len(material.train))
    times = Times()
    callbacks: list[Any] = [times]
    if options.patience:
        callbacks.append(EarlyStoppingCallback(options.patience))
    trainer = Student(
        given.distillation,
        material.teacher,
        model=model,
        args=arguments,
        train_dataset=Examples(material.train, material.cache),
        eval_dataset=Examples(material.watched),
        data_collator=Collator(material.pad),
        callbacks=callbacks,
    )
    last = last_checkpoint(folder / "checkpoints")
    trainer.args.eval_on_start = last is None  # a checkpoint remembers it
    result = trainer.train(resume_from_checkpoint=last)
    best = trainer.state.best_metric
    final = folder / ("adapter" if given.method == "lora" else "model")
    trainer.save_model(str(final))
    n_tokens = sum(len(example.tokens) for example in material.train)
    history = trainer.state.log_history
    return {
        "steps": trainer.state.global_step,
        "epochs": trainer.state.epoch,
        "development_loss": best,
        "development_loss_before": next(entry["eval_loss"] for entry in history if "eval_loss" in entry),
        "train_loss": result.training_loss,
        "tokens_per_s": n_tokens / len(material.train) * options.batch * times.steps / times.seconds
        if times.steps
        else None,
        "peak_memory_bytes": peak_memory(),
        "devices": arguments.world_size,
        "log": history,
    }


def arguments_of(
    options: Training, folder: Path, seed: int, dtype: torch.dtype, n_examples: int
) -> TrainingArguments:
    world = int(os.environ.get("WORLD_SIZE", "1"))
    accumulate = options.batch // (options.micro_batch * world)
    if accumulate * options.micro_batch * world != options.batch:
        raise DistillError(
            f"training.batch = {options.batch} is no multiple of micro_batch = {options.micro_batch} times "
            f"{world} processes."
        )
    steps = max(1, math.ceil(n_examples * options.epochs / options.batch))
    every = min(options.evaluate_every, steps)
    return TrainingArguments(
        output_dir=str(folder / "checkpoints"),
        seed=seed,
        per_device_train_batch_size=options.micro_batch,
        per_device_eval_batch_size=options.micro_batch,
        gradient_accumulation_steps=accumulate,
        max_steps=steps,
        learning_rate=options.learning_rate,
        warmup_steps=round(steps * options.warmup),
        weight_decay=options.weight_decay,
        lr_scheduler_type=options.scheduler,
        max_grad_norm=options.max_grad_norm,
        bf16=dtype == torch.bfloat16,
        fp16=dtype == torch.float16,
        gradient_checkpointing=options.gradient_checkpointing,
        eval_strategy="steps",
        save_strategy="steps",
        eval_steps=every,
        save_steps=every,
        save_total_limit=2,
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
        greater_is_better=False,
        logging_steps=min(10, every),
        remove_unused_columns=False,
        label_names=["labels"],
        report_to=[],
        disable_tqdm=not sys.stderr.isatty(),
        use_cpu=not torch.cuda.is_available(),
        dataloader_pin_memory=torch.cuda.is_available(),
        average_tokens_across_devices=True,
    )


def last_checkpoint(folder: Path) -> str | None:
    """The newest that is complete; what a kill left half-written is passed over."""
    found = sorted(
        (path for path in folder.glob("checkpoint-*") if (path / "trainer_state.json").exists()),
        key=lambda path: int(path.name.rpartition("-")[2]),
    )
    return str(found[-1]) if found else None


def peak_memory() -> int:
    """Bytes that this process held at most; on a GPU, there."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def is_first() -> bool:
    """Of the processes that train together, the one that writes."""
    return os.environ.get("RANK", "0") == "0"
