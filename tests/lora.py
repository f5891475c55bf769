"""Small adapters in GGUF form."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np


def write_lora(
    path: Path, matrix: str, n_in: int, n_out: int, rank: int = 4, alpha: float = 8, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """An adapter that changes one matrix: A of shape (rank, n_in), and B of shape (n_out, rank)."""
    chance = np.random.default_rng(seed)
    a = chance.normal(0, 0.1, (rank, n_in)).astype(np.float16)
    b = chance.normal(0, 0.1, (n_out, rank)).astype(np.float16)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, alpha)
    writer.add_tensor(f"{matrix}.lora_a", a)
    writer.add_tensor(f"{matrix}.lora_b", b)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return a.astype(np.float32), b.astype(np.float32)
