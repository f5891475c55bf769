"""Mixed precision within a byte budget: which matrices get more bits is measured, not guessed.

Each group of matrices (one kind, a fifteenth of the depth) is rounded to its smallest type in the trained
model, all others left as they are; what that costs in KL on calibration text is the group's sensitivity. What
a larger type would leave of it is in proportion to the squared rounding error, weighted with the importance
matrix. Bytes then go where they save most.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gguf
import numpy as np
import torch

from .compare import Difference
from .errors import InvalidRecipe
from .families import Family, plain_name
from .native import Array, rounded
from .progress import Report, silent
from .recipe import Recipe, n_bytes, shapes_of

if TYPE_CHECKING:  # it loads transformers, which takes seconds; a wrong flag should be named before
    from .reference import Reference

DEPTHS = 15
# Rounding error is estimated on this many rows of a matrix.
SAMPLE = 64
# A GGUF's tensors begin at multiples of this.
ALIGNMENT = 32


@dataclass(frozen=True)
class Budget:
    """How large the file may be: in bytes, or in bits a weight.

    If neither is given, as large as with the recipe's own types.
    """

    max_bytes: int | None = None
    bits: float | None = None

    def for_matrices(self, bf16: Path, recipe: Recipe) -> int:
        """Bytes that are left for matrices."""
        tensors = gguf.GGUFReader(bf16).tensors
        of_vectors = sum(int(t.n_bytes) for t in tensors if len(t.shape) < 2)
        if self.max_bytes is not None:
            header = bf16.stat().st_size - sum(int(t.n_bytes) for t in tensors)
            return self.max_bytes - header - of_vectors - ALIGNMENT * len(tensors)
        if self.bits is not None:
            return int(self.bits / 8 * sum(int(t.n_elements) for t in tensors)) - of_vectors
        shapes = shapes_of(bf16)
        return sum(n_bytes(shapes[name], kind) for name, kind in recipe.types(shapes).items())


@dataclass(frozen=True)
class Group:
    """Matrices that get one type.

    Attributes:
        name: such as "ffn_up 24-29".
        tensors: names in GGUF.
        kinds: from the recipe: the type to start with, then those it may be raised to.
        kl: what the first type costs, in nats a position.
        errors: squared rounding error of each of `kinds`, relative to that of the first.
    """

    name: str
    tensors: tuple[str, ...]
    kinds: tuple[str, ...]
    kl: float
    errors: tuple[float, ...]

    def left(self, level: int) -> float:
        """KL that is left with a type of `kinds`."""
        return self.kl * self.errors[level]


@dataclass(frozen=True)
class Choice:
    """A group's type, and why."""

    group: Group
    level: int
    n_bytes: int

    @property
    def kind(self) -> str:
        return self.group.kinds[self.level]

    def as_json(self) -> dict[str, Any]:
        return {
            "group": self.group.name,
            "type": self.kind,
            "bytes": self.n_bytes,
            "smallest": self.group.kinds[0],
            "kl_of_smallest": self.group.kl,
            "kl_expected": self.group.left(self.level),
        }


def split(shapes: Mapping[str, tuple[int, ...]], n_layers: int) -> dict[str, list[str]]:
    """Names of matrices by group."""
    found: dict[str, list[str]] = {}
    for name, shape in shapes.items():
        if len(shape) < 2:
            continue
        if match := re.fullmatch(r"blk\.(\d+)\.(\w+)\.weight", name):
            depth = int(match[1]) * DEPTHS // n_layers
            first, last = -(-depth * n_layers // DEPTHS), -(-(depth + 1) * n_layers // DEPTHS) - 1
            found.setdefault(f"{match[2]} {first}-{last}", []).append(name)
        else:
            found.setdefault(name.removesuffix(".weight"), []).append(name)
    return found


def measure(
    reference: Reference,
    family: Family,
    bf16: Path,
    recipe: Recipe,
    importance: Mapping[str, Array],
    texts: Sequence[Sequence[int]],
    on_progress: Report = silent,
) -> list[Group]:
    """Round one group at a time in `reference`, which has the same weights as `bf16`."""
    stored = {t.name: t for t in gguf.GGUFReader(bf16).tensors}
    shapes = shapes_of(bf16)
    parameters = {
        family.tensor_name(name): (name, parameter)
        for path, parameter in reference.model.named_parameters()
        if (name := plain_name(path))
    }
    names = split(shapes, family.n_layers)
    before = [reference.logits(tokens) for tokens in texts]
    found = []
    for done, (group, members) in enumerate(names.items()):
        kinds = recipe.ladder(members[0], shapes[members[0]])
        errors = np.zeros(len(kinds))
        with _changed() as change:
            for name in members:
                values = gguf.quants.dequantize(stored[name].data, stored[name].tensor_type)
                weights = importance.get(name)
                part = values[:: max(1, len(values) // SAMPLE)]
                errors += [_error(part, rounded(part, kind, weights), weights) for kind in kinds]
                given, parameter = parameters[name]
                apart = torch.from_numpy(rounded(values, kinds[0], weights) - values)
                change(parameter, family.unpermute(given, apart))
            difference = Difference()
            for tokens, logits in zip(texts, before):
                difference.add(tokens, logits, reference.logits(tokens))
        relative = tuple(float(e / errors[0]) if errors[0] else 0.0 for e in errors)
        found.append(Group(group, tuple(members), kinds, max(0.0, difference.mean_kl), relative))
        on_progress(done + 1, len(names))
    return found


def choose(groups: Sequence[Group], shapes: Mapping[str, tuple[int, ...]], max_bytes: int) -> list[Choice]:
    """Types that together take at most `max_bytes`: the raise that saves most per byte, again and again.

    Raises:
        InvalidRecipe: the smallest types take more.
    """

    def size(group: Group, level: int) -> int:
        return sum(n_bytes(shapes[name], group.kinds[level]) for name in group.tensors)

    levels = [0] * len(groups)
    left = max_bytes - sum(size(group, 0) for group in groups)
    if left < 0:
        raise InvalidRecipe(
            f"The smallest types of the recipe take {-left:,} bytes more than the budget; allow them."
        )
    while True:
        raises = [
            (saved / cost, i, level, cost)
            for i, group in enumerate(groups)
            for level in range(levels[i] + 1, len(group.kinds))
            if (saved := group.left(levels[i]) - group.left(level)) > 0
            and 0 < (cost := size(group, level) - size(group, levels[i])) <= left
        ]
        if not raises:
            break
        _, i, level, cost = max(raises)
        levels[i], left = level, left - cost
    return [Choice(group, level, size(group, level)) for group, level in zip(groups, levels)]


def types(choices: Sequence[Choice]) -> dict[str, str]:
    """The type of every matrix."""
    return {name: choice.kind for choice in choices for name in choice.group.tensors}


def _error(values: Array, other: Array, importance: Array | None) -> float:
    squares = np.square(other - values, dtype=np.float64).sum(0)
    return float(squares @ importance if importance is not None else squares.sum())


@contextmanager
def _changed() -> Iterator[Any]:
    """Gives a function that adds to a parameter; all is as before at the end."""
    kept: list[tuple[torch.Tensor, torch.Tensor]] = []

    def change(parameter: torch.Tensor, by: torch.Tensor) -> None:
        kept.append((parameter, parameter.data.clone()))
        parameter.data += by.to(parameter.dtype)

    try:
        yield change
    finally:
        for parameter, values in kept:
            parameter.data.copy_(values)
