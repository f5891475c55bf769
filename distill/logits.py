"""What a teacher expects at every token of the answers: its top k, kept on disk.

So teacher and student never have to be in memory together, and the teacher reads each row once. Two files
of plain numbers: `ids.bin` (uint16; uint32 for vocabularies above 65,536) and `logp.bin` (float16), both of
shape (n_answer_tokens, k): 128 bytes a token for k = 32 and a small vocabulary. Where an example's tokens
begin is in `index.jsonl`, by the hash of the example.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .data import IGNORE, Example, batch, chunks
from .errors import DistillError, InvalidModel
from .progress import Report, silent


def key(example: Example) -> str:
    """Of what was read, so that the same row in another chat form is another one."""
    tokens = np.array([example.n_prompt, *example.tokens], dtype=np.uint32)
    return hashlib.sha256(tokens.tobytes()).hexdigest()[:24]


def at_answers(model: Any, head: Any, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """What a model expects before every answer token, computed for those only.

    A vocabulary is a fifth of a small model's work, and prompts and padding need none of it.

    Args:
        head: the model's output matrix, `get_output_embeddings()` of what `model` may wrap.
        inputs: see `data.batch`.

    Returns:
        logits (n, n_vocab), the tokens that are there (n,), and where they are in `labels[:, 1:]`.
    """
    given = dict(inputs)
    labels = given.pop("labels")
    targets = labels[:, 1:]
    wanted = targets != IGNORE
    before = torch.nn.functional.pad(wanted, (0, 1))
    hook = head.register_forward_pre_hook(lambda _, hidden: (hidden[0][before],))
    try:
        logits = model(**given, logits_to_keep=labels.shape[1]).logits
    finally:
        hook.remove()
    return logits, targets[wanted], wanted


@torch.inference_mode()  # type: ignore[untyped-decorator]
def top(model: Any, inputs: dict[str, Tensor], k: int, temperature: float) -> tuple[Tensor, Tensor]:
    """The k most probable tokens before each answer token, and their log-probabilities: (n, k) each."""
    logits, _, _ = at_answers(model, model.get_output_embeddings(), inputs)
    scaled = logits.float() / temperature
    values, ids = scaled.topk(k, -1)
    return ids, values - scaled.logsumexp(-1, keepdim=True)


def check_same_tokenizer(teacher: Any, student: Any) -> None:
    """Raises InvalidModel if token numbers do not mean the same to both."""
    theirs, ours = teacher.get_vocab(), student.get_vocab()
    if theirs != ours:
        apart = next((token for token in ours if ours[token] != theirs.get(token)), None)
        raise InvalidModel(
            f"Teacher {teacher.name_or_path} and student {student.name_or_path} have different tokenizers "
            f"({len(theirs):,} and {len(ours):,} tokens; {apart!r} differs), so that their logits cannot be "
            "compared. Let the teacher write answers instead (traces)."
        )


class Cache:
    """A folder of them, written in batches; what is complete survives a kill."""

    def __init__(self, folder: Path, n_vocab: int, k: int, temperature: float) -> None:
        self.folder, self.k = folder, k
        self.dtype = np.uint16 if n_vocab <= 1 << 16 else np.uint32
        self._form = {"k": k, "temperature": temperature, "ids": np.dtype(self.dtype).name}
        folder.mkdir(parents=True, exist_ok=True)
        self.index: dict[str, tuple[int, int]] = {}
        form = folder / "form.json"
        if form.exists() and json.loads(form.read_text("utf-8")) != self._form:
            raise DistillError(
                f"{folder} holds logits with other settings than {self._form}; remove it, or take another "
                "`out`."
            )
        form.write_text(json.dumps(self._form), "utf-8")
        self._index = folder / "index.jsonl"
        if self._index.exists():
            text = self._index.read_text("utf-8")
            lines = text[: text.rfind("\n") + 1]
            if lines != text:  # the end was being written at a kill
                self._index.write_text(lines, "utf-8")
            for line in lines.splitlines():
                name, start, n = json.loads(line)
                self.index[name] = (start, n)
        self.n_tokens = sum(n for _, n in self.index.values())

    @property
    def bytes_per_token(self) -> int:
        return self.k * (np.dtype(self.dtype).itemsize + 2)

    def fill(
        self,
        model: Any,
        examples: Sequence[Example],
        pad: int,
        size: int,
        on_progress: Report = silent,
    ) -> None:
        """Ask the teacher about every example that is not there yet, `size` of like length at once."""
        unique = {key(example): example for example in examples}
        missing = sorted((e for k, e in unique.items() if k not in self.index), key=lambda e: len(e.tokens))
        device = next(model.parameters()).device
        done, total = 0, sum(len(e.tokens) for e in missing)
        with (
            (self.folder / "ids.bin").open("ab") as ids_file,
            (self.folder / "logp.bin").open("ab") as logp_file,
            self._index.open("a", encoding="utf-8") as index,
        ):
            # What a kill left beyond the last line of the index.
            ids_file.truncate(self.n_tokens * self.k * np.dtype(self.dtype).itemsize)
            logp_file.truncate(self.n_tokens * self.k * 2)
            for some in chunks(missing, size):
                inputs = {part: tensor.to(device) for part, tensor in batch(some, pad).items()}
                ids, logp = top(model, inputs, self.k, self._form["temperature"])
                ids_file.write(ids.cpu().numpy().astype(self.dtype).tobytes())
                logp_file.write(logp.cpu().numpy().astype(np.float16).tobytes())
                lines = []
                for example in some:
                    n = len(example.tokens) - example.n_prompt
                    name = key(example)
                    self.index[name] = (self.n_tokens, n)
                    lines.append(json.dumps([name, self.n_tokens, n]))
                    self.n_tokens += n
                # In this order: a line in the index means that its numbers are there.
                ids_file.flush()
                logp_file.flush()
                index.write("\n".join(lines) + "\n")
                index.flush()
                done += sum(len(example.tokens) for example in some)
                on_progress(done, total)

    def has(self, examples: Sequence[Example]) -> bool:
        return all(key(example) in self.index for example in examples)

    def read(self, example: Example) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """ids and log-probabilities of an example's answer: (n_answer_tokens, k) each.

        Raises:
            DistillError: the teacher was never asked about it.
        """
        found = self.index.get(key(example))
        if found is None:
            raise DistillError(f"{self.folder} has no logits for {example.id}; run the stage logits first.")
        start, n = found
        ids, logp = self._numbers
        return ids[start : start + n], logp[start : start + n]

    @cached_property
    def _numbers(self) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        shape = (self.n_tokens, self.k)
        ids = np.memmap(self.folder / "ids.bin", self.dtype, "r", shape=shape)
        return ids, np.memmap(self.folder / "logp.bin", np.float16, "r", shape=shape)
