"""The trained model itself, in torch: what every gate compares with.

Base and adapter are put together by peft, not by `merge`, so that a mistake there is seen.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

# Nothing of an export goes over the network.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

import numpy as np
import psutil
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from .errors import InvalidAdapter, InvalidBase

# What transformers says of its own future is nothing that a user could act on.
warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
# The export has a progress display of its own.
transformers_logging.disable_progress_bar()
transformers_logging.set_verbosity_error()

Array: TypeAlias = "np.ndarray[Any, np.dtype[np.float32]]"


class Reference:
    """Base and adapter as they were trained.

    Attributes:
        model: in float32 if that fits into memory twice over, else bfloat16.
        tokenizer: of the base.
    """

    def __init__(self, base: Path, adapter: Path | None) -> None:
        """Load both.

        Raises:
            InvalidBase: transformers cannot load the base.
            InvalidAdapter: peft cannot load the adapter.
        """
        n_bytes = sum(file.stat().st_size for file in base.glob("*.safetensors"))
        exact = n_bytes * 4 < psutil.virtual_memory().available
        self.dtype = torch.float32 if exact else torch.bfloat16
        try:
            self.tokenizer: Any = AutoTokenizer.from_pretrained(base, local_files_only=True)
            self.model: Any = AutoModelForCausalLM.from_pretrained(
                base, dtype=self.dtype, local_files_only=True, low_cpu_mem_usage=True
            )
        except (OSError, ValueError, RuntimeError) as error:
            raise InvalidBase(f"transformers cannot load {base}: {_first_line(error)}.") from None
        if adapter:
            try:
                self.model = PeftModel.from_pretrained(self.model, adapter)
            except (OSError, ValueError, RuntimeError, KeyError) as error:
                raise InvalidAdapter(f"peft cannot load {adapter}: {_first_line(error)}.") from None
        self.model.eval()

    @torch.inference_mode()  # type: ignore[untyped-decorator]
    def logits(self, tokens: Sequence[int]) -> Array:
        """What the model expects after each token: shape (len(tokens), n_vocab), float32."""
        out: Array = self.model(torch.tensor([list(tokens)])).logits[0].float().numpy()
        return out

    def tokenize(self, text: str) -> list[int]:
        """Token ids of plain text, without special tokens around it."""
        ids: list[int] = self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)[
            "input_ids"
        ]
        return ids

    @property
    def ends(self) -> set[int]:
        """Tokens that end an answer."""
        given = getattr(self.model.generation_config, "eos_token_id", None)
        ends = set(given if isinstance(given, list) else [given]) | {self.tokenizer.eos_token_id}
        return {int(token) for token in ends if token is not None}


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0].rstrip(".") if str(error).strip() else type(error).__name__
