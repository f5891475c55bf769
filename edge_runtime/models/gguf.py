"""Reads and checks a GGUF file before any native code sees it.

llama.cpp ends the process on much of what is refused here, and the file may be hostile: no number
in it is believed before it has been compared with the file's size. Must not import llama_cpp.
"""

from __future__ import annotations

import re
import stat
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal, NoReturn

from ..errors import InvalidModel, InvalidSetting

# ggml tensor types: id -> (name, elements of a block, bytes of a block). The missing ids are types
# that llama.cpp has removed. Q8_1 is 36 bytes in ggml-common.h and 40 in gguf-py; no file holds it.
TENSOR_TYPES: dict[int, tuple[str, int, int]] = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    9: ("Q8_1", 32, 36),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    15: ("Q8_K", 256, 292),
    16: ("IQ2_XXS", 256, 66),
    17: ("IQ2_XS", 256, 74),
    18: ("IQ3_XXS", 256, 98),
    19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18),
    21: ("IQ3_S", 256, 110),
    22: ("IQ2_S", 256, 82),
    23: ("IQ4_XS", 256, 136),
    24: ("I8", 1, 1),
    25: ("I16", 1, 2),
    26: ("I32", 1, 4),
    27: ("I64", 1, 8),
    28: ("F64", 1, 8),
    29: ("IQ1_M", 256, 56),
    30: ("BF16", 1, 2),
    34: ("TQ1_0", 256, 54),
    35: ("TQ2_0", 256, 66),
    39: ("MXFP4", 32, 17),
    40: ("NVFP4", 64, 36),
    41: ("Q1_0", 128, 18),
    42: ("Q2_0", 64, 18),
}

# general.file_type -> (label, the tensor type that a file with this label has).
FILE_TYPES: dict[int, tuple[str, str]] = {
    0: ("F32", "F32"),
    1: ("F16", "F16"),
    2: ("Q4_0", "Q4_0"),
    3: ("Q4_1", "Q4_1"),
    7: ("Q8_0", "Q8_0"),
    8: ("Q5_0", "Q5_0"),
    9: ("Q5_1", "Q5_1"),
    10: ("Q2_K", "Q2_K"),
    11: ("Q3_K_S", "Q3_K"),
    12: ("Q3_K_M", "Q3_K"),
    13: ("Q3_K_L", "Q3_K"),
    14: ("Q4_K_S", "Q4_K"),
    15: ("Q4_K_M", "Q4_K"),
    16: ("Q5_K_S", "Q5_K"),
    17: ("Q5_K_M", "Q5_K"),
    18: ("Q6_K", "Q6_K"),
    19: ("IQ2_XXS", "IQ2_XXS"),
    20: ("IQ2_XS", "IQ2_XS"),
    21: ("Q2_K_S", "Q2_K"),
    22: ("IQ3_XS", "IQ3_S"),
    23: ("IQ3_XXS", "IQ3_XXS"),
    24: ("IQ1_S", "IQ1_S"),
    25: ("IQ4_NL", "IQ4_NL"),
    26: ("IQ3_S", "IQ3_S"),
    27: ("IQ3_M", "IQ3_S"),
    28: ("IQ2_S", "IQ2_XS"),
    29: ("IQ2_M", "IQ2_S"),
    30: ("IQ4_XS", "IQ4_XS"),
    31: ("IQ1_M", "IQ1_M"),
    32: ("BF16", "BF16"),
    36: ("TQ1_0", "TQ1_0"),
    37: ("TQ2_0", "TQ2_0"),
    38: ("MXFP4_MOE", "MXFP4"),
    39: ("NVFP4", "NVFP4"),
    40: ("Q1_0", "Q1_0"),
    41: ("Q2_0", "Q2_0"),
}

# Arrays with a value for each token. They are compared by length and never kept.
_PER_TOKEN = {
    "tokenizer.ggml.scores": ("float32", "int32"),
    "tokenizer.ggml.token_type": ("int32",),
}

# <architecture>.pooling_type: how the vectors of a text's tokens become one.
Pooling = Literal["mean", "cls", "last", "rank"]
_POOLINGS: dict[int, Pooling] = {1: "mean", 2: "cls", 3: "last", 4: "rank"}

KVType = Literal["f16", "q8_0"]
_KV_BLOCKS: dict[KVType, tuple[int, int]] = {"f16": (1, 2), "q8_0": (32, 34)}

