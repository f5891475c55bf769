"""Base + LoRA adapter -> merged weights, a tensor at a time, in peft's own arithmetic.

Every tensor of the adapter is used, or refused by name: what is skipped in silence is a fine-tune lost.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .checkpoint import Checkpoint, open_safetensors, read_json
from .errors import InvalidAdapter
from .families import EMBEDDING, HEAD

WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."

# Settings of peft that change what an adapter means, and the values that mean "not used".
UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "use_dora": (False, None),
    "bias": ("none", None),
    "lora_bias": (False, None),
    "target_parameters": (None, []),
    "trainable_token_indices": (None, [], {}),
    "layer_replication": (None, []),
    "megatron_config": (None,),
    "alora_invocation_tokens": (None, []),
    "use_qalora": (False, None),
    "arrow_config": (None,),
    "use_bdlora": (None, False),
    "velora_config": (None,),
    "kasa_config": (None,),
    "monteclora_config": (None,),
    "megatron_core": (None, "megatron.core"),
    # Others than these start from changed base weights, which the adapter does not hold.
    "init_lora_weights": (True, False, None, "gaussian", "eva", "orthogonal"),
}


@dataclass(frozen=True)
class Pair:
    """The two factors of one change: delta = scaling * B @ A, transposed with `fan_in_fan_out`."""

    a: str
    b: str
    scaling: float


class Adapter:
    """A peft LoRA adapter.

    Attributes:
        pairs: by the name of the base's tensor that they change.
        replaced: modules_to_save: the adapter's tensor by the name of the base's that it replaces.
    """

    def __init__(self, folder: Path) -> None:
        """Read the settings and the header.

        Raises:
            InvalidAdapter: no LoRA adapter, or one with parts that cannot be merged.
        """
        self.folder = folder
        self.config = _config(folder)
        self._path = folder / WEIGHTS
        with open_safetensors(self._path) as file:
            self.shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        if not self.shapes:
            raise InvalidAdapter(f"{self._path} holds no tensors; train the adapter again.")
        self.pairs: dict[str, Pair] = {}
        self.replaced: dict[str, str] = {}
        for name in sorted(self.shapes):
            self._place(name)

    def _place(self, name: str) -> None:
        if not name.startswith(PREFIX):
            raise InvalidAdapter(f"{self._path}: {name!r} is no tensor of a peft adapter.")
        module, _, part = name.removeprefix(PREFIX).partition(".lora_")
        if not part:
            # Under an adapter peft calls the layer itself base_layer; some are saved with it.
            self.replaced[module.replace(".base_layer.", ".")] = name
        elif part == "A.weight":
            b = f"{PREFIX}{module}.lora_B.weight"
            if b not in self.shapes:
                raise InvalidAdapter(f"{self._path} has {name!r} without its lora_B; train it again.")
            self.pairs[f"{module}.weight"] = Pair(name, b, self._scaling(module, name))
        elif part != "B.weight":
            raise InvalidAdapter(
                f"{self._path}: {name!r} is a part of LoRA that is not supported (only lora_A and lora_B of "
                "linear layers are); train without it."
            )

    def _scaling(self, module: str, a: str) -> float:
        r = int(_matching(self.config.get("rank_pattern"), module, self.config["r"]))
        if self.shapes[a][0] != r:
            raise InvalidAdapter(
                f"{self._path}: {a!r} has rank {self.shapes[a][0]}, adapter_config.json says {r}; "
                "the two files are not of one adapter."
            )
        alpha = float(_matching(self.config.get("alpha_pattern"), module, self.config["lora_alpha"]))
        return alpha / math.sqrt(r) if self.config.get("use_rslora") else alpha / r

    def check(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Check that the adapter fits a base with these tensors.

        Raises:
            InvalidAdapter: it is for another base.
        """
        changed = {name: self.shapes[source] for name, source in self.replaced.items()}
        for name, pair in self.pairs.items():
            shape = (self.shapes[pair.b][0], self.shapes[pair.a][1])
            changed[name] = shape[::-1] if self.config.get("fan_in_fan_out") else shape
        for name, shape in changed.items():
            if name not in shapes:
                raise InvalidAdapter(
                    f"{self.folder} changes {name!r}, which the base does not have; "
                    "the adapter is for another base."
                )
            if shapes[name] != shape:
                raise InvalidAdapter(
                    f"{self.folder} changes {name!r} as {list(shape)}, in the base it is "
                    f"{list(shapes[name])}; the adapter is for another base, or adds tokens, "
                    "which is not supported."
                )

    def tensor(self, name: str) -> torch.Tensor:
        with open_safetensors(self._path) as file:
            tensor: torch.Tensor = file.get_tensor(name)
        return tensor

    def delta(self, pair: Pair) -> torch.Tensor:
        """The change of a weight, in float32, of the weight's shape."""
        change = self.tensor(pair.b).float() @ self.tensor(pair.a).float()
        if self.config.get("fan_in_fan_out"):
            change = change.T
        return change * pair.scaling


class Merged:
    """A checkpoint with an adapter in it: the same interface, other weights.

    A tied head that the adapter changes becomes a tensor of its own.
    """

    def __init__(self, base: Checkpoint, adapter: Adapter) -> None:
        """Check that the adapter fits.

        Raises:
            InvalidAdapter: it is for another base.
        """
        self._base = base
        self._adapter = adapter
        self.folder, self.config = base.folder, base.config
        self.shapes = dict(base.shapes)
        if HEAD not in base and (HEAD in adapter.pairs or HEAD in adapter.replaced):
            self.shapes[HEAD] = base.shapes[EMBEDDING]
        adapter.check(self.shapes)

    def tensor(self, name: str) -> torch.Tensor:
        """One merged tensor, in the precision of what was trained, rounded once."""
        if source := self._adapter.replaced.get(name):
            weight = self._adapter.tensor(source)
        else:
            weight = self._base.tensor(name if name in self._base else EMBEDDING)
        if pair := self._adapter.pairs.get(name):
            return (weight.float() + self._adapter.delta(pair)).to(weight.dtype)
        return weight

    def __contains__(self, name: str) -> bool:
        return name in self.shapes

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)


def _config(folder: Path) -> dict[str, Any]:
    path = folder / "adapter_config.json"
    if not path.is_file():
        raise InvalidAdapter(f"{path} is missing; --adapter takes the folder that peft saved.")
    config = read_json(path)
    if config.get("peft_type") != "LORA":
        raise InvalidAdapter(f"{path}: peft_type is {config.get('peft_type')!r}; only LORA can be merged.")
    for key, unused in UNSUPPORTED.items():
        if key in config and config[key] not in unused:
            raise InvalidAdapter(
                f"{path}: {key} is {config[key]!r}, which cannot be merged; train without it."
            )
    for key in ("r", "lora_alpha"):
        if not isinstance(config.get(key), (int, float)) or config[key] <= 0:
            raise InvalidAdapter(f"{path}: {key} is {json.dumps(config.get(key))}; it must be above 0.")
    return config


def _matching(patterns: dict[str, Any] | None, module: str, otherwise: Any) -> Any:
    """The value of the first pattern that the module's name ends with, as peft looks it up."""
    for pattern, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return otherwise
