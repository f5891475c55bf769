"""The only file of the export that imports llama_cpp: token ids, logits, quantizing."""

from __future__ import annotations

import ctypes
import logging
import os
import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeAlias

import gguf
import llama_cpp as C
import numpy as np
from llama_cpp._ctypes_extensions import load_shared_library

from .errors import ExportError, InvalidBase
from .progress import Report, silent

Array: TypeAlias = "np.ndarray[Any, np.dtype[np.float32]]"

log = logging.getLogger("medge.export")

N_CTX = 512
# Bytes of one tensor that quantizing holds at a time.
MAX_BUFFER = 256 << 20
# Continuations of one text at a time.
N_SEQ = 8

_said: list[str] = []
_listener: Callable[[str], None] | None = None


@C.llama_log_callback  # type: ignore[untyped-decorator]
def _on_log(level: int, text: bytes, _: Any) -> None:
    line = text.decode("utf-8", "replace")
    if level in (3, 4):
        _said.append(line.strip())
    if _listener:
        _listener(line)
    log.debug("%s", line.rstrip())


C.llama_backend_init()

_ggml = load_shared_library("ggml-base", Path(C.__file__).parent / "lib")
_ggml.ggml_quantize_chunk.restype = ctypes.c_size_t
_ggml.ggml_quantize_chunk.argtypes = [
    ctypes.c_int, ctypes.POINTER(ctypes.c_float), ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64,
    ctypes.c_int64, ctypes.POINTER(ctypes.c_float),
]  # fmt: skip


def _listen() -> None:
    """Hear what llama.cpp says from now on: there is one listener a process."""
    C.llama_log_set(_on_log, ctypes.c_void_p(0))
    _said.clear()


