from __future__ import annotations

import pytest

pytest.importorskip("torch", reason="torch is not installed: pip install -e .[distill]")


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Tiny models gain nothing from more, and lose much where other programs run."""
    import torch

    torch.set_num_threads(1)
