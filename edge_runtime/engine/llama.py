"""The only file of the runtime that imports llama_cpp: load, tokenize, decode, sample, sequence memory.

It knows no requests and no slots. Its callers keep the promises that llama.cpp answers with abort() when
they are broken: sequence ids in range, positions that follow each other, no more tokens than the batch holds.
"""

from __future__ import annotations

import ctypes
import logging
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

# OpenMP reads this when it is loaded: how often a thread looks whether the others have come before it
# sleeps. Its own choice, as good as for ever, makes a step up to 55 times slower when another program takes a
# core. This is about 2 ms, longer than the web process needs for its part of a step; after 1,000 rounds, say,
# threads sleep and wake all the time, which costs 20 % on a virtual machine. For programs that take a core
# for longer there is `device/governor.py`.
os.environ.setdefault("GOMP_SPINCOUNT", "100000")

import llama_cpp as C
import numpy as np

from ..device.plan import Buffers
from ..errors import DecodeFailed, InvalidModel, InvalidRequest
from .request import Sampling, TokenLogprob

log = logging.getLogger("medge.llama")

# One row of logits, of shape (n_vocab,).
Logits: TypeAlias = "np.ndarray[Any, np.dtype[np.float32]]"
# What the vectors of tokens were pooled to, of shape (n_embd,).
Vector: TypeAlias = "np.ndarray[Any, np.dtype[np.float64]]"

KV_TYPES = {"f16": C.GGML_TYPE_F16, "q8_0": C.GGML_TYPE_Q8_0}

Pooling: TypeAlias = Literal["mean", "cls", "last"]
# What makes one vector of a text. LLAMA_POOLING_TYPE_RANK makes a score.
POOLINGS: dict[int, Pooling] = {
    C.LLAMA_POOLING_TYPE_MEAN: "mean",
    C.LLAMA_POOLING_TYPE_CLS: "cls",
    C.LLAMA_POOLING_TYPE_LAST: "last",
}

# Rows of logits that one decode may ask for beyond one a sequence. Prompt log-probabilities are read in
# pieces of this size; each row costs 4 bytes a word of the vocabulary, twice.
N_EXTRA_OUTPUTS = 32


@dataclass(frozen=True)
class ModelConfig:
    """How to load a model.

    Attributes:
        path: a GGUF file that `models/gguf.py` has checked.
        n_sequences: how many token sequences are held at once.
        n_ctx: tokens that each of them can hold.
        n_batch: tokens in one decode at most.
        kv: "f16" or "q8_0".
        flash_attention: False turns it off; True takes it wherever the model and the device can.
        n_gpu_layers: layers to put on a GPU, -1 for all; without a GPU in the build it has no effect.
        embeddings: pooled vectors instead of logits. All sequences then share one memory of `n_ctx`.
    """

    path: Path
    n_sequences: int
    n_ctx: int
    n_batch: int
    n_threads: int
    kv: str = "f16"
    flash_attention: bool = True
    n_gpu_layers: int = -1
    embeddings: bool = False


@dataclass(frozen=True)
class Chunk:
    """Consecutive tokens of one sequence for the next decode.

    Attributes:
        sequence: which sequence.
        start: position of the first token.
        tokens: what to decode.
        outputs: for how many of the last tokens logits are wanted.
    """

    sequence: int
    start: int
    tokens: Sequence[int]
    outputs: int