# Metadata value types: id -> (name, struct code). 8 is a string and 9 an array.
_NUMBERS = {
    0: ("uint8", "B"),
    1: ("int8", "b"),
    2: ("uint16", "H"),
    3: ("int16", "h"),
    4: ("uint32", "I"),
    5: ("int32", "i"),
    6: ("float32", "f"),
    7: ("bool", "?"),
    10: ("uint64", "Q"),
    11: ("int64", "q"),
    12: ("float64", "d"),
}
_STRING, _ARRAY = 8, 9
_U32, _U64 = struct.Struct("<I"), struct.Struct("<Q")

# Bounds on the time and memory that a hostile header can cost. Real headers have at most some 60
# keys, 3,000 tensors, 800,000 strings (a vocabulary of 262,144 with its merges) and 20 MB.
_MAX_HEADER_BYTES = 128 << 20
_MAX_KEYS = 4096
_MAX_KEY_BYTES = 1024
_MAX_TENSORS = 1 << 16
_MAX_STRINGS = 3 << 19
_MAX_STRING_BYTES = 1 << 20  # of one string in an array
_MAX_VOCAB = 1 << 19
_MAX_KEPT_ARRAY = 512  # values; as many as llama.cpp allows layers
_MAX_KEPT_BYTES = 32 << 20  # of Python objects, roughly, for all kept values together
_WINDOW_BYTES = 1 << 18

# llama.cpp's own limits, on which it aborts rather than reports.
_MAX_NAME_BYTES = 63
_MAX_LAYERS = 512
_MAX_EXPERTS = 1024
_MIN_ALIGNMENT = 32

_DAMAGED = "download or copy it again and compare its checksum"
_CONVERT = "convert the model again with a current llama.cpp"
_DECODER = "choose a model that writes text"

_NOT_A_MODEL = {
    "adapter": ("an adapter", "merge it into its base model before converting it"),
    "mmproj": ("the image part of a model", "choose the text model that it came with"),
    "imatrix": ("an importance matrix", "choose the model that was quantized with it"),
    "vocab": ("a vocabulary", "choose a file with weights"),
}

# Encoders for which llama.cpp keeps no KV memory: all of a text is in one batch.
_WITHOUT_KV = {
    "bert", "modern-bert", "nomic-bert", "nomic-bert-moe", "neo-bert", "jina-bert-v2", "jina-bert-v3",
    "eurobert", "gemma-embedding",
}  # fmt: skip
# They write no text, but with a pooling they give embeddings.
_ENCODERS = _WITHOUT_KV | {"llama-embed"}
_REFUSED_ARCHITECTURES = {
    **dict.fromkeys((*_ENCODERS, "t5encoder"), "a text encoder"),
    **dict.fromkeys(("clip", "mmproj"), "an image encoder"),
    **dict.fromkeys(("whisper", "wavtokenizer-dec", "qwen3tts", "pockettts"), "a speech model"),
    **dict.fromkeys(("dream", "llada", "llada-moe", "rnd1"), "a diffusion language model"),
    **dict.fromkeys(("flux", "sd1", "sdxl", "sd3", "wan", "qwen_image"), "an image generator"),
    **dict.fromkeys(("eagle3", "dflash", "gemma4-assistant"), "a draft head of another model"),
    "t5": "an encoder-decoder model",
}


@dataclass(frozen=True)
class ArrayInfo:
    """A value that is too long to keep: `n` values of `type`. Of a long text, `type` is "text"."""

    type: str
    n: int


Scalar = int | float | bool | str
Value = Scalar | tuple[Scalar, ...] | ArrayInfo


@dataclass(frozen=True)
class Tensor:
    """One tensor of the file.

    Attributes:
        shape: in ggml's order, the fastest dimension first; 1 to 4 numbers.
        type_name: as in `TENSOR_TYPES`.
        offset: of its first byte, counted from `GGUF.data_offset`.
    """

    name: str
    shape: tuple[int, ...]
    type_name: str
    n_elements: int
    n_bytes: int
    offset: int


