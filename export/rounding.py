"""Q4_0 rounding in which each column makes up for the errors of those before it (GPTQ, arXiv 2210.17323).

llama.cpp's quantizer rounds every weight by itself. Here the errors are weighed by what really goes into the
matrix, and what is left of one column is passed on to the next. The result is Q4_0, as small and as fast.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import gguf
import numpy as np
import torch

from .families import Family

Bytes: TypeAlias = "np.ndarray[Any, np.dtype[np.uint8]]"

BLOCK = 32
# Of the mean of the diagonal: keeps the inverse tame where inputs hardly vary.
DAMPING = 0.01
# Scales tried for a block, as shares of that at which its largest weight is exact.
SCALES = torch.linspace(0.75, 1.05, 13)


def q4_0(weight: torch.Tensor, hessian: torch.Tensor) -> torch.Tensor:
    """The weights that Q4_0 holds in place of `weight`: shape (rows, n_in), float32.

    Args:
        weight: shape (rows, n_in), n_in a multiple of 32.
        hessian: sum of x xᵀ over inputs x: shape (n_in, n_in).

    Returns:
        Levels, 0 to 15, and the scale of each block, float32 that float16 holds exactly; the weight is
        (level - 8) * scale. Shapes (rows, n_in) and (rows, n_in / 32).
    """
    levels, scales = _levels(weight, hessian)
    return (levels - 8) * scales.repeat_interleave(BLOCK, 1)


def pack(levels: torch.Tensor, scales: torch.Tensor) -> Bytes:
    """The bytes of Q4_0 blocks: shape (rows, n_in / 32 * 18)."""
    rows = levels.shape[0]
    blocks = levels.to(torch.uint8).reshape(rows, -1, BLOCK).numpy()
    nibbles = blocks[..., : BLOCK // 2] | (blocks[..., BLOCK // 2 :] << 4)
    heads = scales.to(torch.float16).numpy().reshape(rows, -1, 1).view(np.uint8)
    packed: Bytes = np.concatenate([heads, nibbles], axis=-1).reshape(rows, -1)
    return packed


def _levels(weight: torch.Tensor, hessian: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    rows, n = weight.shape
    w = weight.float().clone()
    inverse = _inverse_factor(hessian)
    importance = inverse.diagonal().reciprocal().square()
    levels = torch.empty(rows, n)
    scales = torch.empty(rows, n // BLOCK)
    for begin in range(0, n, BLOCK):
        end = begin + BLOCK
        block = w[:, begin:end]
        scale = _scale(block, importance[begin:end])
        scales[:, begin // BLOCK] = scale
        divisor = torch.where(scale == 0, 1.0, scale)
        errors = torch.empty(rows, BLOCK)
        for i in range(BLOCK):
            level = (block[:, i] / divisor).round().add_(8).clamp_(0, 15)
            levels[:, begin + i] = level
            row = inverse[begin + i, begin + i : end]
            errors[:, i] = (block[:, i] - (level - 8) * scale) / row[0]
            block[:, i:] -= errors[:, i, None] * row
        w[:, end:] -= errors @ inverse[begin:end, end:]
    return levels, scales


def _inverse_factor(hessian: torch.Tensor) -> torch.Tensor:
    """The upper Cholesky factor of the damped inverse, float32."""
    h = hessian.double().clone()
    diagonal = h.diagonal()
    diagonal[diagonal == 0] = 1.0  # an input that was never seen decides nothing
    diagonal += DAMPING * diagonal.mean()
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(h))
    return torch.linalg.cholesky(inverse, upper=True).float()


def _scale(block: torch.Tensor, importance: torch.Tensor) -> torch.Tensor:
    """The scale of each row with the least weighted error, as float16 holds it: shape (rows,)."""
    largest = block.gather(1, block.abs().argmax(1, keepdim=True))[:, 0]
    tried = ((largest / -8)[:, None] * SCALES).half().float()  # (rows, tries)
    divisor = torch.where(tried == 0, 1.0, tried)[..., None]
    rounded = (block[:, None] / divisor).round().clamp(-8, 7) * tried[..., None]
    error = ((block[:, None] - rounded).square() * importance).sum(-1)
    return tried.gather(1, error.argmin(1, keepdim=True))[:, 0]


def compensate(
    model: Any,
    family: Family,
    texts: Sequence[Sequence[int]],
    names: set[str],
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Bytes]:
    """Round the matrices `names` of a transformers model, layer by layer.

    Each layer sees the activations that the rounded layers before it make. The model's weights are changed.

    Args:
        names: GGUF names of the matrices that become Q4_0.

    Returns:
        The bytes of each, in GGUF's order of rows.
    """
    packed: dict[str, Bytes] = {}
    layers = model.model.layers
    with torch.inference_mode():
        calls = _inputs_of_first_layer(model, layers[0], texts)
        for number, layer in enumerate(layers):
            linears = {
                f"model.layers.{number}.{path}.weight": module
                for path, module in layer.named_modules()
                if isinstance(module, torch.nn.Linear)
                and family.tensor_name(f"model.layers.{number}.{path}.weight") in names
            }
            hessians = _hessians(layer, linears, calls)
            for name, module in linears.items():
                levels, scales = _levels(module.weight, hessians[name])
                module.weight.copy_((levels - 8) * scales.repeat_interleave(BLOCK, 1))
                order = family.permute(name, torch.arange(levels.shape[0], dtype=torch.float32)[:, None])[
                    :, 0
                ].long()
                packed[family.tensor_name(name)] = pack(levels[order], scales[order])
            calls = [(_first(layer(x, **rest)), rest) for x, rest in calls]
            on_progress(number + 1, len(layers))
    return packed


def _inputs_of_first_layer(
    model: Any, layer: Any, texts: Sequence[Sequence[int]]
) -> list[tuple[torch.Tensor, dict[str, Any]]]:
    calls: list[tuple[torch.Tensor, dict[str, Any]]] = []

    class Enough(Exception):
        pass

    def hook(_: Any, given: tuple[torch.Tensor, ...], named: dict[str, Any]) -> None:
        calls.append((given[0], named | {"use_cache": False, "past_key_values": None}))
        raise Enough

    handle = layer.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        for tokens in texts:
            try:
                model(torch.tensor([list(tokens)]), use_cache=False)
            except Enough:
                continue
    finally:
        handle.remove()
    return calls


def _hessians(
    layer: Any, linears: dict[str, Any], calls: list[tuple[torch.Tensor, dict[str, Any]]]
) -> dict[str, torch.Tensor]:
    sums: dict[str, torch.Tensor] = {}
    handles = []

    def watch(name: str) -> Any:
        def hook(_: Any, inputs: tuple[torch.Tensor, ...]) -> None:
            x = inputs[0].reshape(-1, inputs[0].shape[-1]).float()
            sums[name] = sums[name] + x.T @ x if name in sums else x.T @ x

        return hook

    for name, module in linears.items():
        handles.append(module.register_forward_pre_hook(watch(name)))
    try:
        for x, rest in calls:
            layer(x, **rest)
    finally:
        for handle in handles:
            handle.remove()
    return sums


def _first(output: Any) -> torch.Tensor:
    return output[0] if isinstance(output, tuple) else output


def overwrite(path: Path, packed: dict[str, Bytes]) -> None:
    """Put other bytes of the same type and size in place of a GGUF's tensors."""
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    with path.open("r+b") as file:
        for name, data in packed.items():
            tensor = tensors[name]
            assert tensor.tensor_type == gguf.GGMLQuantizationType.Q4_0 and tensor.n_bytes == data.nbytes, (
                name
            )
            file.seek(tensor.data_offset)
            file.write(data.tobytes())
