"""Weights and tokenizer -> a BF16 GGUF, a tensor at a time.

The order is that of the layers, so that a file read from disk is read forwards.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Protocol

import gguf
import numpy as np
import torch

from .errors import ExportError, InvalidBase
from .families import EMBEDDING, HEAD, Family
from .progress import Report, silent
from .provenance import Provenance
from .vocabulary import Vocabulary

# Buffers that old checkpoints hold and that are computed from the config.
COMPUTED = re.compile(r"rotary_emb\.inv_freq$|\.attn\.(masked_)?bias$")

MB = 1_000_000


class Weights(Protocol):
    """A checkpoint, merged or not: see `checkpoint.Checkpoint`."""

    shapes: dict[str, tuple[int, ...]]

    def tensor(self, name: str) -> torch.Tensor: ...


def plan(weights: Weights, family: Family) -> list[str]:
    """The tensors to write, in order.

    Raises:
        InvalidBase: one is missing, too many, or of another shape than the config says.
    """
    expected = family.shapes()
    for name, shape in expected.items():
        if name not in weights.shapes:
            raise InvalidBase(
                f"The base has no tensor {name!r}; a shard is missing, or config.json is of another model."
            )
        if weights.shapes[name] != shape:
            raise InvalidBase(
                f"{name!r} is {list(weights.shapes[name])}, by config.json it should be {list(shape)}; "
                "the two are not of one model."
            )
    names = list(expected)
    others = [n for n in weights.shapes if n not in expected and not COMPUTED.search(n)]
    for name in others:
        family.tensor_name(name)  # refuses what the family does not have
    if HEAD not in weights.shapes and not family.tied:
        raise InvalidBase(
            f"The base has no {HEAD!r}, and config.json does not tie the head to the embedding; "
            "a shard is missing."
        )
    return names + others


def convert(
    weights: Weights,
    family: Family,
    vocabulary: Vocabulary,
    provenance: Provenance,
    target: Path,
    on_progress: Report = silent,
) -> None:
    """Write `target`. It appears under its name only when it is complete.

    Args:
        on_progress: called with the MB written, and those to write.

    Raises:
        InvalidBase: a tensor is missing, or holds NaN or infinity.
        ExportError: the file cannot be written.
    """
    names = [n for n in plan(weights, family) if not _is_tied(n, weights, family)]
    partial = target.with_suffix(".partial")
    writer = gguf.GGUFWriter(partial, family.name)
    provenance.write(writer)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_BF16)
    _write_dimensions(writer, family)
    vocabulary.write(writer)
    factors = family.rope_factors()
    if factors is not None:
        writer.add_tensor_info("rope_freqs.weight", factors.shape, np.dtype(np.float32), factors.nbytes)
    total = sum(_announce(writer, family.tensor_name(name), weights.shapes[name]) for name in names)
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        if factors is not None:
            writer.write_tensor_data(factors.numpy())
        done = 0
        for name in names:
            data = _data(name, family.permute(name, weights.tensor(name)))
            writer.write_tensor_data(data)
            done += data.nbytes
            on_progress(done // MB, total // MB)
        writer.close()
        partial.replace(target)
    except OSError as error:
        raise ExportError(
            f"{target} cannot be written: {error.strerror}. It takes {total / 1e9:.1f} GB; free some, "
            "or take another --out."
        ) from None
    finally:
        partial.unlink(missing_ok=True)


def _announce(writer: gguf.GGUFWriter, name: str, shape: tuple[int, ...]) -> int:
    """Put a tensor into the header, and return its bytes: matrices in BF16, vectors in float32."""
    matrix = len(shape) > 1
    n_bytes = int(np.prod(shape)) * (2 if matrix else 4)
    writer.add_tensor_info(
        name,
        shape,
        np.dtype(np.uint16 if matrix else np.float32),
        n_bytes,
        gguf.GGMLQuantizationType.BF16 if matrix else None,
    )
    return n_bytes


def _is_tied(name: str, weights: Weights, family: Family) -> bool:
    """Whether this is a head that is the embedding once more, which GGUF does not repeat."""
    return name == HEAD and family.tied and torch.equal(weights.tensor(HEAD), weights.tensor(EMBEDDING))


def _data(name: str, tensor: torch.Tensor) -> np.ndarray[Any, Any]:
    # In parts: the test takes several times the memory of what it looks at.
    if not all(torch.isfinite(part).all() for part in tensor.split(4096)):
        raise InvalidBase(
            f"{name!r} holds NaN or infinity; the training run diverged, or the file is damaged."
        )
    if tensor.ndim > 1:
        halves: np.ndarray[Any, Any] = tensor.to(torch.bfloat16).contiguous().view(torch.uint16).numpy()
        return halves
    values: np.ndarray[Any, Any] = tensor.float().contiguous().numpy()
    return values


def _write_dimensions(writer: gguf.GGUFWriter, family: Family) -> None:
    writer.add_context_length(family.n_ctx)
    writer.add_embedding_length(family.n_embd)
    writer.add_block_count(family.n_layers)
    writer.add_feed_forward_length(family.n_ff)
    writer.add_head_count(family.n_head)
    writer.add_head_count_kv(family.n_head_kv)
    writer.add_key_length(family.head_dim)
    writer.add_value_length(family.head_dim)
    writer.add_rope_dimension_count(family.head_dim)
    writer.add_layer_norm_rms_eps(family.rms_eps)
    writer.add_vocab_size(family.n_vocab)
    rope = family.rope
    writer.add_rope_freq_base(rope["theta"])
    if rope["type"] in ("linear", "yarn"):
        writer.add_rope_scaling_type(gguf.RopeScalingType(rope["type"]))
        writer.add_rope_scaling_factor(float(rope["factor"]))
    if rope["type"] == "yarn":
        writer.add_rope_scaling_orig_ctx_len(int(rope["original_max_position_embeddings"]))
