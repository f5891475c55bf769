"""A model folder in Hugging Face's form: its config, and its tensors one at a time.

Never holds more than one tensor. Knows nothing of adapters or GGUF.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from .errors import InvalidBase

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"


class Checkpoint:
    """Tensors by name, read when asked for.

    Attributes:
        folder: where it lies.
        config: config.json.
        shapes: of every tensor, by name.
    """

    def __init__(self, folder: Path) -> None:
        """Read the config and the headers of all shards, and check that they agree.

        Raises:
            InvalidBase: something is missing, cut off or contradictory.
        """
        self.folder = folder
        self.config: dict[str, Any] = read_json(folder / "config.json")
        self._file_of = self._files()
        self.shapes: dict[str, tuple[int, ...]] = {}
        for path in sorted(set(self._file_of.values())):
            with open_safetensors(path) as file:
                there = set(file.keys())
                for name in [n for n, of in self._file_of.items() if of == path]:
                    if name not in there:
                        raise InvalidBase(
                            f"{path} has no tensor {name!r}, though {INDEX} says so; download it again."
                        )
                    self.shapes[name] = tuple(file.get_slice(name).get_shape())

    def _files(self) -> dict[str, Path]:
        index = self.folder / INDEX
        if not index.exists():
            path = self.folder / SINGLE
            with open_safetensors(path) as file:
                return dict.fromkeys(file.keys(), path)
        names = read_json(index).get("weight_map")
        if not isinstance(names, dict) or not all(isinstance(n, str) for n in names.values()):
            raise InvalidBase(f"{index} has no weight_map of names to files; download it again.")
        return {name: self.folder / file for name, file in names.items()}

    def tensor(self, name: str) -> torch.Tensor:
        """One tensor as it is stored. Nothing else of its file stays in memory."""
        with open_safetensors(self._file_of[name]) as file:
            tensor: torch.Tensor = file.get_tensor(name)
        return tensor

    def __contains__(self, name: str) -> bool:
        return name in self.shapes

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        InvalidBase: it is missing or something else.
    """
    try:
        value = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise InvalidBase(f"{path} is missing; --base takes a model folder in Hugging Face's form.") from None
    except (OSError, ValueError) as error:
        raise InvalidBase(f"{path} cannot be read as JSON ({error}); download it again.") from None
    if not isinstance(value, dict):
        raise InvalidBase(f"{path} holds no JSON object; download it again.")
    return value


def open_safetensors(path: Path) -> Any:
    """`safe_open`, with errors of ours.

    Raises:
        InvalidBase: the file is missing, cut off, or no safetensors file.
    """
    try:
        return safe_open(path, framework="pt")
    except FileNotFoundError:
        raise InvalidBase(f"{path} is missing; download the model again.") from None
    except (SafetensorError, OSError) as error:
        raise InvalidBase(f"{path} is damaged or cut off ({error}); download it again.") from None
