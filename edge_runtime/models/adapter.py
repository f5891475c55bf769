"""A LoRA adapter into the weights of a model: W + alpha / rank * B A for each matrix that it changes.

Merged once, an adapter costs nothing at run time; and what is quantized is what was trained.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import gguf
import numpy as np

from ..errors import InvalidModel


def merge(model: Path, adapter: Path, target: Path, facts: Mapping[str, str]) -> None:
    """Write a GGUF with an adapter merged: changed matrices in float16, all others as they are.

    Args:
        adapter: a GGUF LoRA file, as `python -m export lora` or llama.cpp writes it.
        facts: metadata that is other than the model's, such as general.name.

    Raises:
        InvalidModel: the adapter is for another model.
        OSError: `target` cannot be written.
    """
    base, lora = gguf.GGUFReader(model), gguf.GGUFReader(adapter)
    parts = {tensor.name: tensor.data for tensor in lora.tensors}
    alpha = float(lora.fields[gguf.Keys.Adapter.LORA_ALPHA].contents())
    changed = {name.removesuffix(".lora_a") for name in parts if name.endswith(".lora_a")}
    for missing in sorted(changed - {tensor.name for tensor in base.tensors}):
        raise InvalidModel(f"{adapter} changes {missing}, which {model} does not have.")
    architecture = gguf.Keys.General.ARCHITECTURE
    writer = gguf.GGUFWriter(target, base.fields[architecture].contents())
    for field in base.fields.values():
        # The writer has its own of these.
        if not field.name.startswith("GGUF.") and field.name != architecture and field.name not in facts:
            of_items = field.types[1] if len(field.types) > 1 else None
            writer.add_key_value(field.name, field.contents(), field.types[0], of_items)
    for name, value in facts.items():
        writer.add_string(name, value)
    for tensor in base.tensors:
        if tensor.name not in changed:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
            continue
        a, b = (parts[f"{tensor.name}.lora_{part}"].astype(np.float32) for part in "ab")
        weight = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        if weight.shape != (shape := (len(b), a.shape[1])):
            raise InvalidModel(
                f"{adapter} changes {tensor.name} of shape {shape}; in {model} it is {weight.shape}."
            )
        writer.add_tensor(tensor.name, (weight + alpha / len(a) * (b @ a)).astype(np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