@dataclass(frozen=True)
class GGUF:
    """What `read` found: a file whose header makes sense. The properties never raise.

    Attributes:
        metadata: short values as they are, long ones as `ArrayInfo`.
        data_offset: where the weights begin in the file, in bytes.
    """

    path: Path
    file_bytes: int
    version: int
    alignment: int
    metadata: dict[str, Value]
    tensors: tuple[Tensor, ...]
    data_offset: int

    @property
    def architecture(self) -> str:
        return str(self.metadata["general.architecture"])

    @property
    def name(self) -> str:
        """general.name, or else the file's name without its ending."""
        name = self.metadata.get("general.name")
        return name if isinstance(name, str) and name else self.path.stem

    @property
    def n_params(self) -> int:
        return sum(tensor.n_elements for tensor in self.tensors)

    @property
    def weight_bytes(self) -> int:
        """Bytes of all tensors, the padding between them not counted."""
        return sum(tensor.n_bytes for tensor in self.tensors)

    @property
    def n_layers(self) -> int:
        return self._count("block_count")

    @property
    def n_ctx_train(self) -> int:
        """The context that the model was trained for, in tokens."""
        return self._count("context_length")

    @property
    def n_embd(self) -> int:
        return self._count("embedding_length")

    @property
    def pooling(self) -> Pooling | None:
        """How the model makes one vector of a text; "rank" makes a score, None nothing."""
        return _POOLINGS.get(self._count("pooling_type"))

    @property
    def embeddings(self) -> bool:
        """Whether the model is there for embeddings: texts to vectors, and no text as an answer."""
        return self.pooling in ("mean", "cls", "last")

    @property
    def n_embd_out(self) -> int:
        """Numbers of an embedding."""
        return self._count("embedding_length_out") or self.n_embd

    @property
    def whole(self) -> bool:
        """Whether a text must be in one batch: its tokens look at what comes after them."""
        return self.architecture in _ENCODERS or self._get("attention.causal") is False

    def context(self, n_ctx: int) -> int:
        """Tokens of a prompt when `n_ctx` are asked for.

        Embedding models stay within their training: BERT has no positions beyond it.
        """
        return min(n_ctx, self.n_ctx_train) if self.embeddings else n_ctx

    @property
    def n_head(self) -> int:
        """Query heads of the layer that has most; 0 for a model without attention."""
        return max(self._per_layer("attention.head_count", (0,) * self.n_layers))

    @property
    def n_head_kv(self) -> int:
        """Key and value heads of the layer that has most."""
        return max(self._head_counts_kv)

    @property
    def head_dim_k(self) -> int:
        return self._count("attention.key_length", self._default_head_dim)

    @property
    def head_dim_v(self) -> int:
        return self._count("attention.value_length", self._default_head_dim)

    @property
    def n_vocab(self) -> int:
        tokens = self.metadata["tokenizer.ggml.tokens"]
        return tokens.n if isinstance(tokens, ArrayInfo) else 0

    @property
    def chat_template(self) -> str | None:
        """The model's Jinja template: untrusted text."""
        template = self.metadata.get("tokenizer.chat_template")
        return template if isinstance(template, str) else None

    @property
    def quantization(self) -> str:
        """A label such as "Q4_K_M": general.file_type, or if it is wrong the type of most bytes."""
        n_bytes: dict[str, int] = {}
        for tensor in self.tensors:
            n_bytes[tensor.type_name] = n_bytes.get(tensor.type_name, 0) + tensor.n_bytes
        file_type = self.metadata.get("general.file_type")
        if isinstance(file_type, int) and file_type in FILE_TYPES:
            label, type_name = FILE_TYPES[file_type]
            # Every quantized model keeps its norms in F32, so the label F32 must hold for all.
            if type_name in n_bytes and (type_name != "F32" or len(n_bytes) == 1):
                return label
        return max(n_bytes, key=lambda type_name: n_bytes[type_name])

    def kv_bytes_per_token(self, kv_type: KVType) -> int:
        """Bytes of KV cache for one token of context, all layers together.

        Layers with a sliding window are counted as if they kept every token, so for such models
        this is more than llama.cpp needs. The fixed state of recurrent layers is not in it.

        Raises:
            InvalidSetting: llama.cpp cannot keep heads of this size in `kv_type`.
        """
        if self.architecture in _WITHOUT_KV:
            return 0
        block, block_bytes = _KV_BLOCKS[kv_type]
        dim_k = max(self.head_dim_k, self._count("attention.key_length_swa"))
        dim_v = max(self.head_dim_v, self._count("attention.value_length_swa"))
        if self._count("attention.key_length_mla") and self._count("attention.value_length_mla"):
            dim_v = 0  # latent attention: the values are a part of the keys
        for dim in (dim_k, dim_v):
            if dim % block:
                raise InvalidSetting(
                    f"{self.path} has heads of {dim} values, and {kv_type} packs {block} at a "
                    "time; keep its KV cache in f16.",
                    param="kv_type",
                )
        return sum(self._cached_head_counts) * (dim_k + dim_v) // block * block_bytes

    @property
    def _default_head_dim(self) -> int:
        heads = self._per_layer("attention.head_count", (0,))
        n_head = next((n for n in heads if n), 0)
        return self.n_embd // n_head if n_head else 0

    @property
    def _head_counts_kv(self) -> tuple[int, ...]:
        heads = self._per_layer("attention.head_count", (0,) * self.n_layers)
        return self._per_layer("attention.head_count_kv", heads)

    @property
    def _cached_head_counts(self) -> tuple[int, ...]:
        """Key and value heads of the layers that have a KV cache of their own."""
        n_layers, heads = self.n_layers, self._head_counts_kv
        recurrent = self._get("attention.recurrent_layers")
        interval = self._count("full_attention_interval")
        if isinstance(recurrent, tuple) and len(recurrent) == n_layers:
            heads = tuple(n for n, skip in zip(heads, recurrent, strict=True) if not skip)
        elif interval:
            n_trunk = n_layers - self._count("nextn_predict_layers")
            heads = tuple(n for i, n in enumerate(heads, 1) if i % interval == 0 or i > n_trunk)
        return heads[: max(0, n_layers - self._count("attention.shared_kv_layers"))]

    def _get(self, key: str) -> Value | None:
        return self.metadata.get(f"{self.architecture}.{key}")

    def _count(self, key: str, default: int = 0) -> int:
        value = self._get(key)
        return value if isinstance(value, int) else default

    def _per_layer(self, key: str, default: tuple[int, ...]) -> tuple[int, ...]:
        value = self._get(key)
        if isinstance(value, tuple):
            return tuple(n for n in value if isinstance(n, int))
        return (value,) * self.n_layers if isinstance(value, int) else default


