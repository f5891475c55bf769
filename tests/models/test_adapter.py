"""An adapter merged into a GGUF. That it is the trained model then is in tests/export/test_export.py."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest

from edge_runtime.errors import InvalidModel
from edge_runtime.models import gguf as ours
from edge_runtime.models.adapter import merge
from tests.lora import write_lora


def matrices(path: Path) -> dict[str, np.ndarray]:
    return {t.name: gguf.quants.dequantize(t.data, t.tensor_type) for t in gguf.GGUFReader(path).tensors}


def test_only_what_it_names_changes_and_by_the_formula(tiny: Path, tmp_path: Path) -> None:
    adapter, target = tmp_path / "adapter.gguf", tmp_path / "merged.gguf"
    a, b = write_lora(adapter, "blk.0.attn_q.weight", n_in=64, n_out=64, rank=4, alpha=8)
    merge(tiny, adapter, target, {"general.name": "with an adapter"})
    before, after = matrices(tiny), matrices(target)
    name = "blk.0.attn_q.weight"
    expected = before.pop(name) + 8 / 4 * (b @ a)
    np.testing.assert_allclose(after.pop(name), expected, rtol=1e-3, atol=1e-4)
    assert before.keys() == after.keys()
    assert all((before[other] == after[other]).all() for other in before)
    made, given = ours.read(target), ours.read(tiny)
    assert made.name == "with an adapter" and made.chat_template == given.chat_template
    assert made.metadata.keys() - given.metadata.keys() <= {"general.name"}


@pytest.mark.parametrize(
    ("name", "n_in", "says"),
    [
        ("blk.77.attn_q.weight", 64, "blk.77.attn_q.weight"),
        ("blk.0.attn_q.weight", 32, r"\(64, 32\).*\(64, 64\)"),
    ],
)
def test_an_adapter_for_another_model_is_refused(
    tiny: Path, tmp_path: Path, name: str, n_in: int, says: str
) -> None:
    write_lora(tmp_path / "adapter.gguf", name, n_in=n_in, n_out=64)
    with pytest.raises(InvalidModel, match=says):
        merge(tiny, tmp_path / "adapter.gguf", tmp_path / "merged.gguf", {})
    assert not (tmp_path / "merged.gguf").exists()
