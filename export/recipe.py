"""Which weight type for which tensor, and how much may be lost: data, in TOML."""

from __future__ import annotations

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
    """A type for every matrix.

    Attributes:
        matrix: the type of matrices that no pattern names.
        fallback: the type of matrices whose rows are no whole blocks of theirs.
        tensors: type by pattern of GGUF names; the first that fits decides.
    """

    name: str
    about: str
    matrix: str
    fallback: str
    tensors: dict[str, str]
    gates: Gates

    def types(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, str]:
        """The type of every matrix among `shapes`: (rows, row length) by GGUF name."""
        found = {}
        for name, shape in shapes.items():
            if len(shape) < 2:
                continue
            kind = next((t for p, t in self.tensors.items() if fnmatchcase(name, p)), self.matrix)
            found[name] = kind if shape[-1] % _block(kind) == 0 else self.fallback
        return found


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


def _checked(path: Path, values: dict[str, Any]) -> Recipe:
    known = {"about", "matrix", "fallback", "tensors", "gates"}
    if wrong := (values.keys() - known) | (known - values.keys()):
        raise InvalidRecipe(f"{path}: {min(wrong)!r} is {'missing' if min(wrong) in known else 'unknown'}.")
    tensors, gates = values["tensors"], values["gates"]
    for key, kind in (("matrix", values["matrix"]), ("fallback", values["fallback"]), *tensors.items()):
        if kind not in gguf.GGMLQuantizationType.__members__:
            raise InvalidRecipe(
                f"{path}: {key} is {kind!r}, which is no weight type; take Q4_0, Q4_K, Q8_0 …"
            )
    if _block(values["fallback"]) > 32:
        raise InvalidRecipe(
            f"{path}: fallback is {values['fallback']}; it must have blocks of 32, such as Q8_0."
        )
    names = set(Gates.__dataclass_fields__)
    if wrong := names ^ gates.keys():
        raise InvalidRecipe(
            f"{path}: [gates] {min(wrong)!r} is {'missing' if min(wrong) in names else 'unknown'}."
        )
    for key, value in gates.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not value >= 0:
            raise InvalidRecipe(f"{path}: [gates] {key} is {value!r}; it must be a number, 0 or more.")
    return Recipe(path.stem, values["about"], values["matrix"], values["fallback"], tensors, Gates(**gates))


def _block(kind: str) -> int:
    return int(gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]][0])
