"""A LoRA adapter as a GGUF file of its own: a few MB for devices that have the base already."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch

from .card import sha256
from .errors import ExportError, InvalidAdapter
from .families import EMBEDDING, HEAD, Family
from .merge import WEIGHTS, Adapter
from .progress import Report, silent
from .provenance import PREFIX


def write(adapter: Adapter, family: Family, target: Path, on_progress: Report = silent) -> None:
    """Write llama.cpp's form, in float16. `target` appears under its name when it is complete.

    Every pair's own scaling goes into its B, as a GGUF has one alpha for all.

    Raises:
        InvalidAdapter: it is for another base, changes what such a file cannot hold (whole layers, a tied
            head), or has values that are no numbers in float16.
        ExportError: the file cannot be written.
    """
    head = {} if family.tied else {HEAD: (family.n_vocab, family.n_embd)}
    for name in (*adapter.replaced, *(n for n in (HEAD, EMBEDDING) if n in adapter.pairs and n not in head)):
        raise InvalidAdapter(
            f"{adapter.folder} changes {name!r}, which a GGUF adapter cannot hold for this base; "
            "export the merged model instead."
        )
    adapter.check(family.shapes() | head)
    alpha = float(adapter.config["lora_alpha"])
    partial = target.with_suffix(".partial")
    try:
        writer = gguf.GGUFWriter(partial, family.name)
        writer.add_type(gguf.GGUFType.ADAPTER)
        writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
        writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, alpha)
        writer.add_name(adapter.folder.name)
        writer.add_string(f"{PREFIX}adapter_sha256", sha256(adapter.folder / WEIGHTS))
        for done, (name, pair) in enumerate(adapter.pairs.items(), 1):
            a, b = adapter.tensor(pair.a).float(), adapter.tensor(pair.b).float()
            # What llama.cpp multiplies with is alpha / rank.
            b = b * (pair.scaling * a.shape[0] / alpha)
            if adapter.config.get("fan_in_fan_out"):
                a, b = b.T, a.T
            stored = family.tensor_name(name)
            writer.add_tensor(f"{stored}.lora_a", _half(name, a))
            writer.add_tensor(f"{stored}.lora_b", _half(name, family.permute(name, b)))
            on_progress(done, len(adapter.pairs))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        partial.replace(target)
    except OSError as error:
        raise ExportError(f"{target} cannot be written: {error.strerror}.") from None
    finally:
        partial.unlink(missing_ok=True)


def _half(name: str, values: torch.Tensor) -> np.ndarray[Any, np.dtype[np.float16]]:
    halves = values.half()
    if not torch.isfinite(halves).all():
        raise InvalidAdapter(f"The adapter's change of {name!r} is no number in float16; train it again.")
    found: np.ndarray[Any, np.dtype[np.float16]] = halves.contiguous().numpy()
    return found