def read(path: Path) -> GGUF:
    """Reads the header of a model file and checks all that can be checked without its weights.

    Raises:
        InvalidModel: the file cannot be opened, is no GGUF, is damaged, or is not a text model.
    """
    path = Path(path)
    if "\0" in str(path):
        _refuse(path, "is not a possible path", "name a .gguf file")
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            _refuse(path, "is a directory", "name the .gguf file inside it")
        if not stat.S_ISREG(mode):  # opening a pipe would wait for ever
            _refuse(path, "is not a regular file", "name a .gguf file")
        with path.open("rb") as file:
            model = _parse(path, file)
    except FileNotFoundError:
        _refuse(path, "does not exist", "check the path, or download the model")
    except PermissionError:
        _refuse(path, "may not be read by this user", "give the user read permission")
    except OSError as error:
        _refuse(path, f"cannot be read ({error.strerror or error})", "check the disk and the path")
    _check_layers(model)
    _check_experts(model)
    return model


def _refuse(path: Path, what: str, remedy: str) -> NoReturn:
    raise InvalidModel(f"{path} {what}; {remedy}.") from None


def _show(value: Value | bytes) -> str:
    """A value from the file, short and harmless for a terminal."""
    if isinstance(value, (int, float)):
        return str(value)
    if isinstance(value, (tuple, ArrayInfo)):
        return "an array"
    text = value[:240].decode("utf-8", "replace") if isinstance(value, bytes) else value
    return repr(text if len(text) <= 60 else text[:57] + "...")