class Model:
    """A loaded model with one context. Not thread-safe, except `tokenize` and `piece`.

    Use as a context manager, or call `close`; closing twice is fine.
    """

    def __init__(self, config: ModelConfig, on_progress: Callable[[float], None] | None = None) -> None:
        """Load the weights and reserve all memory.

        Raises:
            InvalidModel: llama.cpp refuses the file; its own words are in the message.
        """
        self.config = config
        with ExitStack() as stack:
            lines = _capture_log()
            self._model = _load(config, on_progress, lines)
            stack.callback(C.llama_model_free, self._model)
            self._context = _new_context(self._model, config, lines)
            stack.callback(C.llama_free, self._context)
            self.pooling = POOLINGS.get(C.llama_pooling_type(self._context))
            if config.embeddings and self.pooling is None:
                raise InvalidModel(f"{config.path} has no pooling for embeddings; take an embedding model.")
            self._vocab = C.llama_model_get_vocab(self._model)
            self._memory = C.llama_get_memory(self._context)
            self._batch = _Batch(config.n_batch)
            self.n_vocab: int = C.llama_vocab_n_tokens(self._vocab)
            self.n_ctx_train: int = C.llama_model_n_ctx_train(self._model)
            self.n_params: int = C.llama_model_n_params(self._model)
            self.n_layers: int = C.llama_model_n_layer(self._model)
            self.n_embd: int = C.llama_model_n_embd_out(self._model)
            # Tokens look at what comes after them: all of a text has to be in one batch.
            self.looks_ahead = not self._memory or not C.llama_get_causal_attn(self._context)
            self.add_bos: bool = C.llama_vocab_get_add_bos(self._vocab)
            self.bos: int = C.llama_vocab_bos(self._vocab)
            self.eos: int = C.llama_vocab_eos(self._vocab)
            self.flash_attention = _flash_attention_in(lines, config)
            self.n_layers_gpu = _gpu_layers_in(lines)
            # A recurrent state cannot be cut back to an earlier token, so nothing of it can be shared.
            self.can_share = not (
                C.llama_model_is_recurrent(self._model) or C.llama_model_is_hybrid(self._model)
            )
            self._pieces: dict[tuple[int, bool], bytes] = {}
            self.ends = frozenset(t for t in range(self.n_vocab) if C.llama_vocab_is_eog(self._vocab, t))
            self._end_ids = np.array(sorted(self.ends), dtype=np.int64)
            self._candidates = np.zeros(
                self.n_vocab, dtype=[("id", np.int32), ("logit", np.float32), ("p", np.float32)]
            )
            self._ids = np.arange(self.n_vocab, dtype=np.int32)
            self._closing = stack.pop_all()

    def __enter__(self) -> Model:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._closing.close()

    # -- text and tokens

    def tokenize(self, text: str, *, special: bool, add_bos: bool) -> list[int]:
        """Token ids of `text`.

        Args:
            special: names of control tokens in it become those tokens.
            add_bos: add what the model wants around a text: a first token, a last one, both or none.
        """
        data = text.encode("utf-8")
        size = len(data) + 2
        buffer = (C.llama_token * size)()
        n = C.llama_tokenize(self._vocab, data, len(data), buffer, size, add_bos, special)
        if n < 0:  # a tokenizer that makes more tokens than bytes
            buffer = (C.llama_token * -n)()
            n = C.llama_tokenize(self._vocab, data, len(data), buffer, -n, add_bos, special)
        return list(buffer[:n])

    def piece(self, token: int, *, special: bool = False) -> bytes:
        """The bytes of a token; control tokens are empty unless `special`."""
        key = (token, special)
        if key not in self._pieces:
            size = 64
            buffer = ctypes.create_string_buffer(size)
            n = C.llama_token_to_piece(self._vocab, token, buffer, size, 0, special)
            if n < 0:
                buffer = ctypes.create_string_buffer(-n)
                n = C.llama_token_to_piece(self._vocab, token, buffer, -n, 0, special)
            self._pieces[key] = buffer.raw[:n]
        return self._pieces[key]

    def special_names(self) -> list[str]:
        """Texts that are read as one token wherever they stand: control tokens, and marks such as <think>."""
        names = []
        for token in range(self.n_vocab):
            kind = C.llama_vocab_get_attr(self._vocab, token)
            if kind & (
                C.LLAMA_TOKEN_ATTR_CONTROL | C.LLAMA_TOKEN_ATTR_UNKNOWN | C.LLAMA_TOKEN_ATTR_USER_DEFINED
            ):
                name = C.llama_vocab_get_text(self._vocab, token).decode("utf-8", "replace")
                # Words and runs of spaces that a vocabulary was given by hand are no marks.
                if not kind & C.LLAMA_TOKEN_ATTR_USER_DEFINED or _MARK.fullmatch(name):
                    names.append(name)
        return names

    def check_tokens(self, tokens: Sequence[int]) -> None:
        """Refuse ids that are not in the vocabulary: llama.cpp would read beyond its tables.

        Raises:
            InvalidRequest: with the first such id.
        """
        for token in tokens:
            if not 0 <= token < self.n_vocab:
                raise InvalidRequest(f"Token id {token} is not in this model's vocabulary of {self.n_vocab}.")

    def is_end(self, token: int) -> bool:
        return token in self.ends

    def is_control(self, token: int) -> bool:
        return bool(C.llama_vocab_is_control(self._vocab, token))

    # -- decode

    def decode(self, chunks: Sequence[Chunk]) -> list[int]:
        """Run the model over `chunks` and return the batch index of each chunk's last token.

        Raises:
            DecodeFailed: llama.cpp reports an error. What the sequences hold is then unknown; clear them.
        """
        ends = self._batch.fill(chunks)
        status = C.llama_decode(self._context, self._batch.struct)
        if status != 0:
            reason = {1: "no free KV cells", 2: "aborted"}.get(status, "llama.cpp failed")
            raise DecodeFailed(f"Decoding failed with status {status} ({reason}); ask again.")
        return ends

    def logits(self, index: int) -> Logits:
        """The logits at a batch index of the last decode: a writable view of shape (n_vocab,)."""
        pointer = C.llama_get_logits_ith(self._context, index)
        if not pointer:
            raise DecodeFailed(f"No logits at batch index {index}; ask again.")
        address = ctypes.addressof(pointer.contents)
        row: Logits = np.ctypeslib.as_array((ctypes.c_float * self.n_vocab).from_address(address))
        return row

    def pooled(self, sequence: int) -> Vector:
        """The pooled vector of a sequence's tokens in the last decode: shape (n_embd,), of any length.

        Raises:
            DecodeFailed: there is none.
        """
        pointer = C.llama_get_embeddings_seq(self._context, sequence)
        if not pointer:
            raise DecodeFailed(f"The model gave no embedding of sequence {sequence}; ask again.")
        vector: Vector = np.ctypeslib.as_array(pointer, (self.n_embd,)).astype(np.float64)
        return vector

    def logprob(self, logits: Logits, token: int, n_top: int) -> TokenLogprob:
        """Log-probability of `token`, with the `n_top` best alternatives, from one row of logits."""
        peak = float(logits.max())
        log_sum = peak + float(np.log(np.exp(logits - peak, dtype=np.float64).sum()))
        top: list[tuple[int, bytes, float]] = []
        if n_top:
            best = np.argpartition(logits, -n_top)[-n_top:]
            for i in best[np.argsort(logits[best])[::-1]]:
                top.append((int(i), self.piece(int(i), special=True), float(logits[i]) - log_sum))
        piece = self.piece(token, special=True)
        return TokenLogprob(token, piece, float(logits[token]) - log_sum, tuple(top))

    def forbid_end(self, logits: Logits) -> None:
        """Make every end token impossible in this row."""
        logits[self._end_ids] = -np.inf

    def candidates(self, logits: Logits) -> Any:
        """A row in the form that llama.cpp's samplers take. It lives until the next call."""
        rows = self._candidates
        rows["id"] = self._ids
        rows["logit"] = logits
        rows["p"] = 0
        data = rows.ctypes.data_as(C.llama_token_data_p)
        return C.llama_token_data_array(data=data, size=len(rows), selected=-1, sorted=False)

    def set_threads(self, n: int) -> None:
        C.llama_set_n_threads(self._context, n, n)

    # -- sequence memory

    def save(self, sequence: int) -> bytes:
        """The state of a sequence, for `load`."""
        size = C.llama_state_seq_get_size(self._context, sequence)
        state = np.empty(size, dtype=np.uint8)
        pointer = state.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
        return state[: C.llama_state_seq_get_data(self._context, pointer, size, sequence)].tobytes()

    def load(self, sequence: int, state: bytes) -> bool:
        """Make an empty sequence hold a saved state. False if llama.cpp refuses it."""
        data = np.frombuffer(state, dtype=np.uint8)
        pointer = data.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
        return bool(C.llama_state_seq_set_data(self._context, pointer, len(state), sequence))

    def truncate(self, sequence: int, n: int) -> bool:
        """Keep the first `n` tokens. False if this kind of memory cannot be cut there."""
        return bool(C.llama_memory_seq_rm(self._memory, sequence, n, -1))

    def clear(self, sequence: int) -> None:
        if self._memory:  # encoders have none
            C.llama_memory_seq_rm(self._memory, sequence, -1, -1)

    # -- sampling

    def sampler(self, sampling: Sampling, prompt: Sequence[int]) -> Sampler:
        """A sampler for one request, which closes it."""
        return Sampler(self, sampling, prompt)


