"""The steps in their order, each remembered: an export that was interrupted goes on where it was."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from . import budget, card, imatrix, parity, recipe, retention
from .budget import Budget
from .checkpoint import Checkpoint
from .convert import convert, plan
from .errors import ExportError, InvalidBase
from .families import Family
from .merge import Adapter, Merged
from .native import Array, Model, quantize
from .progress import Progress, Report
from .provenance import MEASURED, Provenance, read_provenance, stamp
from .recipe import shapes_of
from .text import Row, read_rows
from .unpack import unpack
from .vocabulary import read_vocabulary

CALIBRATION_TOKENS = 32_768
SENSITIVITY_TOKENS = 1024


@dataclass(frozen=True)
class Options:
    """What to export.

    Attributes:
        base: a folder in Hugging Face's form, or a GGUF file.
        hub_name: of the base, if it comes from the hub.
        budget: choose the types by what was measured, within it.
        command: what was typed, for the card.
        skip: gates that are not run: "parity", "retention".
    """

    base: Path
    out: Path
    calibration: Path | None
    evaluation: Path | None
    adapter: Path | None = None
    hub_name: str | None = None
    target: str = "cpu"
    budget: Budget | None = None
    keep_bf16: bool = False
    skip: frozenset[str] = frozenset()
    command: str = ""


@dataclass(frozen=True)
class Prepared:
    """A model in BF16, and what is known of it before its types are chosen.

    Attributes:
        parity: what the parity gate found; None if it was skipped.
        means: importance of each matrix's inputs; None without calibration text.
        groups: sensitivities, if a budget is asked for.
    """

    family: Family
    provenance: Provenance
    bf16: Path
    parity: dict[str, Any] | None
    means: dict[str, Array] | None
    groups: list[budget.Group] | None


class Export:
    """One run. Everything that can be wrong with the input is found before the work begins."""

    def __init__(self, options: Options, progress: Progress) -> None:
        self.options = options
        self.progress = progress
        self.recipe = recipe.load(options.target)
        self.work = options.out / ".work"
        self._calibration = read_rows(options.calibration) if options.calibration else []
        self._evaluation = read_rows(options.evaluation) if options.evaluation else []
        if not self._evaluation and {"parity", "retention"} - options.skip:
            raise ExportError(
                "--eval FILE is needed for the gates; or skip them with --skip parity --skip retention."
            )
        if options.budget and not self._calibration:
            raise ExportError("--recipe auto measures on --calibration FILE; name one.")
        try:
            self.work.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ExportError(f"{self.work} cannot be made: {error.strerror}. Take another --out.") from None

    def prepare(self) -> Prepared:
        """Do what comes before types are chosen, as far as it is not done."""
        base = self._base()
        checkpoint = Checkpoint(base)
        adapter = Adapter(self.options.adapter) if self.options.adapter else None
        weights = Merged(checkpoint, adapter) if adapter else checkpoint
        family = Family.of(checkpoint.config)
        vocabulary = read_vocabulary(base, family.n_vocab, checkpoint.config)
        self._check_space(plan(weights, family), weights.shapes)
        provenance = read_provenance(base, checkpoint.config, self.options.hub_name, adapter)
        bf16 = self.work / "bf16.gguf"
        reference = _Lazy(base, self.options.adapter)
        self._step(
            "convert",
            bf16,
            [base, self.options.adapter, provenance],
            lambda report: convert(weights, family, vocabulary, provenance, bf16, report),
        )
        passed = self._gate("parity", [bf16], lambda report: self._parity(reference, bf16, report))
        means = self._importance(reference, family)
        groups = self._sensitivity(reference, family, bf16, means) if self.options.budget else None
        return Prepared(family, provenance, bf16, passed, means, groups)

    def run(self) -> dict[str, Any]:
        """Do what is not done, and return the card."""
        made = self.prepare()
        four, shapes = self.work / "4bit.gguf", shapes_of(made.bf16)
        types, choices = self.recipe.types(shapes), None
        if made.groups and self.options.budget:
            max_bytes = self.options.budget.for_matrices(made.bf16, self.recipe)
            choices = budget.choose(made.groups, shapes, max_bytes)
            types = budget.types(choices)
        self._step(
            "quantize",
            four,
            [made.bf16, self.work / "imatrix.gguf", types],
            lambda report: quantize(made.bf16, four, types, made.means, report),
        )
        kept = self._gate(
            "retention",
            [made.bf16, four, vars(self.recipe.gates)],
            lambda report: self._retention(made.bf16, four, report),
        )
        return self._finish(made, four, types, choices, kept)

    # -- steps

    def _base(self) -> Path:
        base = self.options.base
        if base.is_dir():
            return base
        if not base.is_file():
            raise InvalidBase(
                f"{base} does not exist; --base takes a model folder, a GGUF file, or a name on the hub."
            )
        folder = self.work / "base"
        self._step(
            "unpack",
            folder / "model.safetensors.index.json",
            [base],
            lambda report: unpack(base, folder, report),
        )
        return folder

    def _parity(self, reference: _Lazy, bf16: Path, report: Report) -> Any:
        with parity.opened(bf16, reference.get) as model:
            return parity.check(
                reference.get, model, [row.text for row in self._evaluation], on_progress=report
            )

    def _importance(self, reference: _Lazy, family: Family) -> dict[str, Array] | None:
        source = self.options.calibration
        if not source:
            return None
        path = self.work / "imatrix.gguf"

        def collect(report: Report) -> None:
            texts = self._calibration_texts(reference, CALIBRATION_TOKENS)
            imatrix.save(imatrix.collect(reference.get.model, family, texts, [source.name], report), path)

        self._step("imatrix", path, [self.work / "bf16.gguf", source], collect)
        return imatrix.load(path).means

    def _sensitivity(
        self, reference: _Lazy, family: Family, bf16: Path, means: dict[str, Array] | None
    ) -> list[budget.Group]:
        path = self.work / "sensitivity.json"

        def measure(report: Report) -> None:
            texts = self._calibration_texts(reference, SENSITIVITY_TOKENS)
            groups = budget.measure(reference.get, family, bf16, self.recipe, means or {}, texts, report)
            card.write(path, [dataclasses.asdict(group) for group in groups])

        made_from = [bf16, self.options.calibration, self.recipe.ladders, budget.DEPTHS, SENSITIVITY_TOKENS]
        self._step("sensitivity", path, made_from, measure)
        return [budget.Group(**group) for group in json.loads(path.read_text("utf-8"))]

    def _calibration_texts(self, reference: _Lazy, n_tokens: int) -> list[list[int]]:
        rows = [row.text for row in spread(self._calibration)]
        return parity.windows(reference.get.tokenize, rows, n_tokens)

    def _retention(self, bf16: Path, four: Path, report: Report) -> Any:
        with Model(bf16) as before, Model(four) as after:
            return retention.check(before, after, self._evaluation, self.recipe.gates, on_progress=report)

    def _finish(
        self,
        made: Prepared,
        four: Path,
        types: dict[str, str],
        choices: list[budget.Choice] | None,
        kept: dict[str, Any] | None,
    ) -> dict[str, Any]:
        out, provenance = self.options.out, made.provenance
        found = {"parity": made.parity, "retention": kept}
        flat = {f"{gate}.{name}": value for gate, all in found.items() for name, value in (all or {}).items()}
        measured = {name: flat[name] for name in MEASURED if name in flat}
        products = {"model": four}
        if self.options.keep_bf16:
            products["model-bf16"] = self.work / "kept.gguf"
            shutil.copyfile(made.bf16, products["model-bf16"])
        for path in products.values():
            stamp(path, measured)
        with self.progress.step("card") as report:
            described = {
                "format": card.FORMAT,
                "name": provenance.name,
                "license": provenance.license,
                "languages": provenance.languages,
                "base": provenance.base,
                "adapter": provenance.adapter,
                "sources": self._sources(),
                "recipe": self.recipe.name + (", auto" if choices else ""),
                "types": types,
                "file": {
                    "bytes": four.stat().st_size,
                    "sha256": card.sha256(four, report),
                    "bf16_bytes": made.bf16.stat().st_size,
                },
                "memory_bytes_by_context": card.memory(made.family, four.stat().st_size),
                **found,
                "choices": [choice.as_json() for choice in choices] if choices else None,
                "probes": card.probes(four, parity.CORPUS),
                "commands": card.COMMANDS | {"export": self.options.command},
                "versions": card.versions(),
            }
        # The card first: a model without one could be mistaken for another.
        card.write(out / "model.json", described)
        if choices:
            recipe.write(self.recipe, types, out / "recipe.toml")
        for name, path in products.items():
            path.replace(out / f"{name}.gguf")
        shutil.rmtree(self.work)
        return described

    def _sources(self) -> dict[str, Any]:
        """SHA-256 of what the model was made from."""
        given = {
            "base": self.options.base,
            "adapter": self.options.adapter,
            "calibration": self.options.calibration,
            "evaluation": self.options.evaluation,
        }
        with self.progress.step("sources") as report:
            return {name: card.digests(path, report) for name, path in given.items() if path}

    # -- remembering

    def _step(self, name: str, product: Path, inputs: list[Any], make: Callable[[Report], None]) -> None:
        """Make `product`, unless it is there and was made from the same inputs."""
        key = _key(name, inputs)
        if product.exists() and self._known.get(name) == key:
            self.progress.skipped(name)
            return
        with self.progress.step(name) as report:
            make(report)
        self._known[name] = key
        card.write(self.work / "done.json", self._known)

    def _gate(self, name: str, inputs: list[Any], check: Callable[[Report], Any]) -> Any:
        if name in self.options.skip:
            return None
        path = self.work / f"{name}.json"
        self._step(
            name,
            path,
            [*inputs, self.options.evaluation],
            lambda report: card.write(path, check(report).as_json()),
        )
        return json.loads(path.read_text("utf-8"))

    @cached_property
    def _known(self) -> dict[str, str]:
        try:
            known = json.loads((self.work / "done.json").read_text("utf-8"))
        except (OSError, ValueError):
            return {}
        return known if isinstance(known, dict) else {}

    def _check_space(self, names: list[str], shapes: dict[str, tuple[int, ...]]) -> None:
        count = sum(math.prod(shapes[name]) for name in names)
        needed = int(count * 2.7)  # BF16, and 4 bits with what the recipe adds
        free = shutil.disk_usage(self.work).free
        if free < needed:
            raise ExportError(
                f"{self.options.out} has {free / 1e9:.1f} GB free, the export takes {needed / 1e9:.1f} GB; "
                "free some, or take another --out."
            )


class _Lazy:
    """The reference in torch, loaded when a step needs it."""

    def __init__(self, base: Path, adapter: Path | None) -> None:
        self._base, self._adapter = base, adapter

    @cached_property
    def get(self) -> Any:
        from .reference import Reference

        return Reference(self._base, self._adapter)


def spread(rows: list[Row]) -> list[Row]:
    """The same rows in an order in which any beginning is drawn from all of them."""
    step = max(1, round(len(rows) * 0.618))
    while len(rows) > 1 and math.gcd(step, len(rows)) > 1:
        step += 1
    return [rows[i * step % len(rows)] for i in range(len(rows))]


def _key(name: str, inputs: list[Any]) -> str:
    parts = [name]
    for given in inputs:
        files = sorted(given.iterdir()) if isinstance(given, Path) and given.is_dir() else [given]
        for part in files:
            if isinstance(part, Path) and part.is_file():
                status = part.stat()
                parts.append(f"{part}:{status.st_size}:{status.st_mtime_ns}")
            else:
                parts.append(repr(part))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()