class _Header:
    """A cursor that only moves forward, sees the file through a window, and never overruns it."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path = path
        self.file_bytes = file.seek(0, 2)
        self.pos = 0
        self.byte_tokens = False  # whether the vocabulary can spell every byte
        self._file = file
        self._window = b""
        self._window_pos = 0
        self._kept_bytes = 0
        self._n_strings = 0

    def refuse(self, what: str, remedy: str = _DAMAGED) -> NoReturn:
        _refuse(self.path, what, remedy)

    def skip(self, n: int, what: str) -> None:
        self._check_room(n, what)
        self.pos += n

    def take(self, n: int, what: str) -> bytes:
        self._fill(n, what)
        start = self.pos - self._window_pos
        self.pos += n
        return self._window[start : start + n]

    def _check_room(self, n: int, what: str) -> None:
        end = self.pos + n
        if end > self.file_bytes:
            self.refuse(f"ends in {what}: that needs {end:,} bytes and it has {self.file_bytes:,}")
        if end > _MAX_HEADER_BYTES:
            self.refuse(f"has a header of over {_MAX_HEADER_BYTES:,} bytes, which no model needs")

    def _fill(self, n: int, what: str) -> None:
        """Makes the next `n` bytes part of the window."""
        self._check_room(n, what)
        if self.pos + n > self._window_pos + len(self._window):
            self._file.seek(self.pos)
            self._window = self._file.read(max(n, _WINDOW_BYTES))
            self._window_pos = self.pos
            if len(self._window) < n:
                self.refuse(f"became shorter while {what} was read", "wait until it is complete")

    def u32(self, what: str) -> int:
        return int(_U32.unpack(self.take(4, what))[0])

    def u64(self, what: str) -> int:
        return int(_U64.unpack(self.take(8, what))[0])

    def name(self, limit: int, what: str) -> str:
        n = self.u64(what)
        if not 0 < n <= limit:
            self.refuse(f"has {what} of {n:,} bytes, not 1 to {limit:,}")
        raw = self.take(n, what)
        # llama.cpp compares names as C strings: behind a NUL, one name could hide another.
        if b"\0" in raw:
            self.refuse(f"has {what} with a NUL byte in it: {_show(raw)}")
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            self.refuse(f"has {what} that is not UTF-8: {_show(raw)}")

    def value(self, key: str) -> Value:
        what = f"the value of {_show(key)}"
        type_id = self.u32(what)
        if type_id == _STRING:
            return self._text(key, what)
        if type_id == _ARRAY:
            return self._array(key, what)
        if type_id not in _NUMBERS:
            self.refuse(f"has the unknown type {type_id} for {what}")
        code = struct.Struct("<" + _NUMBERS[type_id][1])
        number: Scalar = code.unpack(self.take(code.size, what))[0]
        return number

    def _text(self, key: str, what: str) -> Value:
        n = self.u64(what)
        if not self._keep(4 * n):
            self.skip(n, what)
            return ArrayInfo("text", n)
        raw = self.take(n, what)
        if b"\0" in raw:
            self.refuse(f"has a NUL byte in {what}")
        return raw.decode("utf-8", "replace")

    def _array(self, key: str, what: str) -> Value:
        type_id = self.u32(what)
        n = self.u64(what)
        if type_id == _ARRAY:
            self.refuse(f"has arrays inside an array in {what}, which has no meaning", _CONVERT)
        if type_id == _STRING:
            if key == "tokenizer.ggml.tokens":
                return self._vocabulary(n, what)
            texts: list[str] | None = [] if n <= _MAX_KEPT_ARRAY else None
            for text in self.strings(n, what):
                if texts is not None and self._keep(4 * len(text) + 64):
                    texts.append(text.decode("utf-8", "replace"))
                else:
                    texts = None
            return ArrayInfo("string", n) if texts is None else tuple(texts)
        if type_id not in _NUMBERS:
            self.refuse(f"has the unknown type {type_id} for the items of {what}")
        name, code = _NUMBERS[type_id]
        n_bytes = n * struct.calcsize("<" + code)
        if key not in _PER_TOKEN and n <= _MAX_KEPT_ARRAY and self._keep(40 * n):
            return struct.unpack(f"<{n}{code}", self.take(n_bytes, what))
        self.skip(n_bytes, what)
        return ArrayInfo(name, n)

    def _keep(self, n_bytes: int) -> bool:
        """Whether a value of this size may be kept; if so, counts it."""
        if self._kept_bytes + n_bytes > _MAX_KEPT_BYTES:
            return False
        self._kept_bytes += n_bytes
        return True

    def _vocabulary(self, n: int, what: str) -> ArrayInfo:
        if not 0 < n <= _MAX_VOCAB:
            self.refuse(f"has a vocabulary of {n:,} tokens, not 1 to {_MAX_VOCAB:,}")
        seen: set[bytes] = set()
        for i, token in enumerate(self.strings(n, what)):
            # As llama.cpp sees it: cut at the first NUL, named by its number if nothing is left.
            if not token or 0 in token:
                token = token.partition(b"\0")[0] or b"[EMPTY_%d]" % i
            if token in seen:
                self.refuse(f"has the token {_show(token)} twice in its vocabulary", _CONVERT)
            seen.add(token)
        self.byte_tokens = all(
            b"<0x%02X>" % byte in seen or (byte and bytes((byte,)) in seen) for byte in range(256)
        )
        return ArrayInfo("string", n)

    def strings(self, n: int, what: str) -> Iterator[bytes]:
        """The `n` strings of an array. A million of them pass in half a second."""
        self._n_strings += n
        if self._n_strings > _MAX_STRINGS or 8 * n > self.file_bytes - self.pos:
            self.refuse(f"claims {n:,} strings in {what}, more than it can hold")
        # `take` written out, with the window in local names: a large vocabulary in half the time.
        window, at = self._window, self.pos - self._window_pos
        for _ in range(n):
            if at + 8 > len(window):
                self.pos = self._window_pos + at
                self._fill(8, what)
                window, at = self._window, self.pos - self._window_pos
            (size,) = _U64.unpack_from(window, at)
            at += 8
            if at + size > len(window):
                if size > _MAX_STRING_BYTES:
                    self.refuse(f"has a string of {size:,} bytes in {what}")
                self.pos = self._window_pos + at
                self._fill(size, what)
                window, at = self._window, self.pos - self._window_pos
            yield window[at : at + size]
            at += size
        self.pos = self._window_pos + at


def _parse(path: Path, file: BinaryIO) -> GGUF:
    header = _Header(path, file)
    if not header.file_bytes:
        header.refuse("is empty")
    _check_magic(header)
    version = header.u32("its version")
    if version and not version & 0xFFFF:
        header.refuse("is a big-endian GGUF", "convert it with gguf-convert-endian")
    if version not in (2, 3):
        header.refuse(f"has GGUF version {version}, and this runtime reads 2 and 3", _CONVERT)
    n_tensors, n_keys = header.u64("the count of tensors"), header.u64("the count of keys")
    if n_keys > min(_MAX_KEYS, header.file_bytes // 13):  # the least that a key and its value take
        header.refuse(f"claims to have {n_keys:,} metadata keys, more than it can hold")
    if not n_tensors:
        header.refuse("has no tensors", "choose a file with weights")
    if n_tensors > min(_MAX_TENSORS, header.file_bytes // 33):
        header.refuse(f"claims to have {n_tensors:,} tensors, more than it can hold")

    metadata: dict[str, Value] = {}
    for i in range(n_keys):
        key = header.name(_MAX_KEY_BYTES, f"metadata key {i + 1} of {n_keys}")
        if key in metadata:
            header.refuse(f"has the metadata key {_show(key)} twice", _CONVERT)
        metadata[key] = header.value(key)
    _check_kind(header, metadata)
    _check_tokenizer(header, metadata)
    alignment = _alignment(header, metadata)

    tensors: dict[str, Tensor] = {}
    end = 0
    for i in range(n_tensors):
        tensor = _read_tensor(header, f"the name of tensor {i + 1} of {n_tensors}")
        if tensor.name in tensors:
            header.refuse(f"has the tensor {_show(tensor.name)} twice", _CONVERT)
        _check_offset(header, tensor, alignment, end)
        tensors[tensor.name] = tensor
        end = -(-(tensor.offset + tensor.n_bytes) // alignment) * alignment
    data_offset = -(-header.pos // alignment) * alignment
    needed = data_offset + tensor.offset + tensor.n_bytes  # the padding of the last may be missing
    if needed > header.file_bytes:
        header.refuse(f"is cut off: it has {header.file_bytes:,} bytes and should have {needed:,}")
    return GGUF(
        path=path,
        file_bytes=header.file_bytes,
        version=version,
        alignment=alignment,
        metadata=metadata,
        tensors=tuple(tensors.values()),
        data_offset=data_offset,
    )


def _check_magic(header: _Header) -> None:
    start = header.take(min(64, header.file_bytes), "its first bytes")
    if start.startswith(b"GGUF"):
        header.pos = 4
        return
    kind, remedy = "no GGUF file", "choose a file whose name ends in .gguf"
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start[8:9] == b"{" and start[4:8] == b"\0\0\0\0":
        kind, remedy = "a safetensors file", "convert its model to GGUF"
    elif start.startswith((b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")):
        kind, remedy = "a PyTorch checkpoint (zip or pickle)", "convert its model to GGUF"
    elif text.startswith((b"<!doctype", b"<html", b"<head", b"<?xml")):
        kind, remedy = "a web page", "download the file itself, not the page about it"
    elif start.startswith(b"version https://git-lfs"):
        kind, remedy = "a Git LFS pointer", "fetch the file that it points to with git lfs pull"
    elif start.startswith((b"lmgg", b"fmgg", b"tjgg", b"algg")):
        kind, remedy = "a GGML file from before GGUF", _CONVERT
    elif start.startswith(b"FUGG"):
        kind, remedy = "a GGUF file with swapped bytes", _DAMAGED
    elif text.startswith(b"{"):
        kind, remedy = "a JSON file, perhaps a server's error message", "download the model again"
    elif not start.strip(b"\0"):
        kind, remedy = "a file of zeros, as an unfinished download leaves it", _DAMAGED
    header.refuse(f"is {kind}: it starts with {start[:4]!r} instead of b'GGUF'", remedy)


def _check_kind(header: _Header, metadata: dict[str, Value]) -> None:
    n_splits = metadata.get("split.count", 0)
    if not isinstance(n_splits, int) or n_splits > 1:
        header.refuse(
            f"is one of {_show(n_splits)} parts of a model",
            "merge the parts into one file with llama-gguf-split --merge",
        )
    kind = metadata.get("general.type", "model")
    if isinstance(kind, str) and kind in _NOT_A_MODEL:
        header.refuse(f"is {_NOT_A_MODEL[kind][0]}, not a model", _NOT_A_MODEL[kind][1])
    architecture = metadata.get("general.architecture")
    if architecture is None:
        header.refuse("does not name its architecture (general.architecture)", _CONVERT)
    if not isinstance(architecture, str) or not re.fullmatch(r"[\w.-]{1,64}", architecture, re.A):
        header.refuse(f"has the impossible architecture {_show(architecture)}", _CONVERT)
    pooling = metadata.get(f"{architecture}.pooling_type")
    if architecture in _ENCODERS and pooling == 4:
        header.refuse(f"is a reranker (architecture {architecture}) and cannot answer", _DECODER)
    if architecture in _ENCODERS and pooling in (1, 2, 3):
        return
    if architecture in _REFUSED_ARCHITECTURES:
        kind = _REFUSED_ARCHITECTURES[architecture]
        header.refuse(f"is {kind} (architecture {architecture}) and cannot answer", _DECODER)


def _check_tokenizer(header: _Header, metadata: dict[str, Value]) -> None:
    model = metadata.get("tokenizer.ggml.model")
    tokens = metadata.get("tokenizer.ggml.tokens")
    if not isinstance(model, str) or model in ("", "none", "no_vocab") or tokens is None:
        header.refuse("has no tokenizer (tokenizer.ggml.model and .tokens)", _CONVERT)
    if not isinstance(tokens, ArrayInfo) or tokens.type != "string":
        header.refuse("has a vocabulary that is not a list of strings", _CONVERT)
    # A byte without a token ends the process when it is first met in a prompt.
    if model == "llama" and not header.byte_tokens:
        header.refuse("has a vocabulary without a token for each byte, <0x00> to <0xFF>", _CONVERT)
    for key, types in _PER_TOKEN.items():
        value = metadata.get(key)
        if value is None:
            continue
        if not isinstance(value, ArrayInfo) or value.type not in types:
            header.refuse(f"has {key} that is not an array of {' or '.join(types)}", _CONVERT)
        if value.n < tokens.n:
            header.refuse(f"has {key} for {value.n:,} of its {tokens.n:,} tokens", _CONVERT)
    template = metadata.get("tokenizer.chat_template")
    if template is not None and not isinstance(template, str):
        header.refuse("has a chat template that is not a text of sane length", _CONVERT)


def _alignment(header: _Header, metadata: dict[str, Value]) -> int:
    alignment = metadata.get("general.alignment", 32)
    # Below 32 llama.cpp aborts when the mapped weights happen to begin between two such boundaries.
    if not isinstance(alignment, int) or alignment < _MIN_ALIGNMENT or alignment & (alignment - 1):
        shown = _show(alignment)
        header.refuse(f"has alignment {shown}, not a power of two from {_MIN_ALIGNMENT}", _CONVERT)
    return alignment


def _read_tensor(header: _Header, what: str) -> Tensor:
    name = header.name(_MAX_NAME_BYTES, what)
    what = f"tensor {_show(name)}"
    n_dims = header.u32(what)
    if not 1 <= n_dims <= 4:
        header.refuse(f"has {n_dims:,} dimensions in {what}, not 1 to 4")
    shape: tuple[int, ...] = struct.unpack(f"<{n_dims}Q", header.take(8 * n_dims, what))
    n_elements = 1
    for dim in shape:
        n_elements *= dim
    if not 0 < n_elements < 1 << 63:
        header.refuse(f"has the impossible shape {shape} in {what}")
    type_id = header.u32(what)
    if type_id not in TENSOR_TYPES:
        header.refuse(f"has {what} of type {type_id}, which this runtime does not know", _CONVERT)
    type_name, block, block_bytes = TENSOR_TYPES[type_id]
    if shape[0] % block:
        header.refuse(f"has {what} with {shape[0]:,} values in a row: {type_name} packs {block}")
    n_bytes = n_elements // block * block_bytes
    return Tensor(name, shape, type_name, n_elements, n_bytes, header.u64(what))


def _check_offset(header: _Header, tensor: Tensor, alignment: int, expected: int) -> None:
    """llama.cpp wants the tensors in the header's order, each on the boundary after the last."""
    where = f"has tensor {_show(tensor.name)} at offset {tensor.offset:,}"
    if tensor.offset % alignment:
        header.refuse(f"{where}, not a multiple of {alignment}")
    if tensor.offset < expected:
        header.refuse(f"{where}, inside the tensor before it, which ends at {expected:,}")
    if tensor.offset + tensor.n_bytes > header.file_bytes:
        header.refuse(
            f"is cut off: tensor {_show(tensor.name)} of {tensor.n_bytes:,} bytes at offset "
            f"{tensor.offset:,} does not fit in its {header.file_bytes:,} bytes"
        )
    if tensor.offset > expected:
        header.refuse(f"{where} after a gap: the tensor before it ends at {expected:,}")


