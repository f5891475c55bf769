"""The stages of a run in their order. Each leaves its facts beside its output, and is not done twice."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from functools import cache, cached_property
from importlib.metadata import PackageNotFoundError, version
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from . import card
from . import model as models
from . import train as training
from .config import Config, Distillation, Model, Source
from .curves import compare, draw
from .data import ChatForm, Counts, Example, Row, check_apart, chunks, examples_of, pick, read_all
from .errors import DistillError, InvalidConfig
from .evaluate import Answers, choose, nats
from .logits import Cache, check_same_tokenizer
from .plan import utilization
from .progress import Progress, Report
from .traces import PROMPT_VERSION, Teacher, accepted

VERSIONS = ("torch", "transformers", "peft", "accelerate", "tokenizers")
GENERAL_TOKENS = 16_384
WINDOW = 256


class Run:
    """One config. Rows are read and checked before any model is loaded."""

    def __init__(self, config: Config, progress: Progress) -> None:
        self.config, self.progress = config, progress
        self._train = read_all(config.data.train, config.seed)
        self._development = read_all(config.data.development, config.seed)
        check_apart(chain(*self._train), chain(*self._development))
        self._general = {file.name: read_text(file) for file in config.data.general}
        self._examples: dict[tuple[str, bool], tuple[list[Example], Counts]] = {}
        self._chats: dict[str, ChatForm] = {}
        try:
            config.out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InvalidConfig(
                f"{config.out} cannot be made: {error.strerror}. Take another `out`."
            ) from None

    # -- stages

    def traces(self) -> None:
        """Ask the teacher's endpoint for answers to all training questions."""
        given = self.config.traces
        if not given:
            return
        rows = list(chain(*self._train))
        began = time.time()
        with self.progress.step(f"traces {given.model}") as report:
            tally = Teacher(given, self._traces_file, report).ask(rows)
        self.progress.say(
            f"{tally.accepted} of {tally.asked} answers accepted; rejected: {dict(tally.rejected)}"
        )
        facts = {"traces": given.model_dump(mode="json"), "prompt_version": PROMPT_VERSION}
        write(
            self.config.out / "traces.run.json",
            self._facts() | facts | tally.as_json() | {"seconds": time.time() - began},
        )

    def logits(self, name: str) -> None:
        """Ask the teacher of a model about all training examples."""
        given = self._model(name)
        taught = given.distillation
        if not taught or taught.live:
            return
        examples, _ = self.examples(given)
        logits = self._cache(given, taught)
        if logits.has(examples):
            return
        teacher, dtype = self._teacher(taught, given), models.dtype_of(given.training.precision)
        began, before = time.perf_counter(), logits.n_tokens
        with self.progress.step(f"logits {taught.teacher}") as report, autocast(dtype):
            logits.fill(teacher, examples, self.pad(given.base), given.training.micro_batch, report)
        seconds = time.perf_counter() - began
        write(
            logits.folder / "run.json",
            self._facts()
            | {
                "teacher": taught.teacher, "k": taught.top_k, "temperature": taught.temperature,
                "answer_tokens": logits.n_tokens, "bytes_per_token": logits.bytes_per_token,
                "seconds": seconds, "answer_tokens_per_s": (logits.n_tokens - before) / seconds,
                "peak_memory_bytes": training.peak_memory(),
            },
        )  # fmt: skip

    def train(self, name: str) -> None:
        """Train one model, unless that is done."""
        given = self._model(name)
        folder = self.config.out / name
        key = self._key(given)
        started = folder / "started.json"
        if (known := read(started)) and known.get("key") != key:
            raise DistillError(
                f"{folder} holds a training with other settings or rows; remove it, or take another `out`."
            )
        if (folder / "run.json").exists():
            self.progress.say(f"{name}: trained before")
            return
        examples, counts = self.examples(given)
        watched = self._watched(given.base)
        taught, dtype = given.distillation, models.dtype_of(given.training.precision)
        known_logits, teacher = None, None
        if taught and taught.live:
            teacher = self._teacher(taught, given)
        elif taught:
            if int(os.environ.get("WORLD_SIZE", "1")) == 1:  # one process asks before many train
                self.logits(name)
            known_logits = self._cache(given, taught)
        # Frozen weights need no more than what they are multiplied in.
        held = torch.float32 if given.method == "full" else dtype
        student = models.load(given.base, held, given.training.quantized_base)
        if given.method == "lora":
            student = models.adapt(student, given.lora, given.published_as or given.base, self.config.seed)
        n_trained = sum(p.numel() for p in student.parameters() if p.requires_grad)
        self.progress.say(
            f"{name}: {n_trained:,} of {student.num_parameters():,} weights learn from "
            f"{counts.examples:,} examples ({counts.answer_tokens:,} answer tokens)"
        )
        context = student.config.max_position_embeddings
        if self.config.data.max_tokens > context:
            raise InvalidConfig(
                f"data.max_tokens = {self.config.data.max_tokens} is more than the {context} that "
                f"{given.base} was made for."
            )
        began = time.time()
        if training.is_first():
            folder.mkdir(exist_ok=True)
            write(started, {"key": key, "model": given.model_dump(mode="json")})
        material = training.Material(examples, watched, self.pad(given.base), known_logits, teacher)
        found = training.train(student, given, material, folder, self.config.seed, dtype)
        log = found.pop("log")
        if not training.is_first():
            return
        if self.config.machine and found["tokens_per_s"]:
            found["utilization"] = utilization(
                self.config.machine, given, student.num_parameters(), found["tokens_per_s"], found["devices"]
            )
        self.progress.say(told(name, found))
        draw(log, folder / "curves.png", name)
        product = folder / ("adapter" if given.method == "lora" else "model")
        card.write(product, name, given, chain(*self._train), found)
        if given.method == "full":  # a model of its own, which others can load
            self.chat(given.base).tokenizer.save_pretrained(product)
        write(
            folder / "run.json",
            self._facts()
            | {"model": given.model_dump(mode="json"), "examples": asdict(counts)}
            | {"weights": student.num_parameters(), "weights_trained": n_trained, "dtype": str(dtype)}
            | {"began": began, "seconds": time.time() - began}
            | found
            | {"log": log},
        )

    def evaluate(self) -> dict[str, dict[str, Answers]]:
        """Every base and every trained model on every development file: answers by model and file."""
        found = {}
        bases = dict.fromkeys(given.base for given in self.config.models.values())
        for base in bases:
            label = "base" if len(bases) == 1 else f"base {Path(base).name}"
            found[label] = self._evaluated(label, base, None)
        for name, given in self.config.models.items():
            found[name] = self._evaluated(name, given.base, given)
        told = {name: read(self.config.out / name / "run.json") for name in self.config.models}
        compare({name: facts["log"] for name, facts in told.items() if facts}, self.config.out / "curves.png")
        return found

    # -- material

    def examples(self, given: Model) -> tuple[list[Example], Counts]:
        """What a model learns from: the rows' answers, or the teacher's.

        Raises:
            DistillError: the teacher was not asked yet.
        """
        known = self._examples.get((given.base, given.traces))
        if not known:
            told = None
            if given.traces and self.config.traces:
                told = accepted(self._traces_file, self.config.traces.keep)
                if not told:
                    raise DistillError(
                        f"{self._traces_file} has no accepted answers; run the stage traces first."
                    )
            data, chat = self.config.data, self.chat(given.base)
            known = examples_of(data.train, self._train, chat, data, told)
            self._examples[given.base, given.traces] = known
        return known

    @property
    def _traces_file(self) -> Path:
        return self.config.out / "traces.jsonl"

    def chat(self, base: str) -> ChatForm:
        if base not in self._chats:
            self._chats[base] = ChatForm(models.load_tokenizer(base))
        return self._chats[base]

    def pad(self, base: str) -> int:
        tokenizer = self.chat(base).tokenizer
        return int(tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id)

    def _watched(self, base: str) -> list[Example]:
        data = self.config.data
        rows = [
            pick(rows, max(1, data.n_watched // len(self._development)), self.config.seed)
            for rows in self._development
        ]
        return examples_of(
            data.development, rows, self.chat(base), data.model_copy(update={"too_long": "cut"})
        )[0]

    def _teacher(self, taught: Distillation, student: Model) -> Any:
        """Raises DistillError if it is not trained yet, InvalidModel if it cuts text into other tokens."""
        dtype = models.dtype_of(student.training.precision)
        if (given := self.config.models.get(taught.teacher)) is None:
            check_same_tokenizer(models.load_tokenizer(taught.teacher), self.chat(student.base).tokenizer)
            return models.load(taught.teacher, dtype).to(models.device()).eval()
        check_same_tokenizer(self.chat(given.base).tokenizer, self.chat(student.base).tokenizer)
        folder = self.config.out / taught.teacher
        if not (folder / "run.json").exists():
            raise DistillError(f"The teacher {taught.teacher} is not trained yet; run train for it first.")
        return models.load_trained(folder, given, torch.float32).to(models.device())

    def cached(self, name: str) -> Cache:
        """What the teacher of a model said of its training examples.

        Raises:
            DistillError: it has no teacher whose logits are kept, or that was not asked yet.
        """
        given = self._model(name)
        taught = given.distillation
        if not taught or taught.live:
            raise DistillError(f"{name} learns without kept logits (distillation.teacher, live = false).")
        examples, _ = self.examples(given)
        found = self._cache(given, taught)
        if not found.has(examples):
            raise DistillError(f"{found.folder} lacks logits; run the stage logits first.")
        return found

    def _cache(self, given: Model, taught: Distillation) -> Cache:
        whole = json.dumps([taught.teacher, taught.top_k, taught.temperature, self._teacher_key(taught)])
        folder = self.config.out / "logits" / hashlib.sha256(whole.encode()).hexdigest()[:12]
        return Cache(folder, len(self.chat(given.base).tokenizer), taught.top_k, taught.temperature)

    def _teacher_key(self, taught: Distillation) -> str:
        given = self.config.models.get(taught.teacher)
        return self._key(given) if given else taught.teacher

    # -- evaluation

    def _evaluated(self, label: str, base: str, given: Model | None) -> dict[str, Answers]:
        folder = self.config.out / "evaluation"
        folder.mkdir(exist_ok=True)
        path = folder / f"{label}.json"
        key = self._key(given) if given else hashlib.sha256(repr((base, self._hashes)).encode()).hexdigest()
        known = read(path)
        done: dict[str, Any] = known["files"] if known and known.get("key") == key else {}
        if given and not (self.config.out / label / "run.json").exists():
            raise DistillError(f"{label} is not trained yet; run train first.")

        @cache
        def model() -> Any:
            loaded = (
                models.load_trained(self.config.out / label, given, torch.float32)
                if given
                else models.load(base, torch.float32).eval()
            )
            return loaded.to(models.device())

        for source, rows in zip(self.config.data.development, self._development):
            if source.file.name not in done:
                with self.progress.step(f"{label} {source.file.stem}") as report:
                    done[source.file.name] = self._on_rows(model(), base, source, rows, report).as_json()
                write(path, {"key": key, "files": done})
        for name, text in self._general.items():
            windows = self._windows(base, text)
            if name not in done or done[name]["ids"] != [window.id for window in windows]:
                with self.progress.step(f"{label} {name}") as report:
                    done[name] = self._on(model(), base, windows, report).as_json()
                write(path, {"key": key, "files": done})
        return {name: Answers(**answers) for name, answers in done.items()}

    def _on_rows(self, model: Any, base: str, source: Source, rows: Sequence[Row], report: Report) -> Answers:
        chat, data = self.chat(base), self.config.data.model_copy(update={"too_long": "cut"})
        found = Answers()
        if any(row.options for row in rows):
            for done, row in enumerate(rows):
                text, letter = choose(model, chat, row)
                found.right_text.append(text == row.answer)
                found.right_letter.append(letter == row.answer)
                report(done + 1, len(rows))
            found.majority = Counter(row.answer for row in rows).most_common(1)[0][1] / len(rows)
            found.ids = [row.id for row in rows]
            return found
        examples, _ = examples_of([source], [rows], chat, data)
        return self._on(model, base, examples, report)

    def _on(self, model: Any, base: str, examples: Sequence[Example], report: Report) -> Answers:
        found = Answers(ids=[example.id for example in examples])
        found.nats, found.n_tokens = nats(model, examples, self.pad(base), on_progress=report)
        return found

    def _windows(self, base: str, text: str) -> list[Example]:
        """Plain text, in pieces whose names change with it."""
        name = hashlib.sha256(text.encode()).hexdigest()[:8]
        tokens = self.chat(base).tokenizer(text, add_special_tokens=False)["input_ids"][:GENERAL_TOKENS]
        pieces = enumerate(chunks(tokens, WINDOW))
        return [Example(f"{name}:{i}", tuple(piece), 1) for i, piece in pieces if len(piece) > 1]

    # -- remembering

    def _model(self, name: str) -> Model:
        if name not in self.config.models:
            raise InvalidConfig(f"There is no model {name!r}; there are {', '.join(self.config.models)}.")
        return self.config.models[name]

    def _key(self, given: Model) -> str:
        """Of all that a training depends on."""
        taught = given.distillation
        rows = {"__all__": {"file"}}  # their content counts, not where they lie
        data = self.config.data.model_dump(
            mode="json", exclude={"general": True, "train": rows, "development": rows}
        )
        parts = [given.model_dump(mode="json"), self.config.seed, self._hashes, data]
        if taught and taught.teacher in self.config.models:
            parts.append(self._key(self.config.models[taught.teacher]))
        if given.traces and self._traces_file.exists():
            parts.append(hashlib.sha256(self._traces_file.read_bytes()).hexdigest())
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    @cached_property
    def _hashes(self) -> dict[str, str]:
        sources = (*self.config.data.train, *self.config.data.development)
        return {source.file.name: hashlib.sha256(source.file.read_bytes()).hexdigest() for source in sources}

    def _facts(self) -> dict[str, Any]:
        return {
            "versions": versions(),
            "machine": f"{platform.machine()}, {os.cpu_count()} cores" + gpu(),
            "seed": self.config.seed,
            "data": self._hashes,
        }


def told(name: str, facts: dict[str, Any]) -> str:
    """A training in a line."""
    words = [f"development loss {facts['development_loss_before']:.3f} -> {facts['development_loss']:.3f}"]
    if facts["tokens_per_s"]:
        words.append(f"{facts['tokens_per_s']:,.0f} tokens/s")
    if "utilization" in facts:
        words.append(f"{facts['utilization']:.0%} of the devices' peak")
    words.append(f"at most {facts['peak_memory_bytes'] / 1e9:.1f} GB")
    return f"{name}: " + ", ".join(words)


def autocast(dtype: torch.dtype) -> Any:
    return torch.autocast(models.device().type, dtype, enabled=dtype != torch.float32)


def versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    for name in VERSIONS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def gpu() -> str:
    return f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""


def read_text(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidConfig(f"{path} cannot be read as UTF-8 text ({error}).") from None


def read(path: Path) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return found


def write(path: Path, value: Any) -> None:
    """Complete or not at all."""
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", "utf-8")
    partial.replace(path)