class Sampler:
    """Chooses tokens for one request, and remembers what it chose."""

    def __init__(self, model: Model, sampling: Sampling, prompt: Sequence[int]) -> None:
        self._model = model
        self._bias = sampling.logit_bias
        self._closing = ExitStack()
        self._chain = None
        links = list(_links(sampling, model.n_vocab, prompt))
        if links:
            self._chain = C.llama_sampler_chain_init(C.llama_sampler_chain_default_params())
            self._closing.callback(C.llama_sampler_free, self._chain)
            for link in links:
                C.llama_sampler_chain_add(self._chain, link)  # the chain frees its links

    def close(self) -> None:
        self._closing.close()

    def sample(self, logits: Logits) -> int:
        """The next token for a row of logits, which may be changed.

        Raises:
            DecodeFailed: no token is possible.
        """
        for token, bias in self._bias:
            logits[token] += bias
        if self._chain is None:
            token = int(logits.argmax())
            return self._possible(token, float(logits[token]))
        rows = self._model.candidates(logits)
        C.llama_sampler_apply(self._chain, ctypes.byref(rows))
        if not 0 <= rows.selected < rows.size:
            raise DecodeFailed("The sampler chose no token; relax the sampling settings.")
        chosen = rows.data[rows.selected]
        token = self._possible(int(chosen.id), float(chosen.logit))
        C.llama_sampler_accept(self._chain, token)
        return token

    @staticmethod
    def _possible(token: int, logit: float) -> int:
        if not math.isfinite(logit):
            raise DecodeFailed(
                "No token of the vocabulary is possible here; relax the grammar or the logit_bias."
            )
        return token