def _number(model: GGUF, key: str, low: int, high: int, default: int | None = None) -> int:
    """The metadata number `<architecture>.<key>`, refused if it is missing or out of range."""
    value = model._get(key)
    if value is None and default is not None:
        return default
    full = f"{model.architecture}.{key}"
    if value is None:
        _refuse(model.path, f"does not say its {full}", _CONVERT)
    if type(value) is not int or not low <= value <= high:
        shown = _show(value)
        _refuse(model.path, f"has {full} = {shown}, not a number from {low} to {high:,}", _CONVERT)
    return value


def _check_per_layer(model: GGUF, key: str, high: int) -> None:
    """One number for all layers, or an array with one for each."""
    value = model._get(key)
    if isinstance(value, (tuple, ArrayInfo)):
        n = value.n if isinstance(value, ArrayInfo) else len(value)
        good = isinstance(value, tuple) and all(type(x) is int and 0 <= x <= high for x in value)
        if n != model.n_layers or not good:
            what = f"has {model.architecture}.{key} for {n:,} of {model.n_layers} layers"
            _refuse(model.path, f"{what}, or values outside 0 to {high:,}", _CONVERT)
    else:
        _number(model, key, 0, high, default=0)


def _check_layers(model: GGUF) -> None:
    n_layers = _number(model, "block_count", 1, _MAX_LAYERS)
    _number(model, "context_length", 1, (1 << 31) - 1)
    _number(model, "embedding_length", 1, 1 << 20)
    _number(model, "embedding_length_out", 0, 1 << 20, default=0)
    _number(model, "pooling_type", 0, max(_POOLINGS), default=0)
    _number(model, "nextn_predict_layers", 0, n_layers, default=0)
    _number(model, "attention.shared_kv_layers", 0, n_layers, default=0)
    _number(model, "full_attention_interval", 1, _MAX_LAYERS, default=1)  # a divisor
    for key in ("key_length", "value_length"):
        for variant in ("", "_swa", "_mla"):
            _number(model, f"attention.{key}{variant}", 0, 1 << 16, default=0)
    _check_per_layer(model, "attention.head_count", 1 << 16)
    _check_per_layer(model, "attention.head_count_kv", 1 << 16)
    heads = model._per_layer("attention.head_count", (0,) * n_layers)
    for n, n_kv in zip(heads, model._head_counts_kv, strict=True):
        if n_kv and n % n_kv:
            _refuse(model.path, f"has {n} query heads for {n_kv} key heads in a layer", _CONVERT)
    scaling = model._get("rope.scaling.type")
    if scaling not in (None, "none", "linear", "yarn", "longrope"):
        _refuse(model.path, f"has the unknown rope scaling {_show(scaling)}", _CONVERT)


def _check_experts(model: GGUF) -> None:
    n_experts = _number(model, "expert_count", 0, _MAX_EXPERTS, default=0)
    _check_per_layer(model, "expert_used_count", _MAX_EXPERTS)
    n_used = max(model._per_layer("expert_used_count", (0,)))
    if model.architecture.startswith("hunyuan") and n_experts <= 1:
        return  # a dense model; llama.cpp drops both numbers
    if n_used > n_experts or (n_experts and not n_used):
        _refuse(model.path, f"uses {n_used} experts of {n_experts} for a token", _CONVERT)