class Model:
    """A GGUF for looking at: token ids, and logits of short texts. Use as a context manager.

    Args:
        exact: keep keys and values in float32 and use no flash attention, so that what differs from
            another program is the model.
        lora: a GGUF adapter to put on top.
        mapped: False reads the file: 4-bit types are repacked, and a mapped file would be there beside them.
    """

    def __init__(
        self,
        path: Path,
        exact: bool = False,
        n_threads: int | None = None,
        lora: Path | None = None,
        mapped: bool = True,
    ) -> None:
        self.path = path
        with ExitStack() as stack:
            params = C.llama_model_default_params()
            if not mapped:
                params.load_mode = C.LLAMA_LOAD_MODE_NONE
            _listen()
            self._model = C.llama_model_load_from_file(os.fsencode(path), params)
            if not self._model:
                raise InvalidBase(f"llama.cpp cannot load {path}: {_reason()}.")
            stack.callback(C.llama_model_free, self._model)
            self._context = self._open(exact, n_threads or os.cpu_count() or 1)
            stack.callback(C.llama_free, self._context)
            if lora:
                self._apply(lora)
            self._vocab = C.llama_model_get_vocab(self._model)
            self.n_vocab: int = C.llama_vocab_n_tokens(self._vocab)
            self.add_bos: bool = C.llama_vocab_get_add_bos(self._vocab)
            self.eos: int = C.llama_vocab_eos(self._vocab)
            self.ends = {t for t in range(self.n_vocab) if C.llama_vocab_is_eog(self._vocab, t)}
            template = C.llama_model_chat_template(self._model, None)
            self.chat_template: str | None = template.decode() if template else None
            self._closing = stack.pop_all()

    def _open(self, exact: bool, n_threads: int) -> Any:
        params = C.llama_context_default_params()
        params.n_ctx = params.n_batch = params.n_ubatch = N_CTX
        params.n_seq_max, params.kv_unified = N_SEQ, True
        params.n_threads = params.n_threads_batch = n_threads
        if exact:
            params.type_k = params.type_v = C.GGML_TYPE_F32
            params.flash_attn_type = C.LLAMA_FLASH_ATTN_TYPE_DISABLED
        context = C.llama_init_from_model(self._model, params)
        if not context:
            raise InvalidBase(f"llama.cpp cannot run {self.path}: {_reason()}.")
        return context

    def _apply(self, lora: Path) -> None:
        adapter = C.llama_adapter_lora_init(self._model, os.fsencode(lora))  # freed with the model
        if not adapter:
            raise InvalidBase(f"llama.cpp cannot load {lora}: {_reason()}.")
        adapters, scales = (C.llama_adapter_lora_p_ctypes * 1)(adapter), (ctypes.c_float * 1)(1.0)
        C.llama_set_adapters_lora(self._context, adapters, 1, scales)

    def __enter__(self) -> Model:
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.close()

    def tokenize(self, text: str, *, special: bool = False, add_bos: bool = False) -> list[int]:
        """Token ids. With `special`, names of control tokens become those tokens."""
        data = text.encode("utf-8")
        size = len(data) + 2
        buffer = (C.llama_token * size)()
        n = C.llama_tokenize(self._vocab, data, len(data), buffer, size, add_bos, special)
        return list(buffer[: max(0, n)])

    def logits(self, tokens: Sequence[int]) -> Array:
        """What the model expects after each token: shape (len(tokens), n_vocab), at most N_CTX of them."""
        return self._decode([(token, i, (0,), True) for i, token in enumerate(tokens)])

    def step(self, token: int, position: int) -> Array:
        """What the model expects after one more token of the text that it has read: shape (n_vocab,)."""
        row: Array = self._decode([(token, position, (0,), True)], keep=True)[0]
        return row

    def log_likelihoods(self, text: Sequence[int], continuations: Sequence[Sequence[int]]) -> list[float]:
        """How likely each continuation of `text` is: nats a token. `text` is read once for all.

        Args:
            continuations: at most N_SEQ, none empty; with `text` at most N_CTX tokens.
        """
        everyone = tuple(range(len(continuations)))
        entries = [(token, i, everyone, i == len(text) - 1) for i, token in enumerate(text)]
        for number, tokens in enumerate(continuations):
            entries += [(token, len(text) + i, (number,), True) for i, token in enumerate(tokens[:-1])]
        rows = self._decode(entries).astype(np.float64)
        first, found = 1, []
        for tokens in continuations:
            expected = np.concatenate([rows[:1], rows[first : first + len(tokens) - 1]])
            first += len(tokens) - 1
            peak = expected.max(-1, keepdims=True)
            sums = peak[:, 0] + np.log(np.exp(expected - peak).sum(-1))
            found.append(float((expected[np.arange(len(tokens)), list(tokens)] - sums).mean()))
        return found

    def _decode(self, entries: Sequence[tuple[int, int, tuple[int, ...], bool]], keep: bool = False) -> Array:
        """Logits after those of `entries` (token, position, sequences, whether wanted) that are wanted.

        Args:
            keep: go on with the text read before, and do not begin anew.
        """
        n = len(entries)
        if not 0 < n <= N_CTX:
            raise ValueError(f"{n} tokens; 1 to {N_CTX} are possible")
        if not keep:
            C.llama_memory_clear(C.llama_get_memory(self._context), True)
        batch = C.llama_batch_init(n, 0, N_SEQ)
        try:
            for i, (token, position, sequences, wanted) in enumerate(entries):
                batch.token[i], batch.pos[i], batch.logits[i] = token, position, wanted
                batch.n_seq_id[i] = len(sequences)
                for at, sequence in enumerate(sequences):
                    batch.seq_id[i][at] = sequence
            batch.n_tokens = n
            status = C.llama_decode(self._context, batch)
        finally:
            C.llama_batch_free(batch)
        if status != 0:
            raise ExportError(f"llama.cpp cannot decode with {self.path}: status {status}, {_reason()}.")
        n_wanted = sum(wanted for *_, wanted in entries)
        pointer = C.llama_get_logits(self._context)
        rows: Array = np.ctypeslib.as_array(pointer, shape=(n_wanted, self.n_vocab)).copy()
        return rows