def _links(sampling: Sampling, n_vocab: int, prompt: Sequence[int]) -> Iterator[Any]:
    window = sampling.penalty_window
    if sampling.repeat_penalty != 1.0:
        link = C.llama_sampler_init_penalties(n_vocab, window, sampling.repeat_penalty, 0.0, 0.0)
        for token in prompt[-window:]:
            C.llama_sampler_accept(link, token)
        yield link
    if sampling.frequency_penalty or sampling.presence_penalty:
        # These two count what was generated, as OpenAI's API says; the prompt is not held against it.
        yield C.llama_sampler_init_penalties(
            n_vocab, window, 1.0, sampling.frequency_penalty, sampling.presence_penalty
        )
    if sampling.temperature > 0:
        if sampling.top_k > 0:
            yield C.llama_sampler_init_top_k(sampling.top_k)
        if sampling.top_p < 1.0:
            yield C.llama_sampler_init_top_p(sampling.top_p, 1)
        if sampling.min_p > 0.0:
            yield C.llama_sampler_init_min_p(sampling.min_p, 1)
        yield C.llama_sampler_init_temp(sampling.temperature)
        yield C.llama_sampler_init_dist(
            C.LLAMA_DEFAULT_SEED if sampling.seed is None else sampling.seed & 0xFFFFFFFF
        )
    elif sampling.repeat_penalty != 1.0 or sampling.frequency_penalty or sampling.presence_penalty:
        yield C.llama_sampler_init_greedy()


class _Batch:
    """The arrays behind a llama_batch, kept for the life of the context and filled by numpy."""

    def __init__(self, n: int) -> None:
        self._token = np.zeros(n, dtype=np.int32)
        self._position = np.zeros(n, dtype=np.int32)
        self._n_sequences = np.ones(n, dtype=np.int32)
        self._sequence = np.zeros(n, dtype=np.int32)
        self._output = np.zeros(n, dtype=np.int8)
        first = self._sequence.ctypes.data
        self._pointers = np.arange(first, first + 4 * n, 4, dtype=np.uintp)
        self.struct = C.llama_batch(
            n_tokens=0,
            token=self._token.ctypes.data_as(ctypes.POINTER(C.llama_token)),
            embd=None,
            pos=self._position.ctypes.data_as(ctypes.POINTER(C.llama_pos)),
            n_seq_id=self._n_sequences.ctypes.data_as(ctypes.POINTER(ctypes.c_int32)),
            seq_id=self._pointers.ctypes.data_as(ctypes.POINTER(ctypes.POINTER(C.llama_seq_id))),
            logits=self._output.ctypes.data_as(ctypes.POINTER(ctypes.c_int8)),
        )

    def fill(self, chunks: Sequence[Chunk]) -> list[int]:
        ends = []
        i = 0
        self._output[:] = 0
        for chunk in chunks:
            j = i + len(chunk.tokens)
            self._token[i:j] = chunk.tokens
            self._position[i:j] = np.arange(chunk.start, chunk.start + j - i)
            self._sequence[i:j] = chunk.sequence
            self._output[j - chunk.outputs : j] = 1
            ends.append(j - 1)
            i = j
        self.struct.n_tokens = i
        return ends


