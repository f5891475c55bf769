"""Which weight type for which tensor, and how much may be lost: data, in TOML."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import gguf

from .errors import InvalidRecipe

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FOLDER = Path(__file__).parent / "recipes"


@dataclass(frozen=True)
class Gates:
    """Limits of the retention gate.

    Attributes:
        max_perplexity_ratio: of the 4-bit model to the BF16 one.
        max_mean_kl: nats a position.
        min_top1: share of positions with the same most probable token.
        max_accuracy_loss: of multiple choice, where the evaluation file has any.
    """

    max_perplexity_ratio: float
    max_mean_kl: float
    min_top1: float
    max_accuracy_loss: float


@dataclass(frozen=True)
class Recipe:
    """Types for every matrix: of a list the first whose blocks fit into the matrix's rows.

    Attributes:
        matrix: for matrices that no pattern names.
        tensors: by pattern of GGUF names; the first that fits decides.
        ladders: for `budget`, by pattern: the type to start with, then those it may be raised to.
    """

    name: str
    about: str
    matrix: tuple[str, ...]
    tensors: dict[str, tuple[str, ...]]
    ladders: dict[str, tuple[str, ...]]
    gates: Gates

    def types(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, str]:
        """The type of every matrix among `shapes`: (rows, row length) by GGUF name.

        Raises:
            InvalidRecipe: no type fits.
        """
        found = {}
        for name, shape in shapes.items():
            if len(shape) < 2:
                continue
            found[name] = self._fitting(name, shape, _first(self.tensors, name) or self.matrix)[0]
        return found

    def ladder(self, name: str, shape: tuple[int, ...]) -> tuple[str, ...]:
        """The types that a matrix may have within a budget, the smallest first.

        Raises:
            InvalidRecipe: none is given, or none fits.
        """
        kinds = _first(self.ladders, name)
        if not kinds:
            raise InvalidRecipe(f'{self.name}: [auto] has no types for {name}; add a line for "*".')
        return self._fitting(name, shape, kinds)

    def _fitting(self, name: str, shape: tuple[int, ...], kinds: tuple[str, ...]) -> tuple[str, ...]:
        fitting = tuple(kind for kind in kinds if shape[-1] % _block(kind) == 0)
        if not fitting:
            raise InvalidRecipe(
                f"{self.name}: {name} has rows of {shape[-1]}, which are no whole blocks of "
                f"{' or '.join(kinds)}; add Q8_0 to the list."
            )
        return fitting


def _first(patterns: Mapping[str, tuple[str, ...]], name: str) -> tuple[str, ...] | None:
    return next((kinds for pattern, kinds in patterns.items() if fnmatchcase(name, pattern)), None)


def shapes_of(path: Path) -> dict[str, tuple[int, ...]]:
    """(rows, row length) of every tensor of a GGUF, by name."""
    return {t.name: tuple(int(n) for n in t.shape[::-1]) for t in gguf.GGUFReader(path).tensors}


def n_bytes(shape: tuple[int, ...], kind: str) -> int:
    """What a matrix takes in a type."""
    block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    return int(math.prod(shape) // block * size)


def load(name: str) -> Recipe:
    """A recipe by name, or from a file.

    Raises:
        InvalidRecipe: unknown, or something in it is wrong; with its name.
    """
    path = FOLDER / f"{name}.toml"
    if not path.is_file():
        path = Path(name)
    try:
        with path.open("rb") as file:
            values = tomllib.load(file)
    except FileNotFoundError:
        known = ", ".join(sorted(p.stem for p in FOLDER.glob("*.toml")))
        raise InvalidRecipe(
            f"--target {name}: no such recipe. Known are {known}; or name a .toml file."
        ) from None
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise InvalidRecipe(f"{path} is no TOML file ({error}).") from None
    return _checked(path, values)


def write(recipe: Recipe, types: Mapping[str, str], path: Path) -> None:
    """Types that `budget` chose, as a recipe that can be read, changed and used as a --target."""
    lines = [
        f"about = {json.dumps(f'Chosen by measure, from {recipe.name}.')}",
        f"matrix = {json.dumps(list(recipe.matrix))}",
        "\n[tensors]",
        *(f"{json.dumps(name)} = {json.dumps(kind)}" for name, kind in types.items()),
        "\n[gates]",
        *(f"{name} = {value}" for name, value in vars(recipe.gates).items()),
    ]
    path.write_text("\n".join(lines) + "\n", "utf-8")


def _checked(path: Path, values: dict[str, Any]) -> Recipe:
    known = {"about", "matrix", "tensors", "auto", "gates"}
    values = {"auto": {}, **values}
    if wrong := (values.keys() - known) | (known - values.keys()):
        raise InvalidRecipe(f"{path}: {min(wrong)!r} is {'missing' if min(wrong) in known else 'unknown'}.")
    gates = values["gates"]
    matrix = _kinds(path, "matrix", values["matrix"])
    tensors = {pattern: _kinds(path, pattern, given) for pattern, given in values["tensors"].items()}
    ladders = {pattern: _kinds(path, pattern, given) for pattern, given in values["auto"].items()}
    names = set(Gates.__dataclass_fields__)
    if wrong := names ^ gates.keys():
        raise InvalidRecipe(
            f"{path}: [gates] {min(wrong)!r} is {'missing' if min(wrong) in names else 'unknown'}."
        )
    for key, value in gates.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not value >= 0:
            raise InvalidRecipe(f"{path}: [gates] {key} is {value!r}; it must be a number, 0 or more.")
    return Recipe(path.stem, values["about"], matrix, tensors, ladders, Gates(**gates))


def _kinds(path: Path, key: str, given: Any) -> tuple[str, ...]:
    kinds = tuple(given) if isinstance(given, list) else (given,)
    for kind in kinds:
        if kind not in gguf.GGMLQuantizationType.__members__:
            raise InvalidRecipe(
                f"{path}: {key} is {given!r}; take a weight type, such as Q4_0, Q4_K or Q8_0, or a list."
            )
    return kinds


def _block(kind: str) -> int:
    return int(gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]][0])