def quantize(
    source: Path,
    target: Path,
    types: Mapping[str, str] | str,
    importance: Mapping[str, Array] | None = None,
    on_progress: Report = silent,
    n_threads: int | None = None,
) -> None:
    """Write `source` with its matrices in other types. `target` appears under its name when it is complete.

    Args:
        types: the type of every matrix by its name, such as "Q4_0"; or the name of one of llama.cpp's own
            mixtures, such as "Q4_K_M".
        importance: mean squares of each input, by the matrix's name: shape (n_in,).
        on_progress: called with the tensors done, and their number.

    Raises:
        ExportError: llama.cpp refuses.
    """
    params = C.llama_model_quantize_default_params()
    params.nthread = n_threads or os.cpu_count() or 1
    params.ftype = getattr(C, f"LLAMA_FTYPE_MOSTLY_{types if isinstance(types, str) else 'Q4_0'}")
    params.allow_requantize = True
    params.max_buf_size = MAX_BUFFER
    keep: list[Any] = []  # what C points to
    if not isinstance(types, str):
        overrides = (C.llama_model_tensor_override * (len(types) + 1))()
        for slot, (name, kind) in zip(overrides, types.items()):
            slot.pattern, slot.type = f"^{re.escape(name)}$".encode(), getattr(C, f"GGML_TYPE_{kind}")
        params.tt_overrides = overrides
        keep.append(overrides)
    if importance:
        entries = (C.llama_model_imatrix_data * (len(importance) + 1))()
        for slot, (name, values) in zip(entries, importance.items()):
            data = np.ascontiguousarray(values, dtype=np.float32)
            keep.append(data)
            slot.name, slot.size = name.encode(), data.size
            slot.data = data.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        params.imatrix = entries
    _listen()
    partial = target.with_suffix(".partial")
    try:
        with _listening(on_progress):
            status = C.llama_model_quantize(os.fsencode(source), os.fsencode(partial), ctypes.byref(params))
        if status != 0:
            raise ExportError(f"{source} cannot be quantized: {_reason()}.")
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


def rounded(values: Array, kind: str, importance: Array | None = None) -> Array:
    """What a weight type makes of a matrix: quantized as `quantize` does, and expanded again.

    Args:
        values: shape (rows, row length).
        importance: mean squares of the inputs: shape (row length,).
    """
    values = np.ascontiguousarray(values, dtype=np.float32)
    n_rows, n_row = values.shape
    weights = None
    if importance is not None:
        weights = np.ascontiguousarray(importance, dtype=np.float32)
    code = getattr(C, f"GGML_TYPE_{kind}")
    packed = np.empty(gguf.quant_shape_to_byte_shape(values.shape, gguf.GGMLQuantizationType[kind]), np.uint8)

    def part(start: int) -> None:
        _ggml.ggml_quantize_chunk(
            code, _pointer(values), packed.ctypes.data, start * n_row, min(step, n_rows - start), n_row,
            None if weights is None else _pointer(weights),
        )  # fmt: skip

    step = -(-n_rows // (os.cpu_count() or 1))
    with ThreadPoolExecutor() as pool:
        list(pool.map(part, range(0, n_rows, step)))
    expanded: Array = gguf.quants.dequantize(packed, gguf.GGMLQuantizationType[kind])
    return expanded


def _pointer(values: Array) -> Any:
    return values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))


class _listening:
    """Hears which tensor llama.cpp works on; it says so in its log only."""

    def __init__(self, on_progress: Report) -> None:
        self._on_progress = on_progress

    def __enter__(self) -> None:
        global _listener
        _listener = self._hear

    def __exit__(self, *_: object) -> None:
        global _listener
        _listener = None

    def _hear(self, line: str) -> None:
        if found := re.match(r"\[ *(\d+)/ *(\d+)\]", line):
            self._on_progress(int(found[1]), int(found[2]))


def _reason() -> str:
    return next((line for line in reversed(_said) if line), "no reason given").rstrip(".")