# <|im_start|>, <think>, [INST]
_MARK = re.compile(r"<.+>|\[.+\]", re.DOTALL)

_LOG_LEVELS = {2: logging.INFO, 3: logging.WARNING, 4: logging.ERROR}
_lines: list[str] = []


@C.llama_log_callback  # type: ignore[untyped-decorator]
def _on_log(level: int, text: bytes, _: Any) -> None:
    if level in _LOG_LEVELS or level == 5:  # 5 continues the line before; 0 and 1 are debugging
        line = text.decode("utf-8", errors="replace")
        if len(_lines) < 2000:
            _lines.append(line)
        log.log(_LOG_LEVELS.get(level, logging.INFO), line.rstrip())


C.llama_backend_init()


def _capture_log() -> list[str]:
    # Each time: there is one listener a process, and other code in it may have set its own.
    C.llama_log_set(_on_log, ctypes.c_void_p(0))
    _lines.clear()
    return _lines


def _load(
    config: ModelConfig,
    on_progress: Callable[[float], None] | None,
    lines: list[str],
    *,
    weights: bool = True,
) -> Any:
    params = C.llama_model_default_params()
    params.n_gpu_layers = config.n_gpu_layers
    # Read instead of map: a mapped file stays resident beside the copy that is repacked for the CPU.
    params.load_mode = C.LLAMA_LOAD_MODE_NONE
    params.no_alloc = not weights

    @C.llama_progress_callback  # type: ignore[untyped-decorator]
    def progress(share: float, _: Any) -> bool:
        if on_progress:
            on_progress(share)
        return True

    params.progress_callback = progress
    model = C.llama_model_load_from_file(os.fsencode(config.path), params)
    if not model:
        raise InvalidModel(
            f"llama.cpp cannot load {config.path}: {_reason(lines)}. Check the file, or take another model."
        )
    return model


def _new_context(model: Any, config: ModelConfig, lines: list[str]) -> Any:
    params = C.llama_context_default_params()
    n_batch = config.n_batch
    if config.embeddings:
        # llama.cpp aborts when it plans a mean over a batch that is no multiple of the sequences.
        n_batch += -n_batch % config.n_sequences
        params.n_ctx = max(config.n_ctx, n_batch)
    else:
        params.n_ctx = config.n_sequences * config.n_ctx
    params.n_batch = params.n_ubatch = n_batch
    params.n_seq_max = config.n_sequences
    # A memory of its own for each sequence. In a common one, attention looks at the cells of all
    # sequences and masks the others: 8 answering slots were 30 % slower, prompts beside them 40 %.
    # Embeddings need it though: with separate memories, llama.cpp cuts sequences of different lengths into
    # several passes and keeps only the last one's vectors, so that a mean would be that of a text's end.
    params.kv_unified = params.embeddings = config.embeddings
    # llama.cpp reserves logits for every token of the batch unless it is told how many are asked for.
    # Where it pools, it insists on all of them.
    params.n_outputs_max = n_batch if config.embeddings else config.n_sequences + N_EXTRA_OUTPUTS
    params.n_threads = params.n_threads_batch = config.n_threads
    params.type_k = params.type_v = KV_TYPES[config.kv]
    params.flash_attn_type = (
        C.LLAMA_FLASH_ATTN_TYPE_AUTO if config.flash_attention else C.LLAMA_FLASH_ATTN_TYPE_DISABLED
    )
    params.no_perf = True
    context = C.llama_init_from_model(model, params)
    if not context:
        raise InvalidModel(
            f"llama.cpp cannot run {config.path} with {config.n_sequences} slots of {config.n_ctx} tokens "
            f"and {config.kv} KV memory: {_reason(lines)}. Try a smaller context, or KV type f16."
        )
    return context


