"""How much each input of each matrix matters: mean squares of activations on calibration text.

Kept in llama.cpp's imatrix form, so that its tools read ours and we read theirs.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import gguf
import numpy as np
import torch

from .errors import ExportError
from .families import Family, plain_name
from .progress import Report, silent

Array: TypeAlias = "np.ndarray[Any, np.dtype[np.float32]]"


@dataclass(frozen=True)
class Importance:
    """Sums of squared inputs.

    Attributes:
        sums: by the matrix's name in GGUF, shape (n_in,).
        n_tokens: how many tokens were looked at.
        sources: names of the calibration files.
    """

    sums: dict[str, Array]
    n_tokens: int
    sources: tuple[str, ...]

    @property
    def means(self) -> dict[str, Array]:
        return {name: values / np.float32(self.n_tokens) for name, values in self.sums.items()}


def collect(
    model: Any,
    family: Family,
    texts: Sequence[Sequence[int]],
    sources: Iterable[str],
    on_progress: Report = silent,
) -> Importance:
    """Run `model`, a transformers model, over token lists, and sum up what goes into each linear layer."""
    sums: dict[str, torch.Tensor] = {}
    handles = []

    def watch(name: str) -> Any:
        def hook(_: Any, inputs: tuple[torch.Tensor, ...]) -> None:
            x = inputs[0].detach().float().reshape(-1, inputs[0].shape[-1])
            total = x.square().sum(0, dtype=torch.float64)
            sums[name] = sums[name] + total if name in sums else total

        return hook

    for path, module in model.named_modules():
        name = _gguf_name(path, module, family)
        if name:
            handles.append(module.register_forward_pre_hook(watch(name)))
    n_tokens = 0
    try:
        with torch.inference_mode():
            for done, tokens in enumerate(texts, 1):
                model(torch.tensor([list(tokens)]))
                n_tokens += len(tokens)
                on_progress(done, len(texts))
    finally:
        for handle in handles:
            handle.remove()
    return Importance({n: s.float().numpy() for n, s in sums.items()}, n_tokens, tuple(sources))


def _gguf_name(path: str, module: Any, family: Family) -> str | None:
    """The matrix that a module multiplies with; None if it is no linear layer of the base."""
    name = plain_name(path)
    if not isinstance(module, torch.nn.Linear) or not name:
        return None
    if name == "lm_head" and family.tied:
        return "token_embd.weight"  # the head is the embedding once more
    return family.tensor_name(f"{name}.weight")


def save(importance: Importance, path: Path) -> None:
    """Write llama.cpp's form."""
    partial = path.with_suffix(".partial")
    writer = gguf.GGUFWriter(partial, "")
    writer.add_type(gguf.GGUFType.IMATRIX)
    writer.add_array(gguf.Keys.IMatrix.DATASETS, list(importance.sources))
    # One chunk: all that we sum up is tokens.
    writer.add_uint32(gguf.Keys.IMatrix.CHUNK_COUNT, 1)
    writer.add_uint32(gguf.Keys.IMatrix.CHUNK_SIZE, importance.n_tokens)
    for name, values in sorted(importance.sums.items()):
        writer.add_tensor(f"{name}.in_sum2", values.reshape(1, -1).astype(np.float32))
        writer.add_tensor(f"{name}.counts", np.array([[importance.n_tokens]], dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    partial.replace(path)


def load(path: Path) -> Importance:
    """Read llama.cpp's form.

    Raises:
        ExportError: it is no imatrix file.
    """
    try:
        reader = gguf.GGUFReader(path)
        found = {tensor.name: tensor.data for tensor in reader.tensors}
        counts = {
            n.removesuffix(".counts"): float(d.max()) for n, d in found.items() if n.endswith(".counts")
        }
        n_tokens = int(max(counts.values()))
        datasets = reader.fields.get(gguf.Keys.IMatrix.DATASETS)
        return Importance(
            # A matrix that was looked at less often counts as much as the others.
            {
                n: found[f"{n}.in_sum2"].reshape(-1) * np.float32(n_tokens / c)
                for n, c in counts.items()
                if c > 0
            },
            n_tokens,
            tuple(datasets.contents()) if datasets else (),
        )
    except (OSError, ValueError, KeyError, IndexError) as error:
        raise ExportError(f"{path} is no imatrix file ({error}); make it again with --calibration.") from None