def _reason(lines: list[str]) -> str:
    """The last thing llama.cpp said that sounds like a reason."""
    said = [line.strip() for line in "".join(lines).splitlines() if line.strip()]
    telling = [s for s in said if "error" in s or "fail" in s or "require" in s]
    return (telling or said or ["no reason given"])[0].split(": ", 1)[-1].rstrip(".")


def _flash_attention_in(lines: list[str], config: ModelConfig) -> bool:
    """Whether it is really on. llama.cpp decides while it builds the graph, and only its log tells."""
    if not config.flash_attention:
        return False
    text = "".join(lines)
    if "Flash Attention enabled" in text:
        return True
    if "Flash Attention not supported" in text or "forcing off" in text:
        return False
    return config.kv != "f16"  # a quantized V cache exists only with flash attention


def _gpu_layers_in(lines: list[str]) -> int:
    for line in "".join(lines).splitlines():
        if "offloaded " in line and " layers to GPU" in line:
            return int(line.split("offloaded ")[1].split("/")[0])
    return 0


def simulate(configs: Sequence[ModelConfig]) -> Iterator[Buffers]:
    """What contexts of one model would take, without its weights: llama.cpp itself plans its buffers.

    Args:
        configs: of one file, which needs no more than a header and its full length, and of one placement.

    Raises:
        InvalidModel: llama.cpp refuses the file or a context.
    """
    lines = _capture_log()
    model = _load(configs[0], None, lines, weights=False)
    try:
        n_layers_gpu = _gpu_layers_in(lines)
        for config in configs:
            lines.clear()
            C.llama_free(_new_context(model, config, lines))
            text = "".join(lines)
            compute = {name: _bytes(size) for name, size in re.findall(_COMPUTE_BUFFER, text)}
            kv = sum(map(_bytes, re.findall(_KV_CACHE, text)))
            output = sum(map(_bytes, re.findall(_OUTPUT_BUFFER, text)))
            yield Buffers(kv, compute, output, _flash_attention_in(lines, config), n_layers_gpu)
    finally:
        C.llama_model_free(model)


# What llama.cpp says of its buffers; of others than these it says 0 when it has no weights.
_COMPUTE_BUFFER = r"(\S+) +compute buffer size = +([\d.]+) MiB"
_OUTPUT_BUFFER = r"output buffer size = +([\d.]+) MiB"
_KV_CACHE = r"llama_(?:kv_cache|memory_recurrent): size = +([\d.]+) MiB"


def _bytes(mebibytes: str) -> int:
    return round(float(mebibytes) * (1 << 20))


def requantize(
    source: Path,
    target: Path,
    weight_type: str,
    types: Mapping[str, str] | None = None,
    importance: Mapping[str, Logits] | None = None,
) -> None:
    """Write `source` with its matrices in other types.

    Args:
        weight_type: of the matrices that `types` does not name, such as "Q4_0".
        types: by the matrix's name.
        importance: how much each input of a matrix matters, by the matrix's name: shape (n_in,).

    Raises:
        InvalidModel: llama.cpp refuses.
    """
    params = C.llama_model_quantize_default_params()
    params.ftype = getattr(C, f"LLAMA_FTYPE_MOSTLY_{weight_type}")
    params.allow_requantize = True
    overrides = (C.llama_model_tensor_override * (len(types or {}) + 1))()  # the last one ends the list
    for override, (matrix, kind) in zip(overrides, (types or {}).items()):
        override.pattern = f"^{re.escape(matrix)}$".encode()
        override.type = getattr(C, f"GGML_TYPE_{kind}")
    params.tt_overrides = overrides
    rows = [
        (name.encode(), np.ascontiguousarray(row, np.float32)) for name, row in (importance or {}).items()
    ]
    entries = (C.llama_model_imatrix_data * (len(rows) + 1))()
    for entry, (name, row) in zip(entries, rows):
        entry.name, entry.size = name, row.size
        entry.data = row.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
    if rows:
        params.imatrix = entries
    lines = _capture_log()
    status = C.llama_model_quantize(os.fsencode(source), os.fsencode(target), ctypes.byref(params))
    if status != 0:
        raise InvalidModel(f"{source} cannot be written as {weight_type}: {_reason(lines)}.")
