"""A GGUF header either makes sense or is refused in one sentence, whatever bytes the file has."""

from __future__ import annotations

import os
import re
import struct
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from edge_runtime.errors import InvalidModel, InvalidSetting
from edge_runtime.models.gguf import FILE_TYPES, GGUF, TENSOR_TYPES, ArrayInfo, read
from tests.tiny_gguf import DEFAULT_CHAT_TEMPLATE, write

U8, I32, U32, F32, BOOL, STRING, ARRAY, U64 = 0, 5, 4, 6, 7, 8, 9, 10


def number(value: int, type_id: int = U32) -> bytes:
    return struct.pack("<I" + {U8: "B", U32: "I", U64: "Q", I32: "i"}[type_id], type_id, value)


def text(value: str | bytes) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw)) + raw


def string(value: str | bytes) -> bytes:
    return struct.pack("<I", STRING) + text(value)


def array(type_id: int, n: int, items: bytes) -> bytes:
    return struct.pack("<IIQ", ARRAY, type_id, n) + items


def strings(*values: str | bytes) -> bytes:
    return array(STRING, len(values), b"".join(map(text, values)))


def numbers(*values: int) -> bytes:
    return array(I32, len(values), struct.pack(f"<{len(values)}i", *values))


@dataclass
class Plan:
    """A small file, written with `struct` alone so that each part of it can be made wrong."""

    magic: bytes = b"GGUF"
    version: int = 3
    n_tensors: int | None = None
    n_keys: int | None = None
    keys: dict[str | bytes, bytes] = field(
        default_factory=lambda: {
            "general.architecture": string("llama"),
            "llama.block_count": number(2),
            "llama.context_length": number(2048),
            "llama.embedding_length": number(64),
            "llama.attention.head_count": number(4),
            "tokenizer.ggml.model": string("gpt2"),
            "tokenizer.ggml.tokens": strings("a", "b", "c"),
        }
    )
    more_keys: bytes = b""
    tensors: list[tuple[str | bytes, tuple[int, ...], int, int]] = field(
        default_factory=lambda: [("x", (32, 2), 0, 0), ("y", (32,), 2, 256)]
    )
    data: bytes = bytes(256 + 18)

    def __bytes__(self) -> bytes:
        n_tensors = len(self.tensors) if self.n_tensors is None else self.n_tensors
        n_keys = len(self.keys) if self.n_keys is None else self.n_keys
        out = self.magic + struct.pack("<IQQ", self.version, n_tensors, n_keys)
        out += b"".join(text(key) + value for key, value in self.keys.items()) + self.more_keys
        for name, shape, type_id, offset in self.tensors:
            out += text(name) + struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
            out += struct.pack("<IQ", type_id, offset)
        return out + bytes(-len(out) % 32) + self.data


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("gguf") / "tiny.gguf")


def parse(path: Path, data: bytes) -> GGUF:
    path.write_bytes(data)
    return read(path)


def refused(path: Path, data: bytes | None = None) -> str:
    """The sentence with which the file is refused."""
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(InvalidModel) as caught:
        read(path)
    message = str(caught.value)
    assert message.startswith(f"{path} ") and message.endswith(".") and "; " in message
    assert len(message) < len(str(path)) + 400 and message.isprintable()
    return message


# What a good file says.


@pytest.mark.parametrize(
    ("value", "pooling", "embeddings"),
    [(None, None, False), (0, None, False), (1, "mean", True), (2, "cls", True), (3, "last", True),
     (4, "rank", False)],
)  # fmt: skip
def test_pooling_tells_what_a_model_is_for(
    tmp_path: Path, value: int | None, pooling: str | None, embeddings: bool
) -> None:
    plan = Plan()
    if value is not None:
        plan.keys["llama.pooling_type"] = number(value)
    model = parse(tmp_path / "m.gguf", bytes(plan))
    assert (model.pooling, model.embeddings, model.whole) == (pooling, embeddings, False)
    assert model.context(4096) == (2048 if embeddings else 4096) and model.context(100) == 100
    assert model.n_embd_out == 64
    plan.keys["llama.embedding_length_out"] = number(16)
    plan.keys["llama.attention.causal"] = struct.pack("<I?", BOOL, False)
    model = parse(tmp_path / "m.gguf", bytes(plan))
    assert model.n_embd_out == 16 and model.whole


def test_an_encoder_keeps_nothing(tiny_bert: Path) -> None:
    model = read(tiny_bert)
    assert (model.architecture, model.pooling, model.embeddings, model.whole) == ("bert", "cls", True, True)
    assert model.kv_bytes_per_token("f16") == model.kv_bytes_per_token("q8_0") == 0


def test_reads_the_tiny_model(tiny: Path) -> None:
    model = read(tiny)
    assert model.path == tiny
    assert model.file_bytes == tiny.stat().st_size < 600_000
    assert (model.version, model.alignment) == (3, 32)
    assert (model.architecture, model.name, model.quantization) == ("llama", "tiny", "F32")
    assert (model.n_layers, model.n_ctx_train, model.n_embd) == (2, 2048, 64)
    assert (model.n_head, model.n_head_kv, model.head_dim_k, model.head_dim_v) == (4, 2, 16, 16)
    assert model.chat_template == DEFAULT_CHAT_TEMPLATE
    assert model.metadata["tokenizer.ggml.tokens"] == ArrayInfo("string", model.n_vocab)
    shapes = {tensor.name: tensor.shape for tensor in model.tensors}
    assert shapes["token_embd.weight"] == (64, model.n_vocab)
    assert model.weight_bytes == 4 * model.n_params
    assert model.data_offset + model.weight_bytes == model.file_bytes


def test_reads_the_same_as_the_reference_reader(tiny: Path) -> None:
    gguf = pytest.importorskip("gguf")
    model, reference = read(tiny), gguf.GGUFReader(tiny)
    ours = [
        (t.name, t.shape, t.type_name, t.n_elements, t.n_bytes, t.offset + model.data_offset)
        for t in model.tensors
    ]
    theirs = [
        (t.name, tuple(t.shape), t.tensor_type.name, t.n_elements, t.n_bytes, t.data_offset)
        for t in reference.tensors
    ]
    assert ours == theirs
    for key, value in model.metadata.items():
        other = reference.get_field(key)
        assert len(other.data) == value.n if isinstance(value, ArrayInfo) else other.contents() == value


def test_the_tiny_model_depends_on_its_arguments_alone(tiny: Path, tmp_path: Path) -> None:
    assert write(tmp_path / "same.gguf").read_bytes() == tiny.read_bytes()
    assert write(tmp_path / "other.gguf", seed=1).read_bytes() != tiny.read_bytes()
    model = read(write(tmp_path / "bare.gguf", n_ctx=512, chat_template=None, n_layers=3, n_head=2))
    assert (model.n_ctx_train, model.chat_template, model.n_layers) == (512, None, 3)
    assert model.head_dim_k == 32
    with pytest.raises(TypeError, match="n_heads"):
        write(tmp_path / "typo.gguf", n_heads=2)


def test_tensor_types_agree_with_the_reference() -> None:
    gguf = pytest.importorskip("gguf")
    for kind, sizes in gguf.GGML_QUANT_SIZES.items():
        if kind.name != "Q8_1":  # see TENSOR_TYPES
            assert TENSOR_TYPES[kind.value] == (kind.name, *sizes)
    names = {name for name, _, _ in TENSOR_TYPES.values()}
    assert all(type_name in names for _, type_name in FILE_TYPES.values())


def test_keeps_short_values_and_counts_long_ones(tmp_path: Path) -> None:
    plan = Plan(version=2)
    plan.keys |= {
        "a.tags": strings("x", "\u03b1"),
        "a.numbers": numbers(1, -2),
        "a.empty": array(F32, 0, b""),
        "a.long": array(U8, 100_000, bytes(100_000)),
        "a.strings": strings(*["s"] * 1000),
        "a.text": string("t" * (9 << 20)),
        "a.bool": struct.pack("<IB", BOOL, 1),
        "a.float": struct.pack("<If", F32, 0.5),
    }
    model = parse(tmp_path / "m.gguf", bytes(plan))
    assert model.version == 2
    assert model.name == "m"
    assert {key: value for key, value in model.metadata.items() if key[:2] == "a."} == {
        "a.tags": ("x", "\u03b1"),
        "a.numbers": (1, -2),
        "a.empty": (),
        "a.long": ArrayInfo("uint8", 100_000),
        "a.strings": ArrayInfo("string", 1000),
        "a.text": ArrayInfo("text", 9 << 20),
        "a.bool": True,
        "a.float": 0.5,
    }


def test_padding_after_the_last_tensor_may_be_missing_or_there(tmp_path: Path) -> None:
    for n in (0, 14, 1000):
        assert parse(tmp_path / "m.gguf", bytes(Plan()) + bytes(n)).n_params == 96


@pytest.mark.parametrize(
    ("file_type", "label"),
    [
        (2, "Q4_0"),
        (0, "F32 is not true"),
        (15, "no Q4_K in it"),
        (77, "unknown"),
        (None, "missing"),
    ],
)
def test_quantization_is_the_claim_if_true_else_the_type_of_most_bytes(
    tmp_path: Path, file_type: int | None, label: str
) -> None:
    plan = Plan()
    if file_type is not None:
        plan.keys["general.file_type"] = number(file_type)
    model = parse(tmp_path / "m.gguf", bytes(plan))
    assert model.quantization == (label if label == "Q4_0" else "F32")


# KV cache.


def kv_plan(**keys: bytes) -> bytes:
    plan = Plan()
    plan.keys |= {"llama.block_count": number(4), "llama.embedding_length": number(256)}
    plan.keys |= {"llama." + key.replace("__", "."): value for key, value in keys.items()}
    return bytes(plan)


@pytest.mark.parametrize(
    ("keys", "n_values"),
    [
        ({}, 4 * 4 * 128),
        ({"attention__head_count_kv": number(2)}, 4 * 2 * 128),
        ({"attention__head_count_kv": numbers(0, 1, 2, 4)}, 7 * 128),
        ({"attention__key_length": number(96)}, 4 * 4 * (96 + 64)),
        ({"attention__value_length_swa": number(128)}, 4 * 4 * (64 + 128)),
        (
            {"attention__key_length_mla": number(1), "attention__value_length_mla": number(1)},
            4 * 256,
        ),
        ({"full_attention_interval": number(4)}, 4 * 128),
        ({"full_attention_interval": number(3), "nextn_predict_layers": number(1)}, 8 * 128),
        ({"attention__recurrent_layers": numbers(1, 1, 0, 1)}, 4 * 128),
        ({"attention__shared_kv_layers": number(3)}, 4 * 128),
        ({"attention__head_count": number(0)}, 0),
    ],
)
def test_kv_bytes_of_a_token(tmp_path: Path, keys: dict[str, bytes], n_values: int) -> None:
    model = parse(tmp_path / "m.gguf", kv_plan(**keys))
    assert model.kv_bytes_per_token("f16") == 2 * n_values
    assert model.kv_bytes_per_token("q8_0") == n_values // 32 * 34


def test_heads_that_q8_0_cannot_hold_are_refused(tiny: Path) -> None:
    model = read(tiny)
    assert model.kv_bytes_per_token("f16") == 2 * 2 * (16 + 16) * 2
    with pytest.raises(InvalidSetting, match=r"heads of 16 values.*f16"):
        model.kv_bytes_per_token("q8_0")


# Files that are something else.


def test_missing_directory_pipe_and_forbidden(tmp_path: Path) -> None:
    assert "does not exist" in refused(tmp_path / "none.gguf")
    (tmp_path / "link.gguf").symlink_to(tmp_path / "none.gguf")
    assert "does not exist" in refused(tmp_path / "link.gguf")
    assert "is a directory" in refused(tmp_path)
    assert "cannot be read" in refused(tmp_path / ("n" * 5000))
    with pytest.raises(InvalidModel, match="not a possible path"):
        read(tmp_path / "a\0b")
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        assert "not a regular file" in refused(tmp_path / "pipe")
    (tmp_path / "secret.gguf").write_bytes(bytes(Plan()))
    (tmp_path / "secret.gguf").chmod(0)
    if not os.access(tmp_path / "secret.gguf", os.R_OK):  # root may read all the same
        assert "may not be read" in refused(tmp_path / "secret.gguf")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "is empty"),
        (b"GG", "is no GGUF file"),
        (b"GGUF", "ends in its version"),
        (b"GGUF\3\0\0\0", "ends in the count of tensors"),
        (struct.pack("<Q", 90) + b'{"__metadata__":{}}', "safetensors"),
        (b"PK\x03\x04" + bytes(60), "PyTorch checkpoint"),
        (b"\x80\x02}q\x00", "PyTorch checkpoint"),
        (b"\n <!DOCTYPE html><html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "git lfs pull"),
        (b'{"error": "Repository not found"}', "server's error message"),
        (b"tjgg\1\0\0\0", "from before GGUF"),
        (bytes(1000), "file of zeros"),
        (b"FUGG\0\0\0\3", "swapped bytes"),
        (b"GGUF" + struct.pack(">IQQ", 3, 1, 1), "big-endian"),
    ],
)
def test_names_what_is_not_a_gguf(tmp_path: Path, data: bytes, words: str) -> None:
    assert words in refused(tmp_path / "m.gguf", data)


# One fault at a time in a good file.


def keys(**more: bytes) -> Callable[[Plan], None]:
    return lambda plan: plan.keys.update({key.replace("__", "."): value for key, value in more.items()})


def without(key: str) -> Callable[[Plan], None]:
    def change(plan: Plan) -> None:
        del plan.keys[key]

    return change


def raw_key(raw: bytes) -> Callable[[Plan], None]:
    """A last key, written as it stands."""

    def change(plan: Plan) -> None:
        plan.more_keys = raw
        plan.n_keys = len(plan.keys) + 1

    return change


def second(
    name: str | bytes = "y", shape: tuple[int, ...] = (32,), type_id: int = 2, offset: int = 256
) -> Callable[[Plan], None]:
    """Another second tensor."""
    return lambda plan: plan.tensors.__setitem__(1, (name, shape, type_id, offset))


def fields(**values: object) -> Callable[[Plan], None]:
    return lambda plan: plan.__dict__.update(values)


def spm(tokens: list[str]) -> Callable[[Plan], None]:
    return keys(tokenizer__ggml__model=string("llama"), tokenizer__ggml__tokens=strings(*tokens))


BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
HUGE = 1 << 62

FAULTS: list[tuple[Callable[[Plan], None], str]] = [
    (fields(version=1), "version 1, and this runtime reads 2 and 3"),
    (fields(version=4), "version 4"),
    (fields(n_keys=HUGE), "claims to have 4,611,686,018,427,387,904 metadata keys"),
    (fields(n_keys=5000, data=bytes(1 << 20)), "claims to have 5,000 metadata keys"),
    (fields(n_tensors=HUGE), "tensors, more than it can hold"),
    (fields(n_tensors=0, tensors=[]), "has no tensors"),
    (fields(n_tensors=3), "has the name of tensor 3 of 3 of 0 bytes"),
    (raw_key(text("") + number(1)), "metadata key 8 of 8 of 0 bytes"),
    (raw_key(text("k" * 1025) + number(1)), "of 1,025 bytes"),
    (raw_key(struct.pack("<Q", HUGE)), "of 4,611,686,018,427,387,904 bytes"),
    (raw_key(text(b"\xff\xfe") + number(1)), "not UTF-8"),
    (raw_key(text("general.type\0x") + string("m")), "NUL byte"),
    (raw_key(text("general.architecture") + string("clip")), "'general.architecture' twice"),
    (raw_key(text("k") + struct.pack("<I", 13)), "unknown type 13 for the value of 'k'"),
    (raw_key(text("k") + struct.pack("<IQ", STRING, HUGE)), "ends in the value of 'k'"),
    (raw_key(text("k") + string("a\0b")), "NUL byte in the value of 'k'"),
    (raw_key(text("k") + array(ARRAY, 1, numbers(1))), "arrays inside an array"),
    (raw_key(text("k") + array(99, 1, b"")), "unknown type 99 for the items of"),
    (raw_key(text("k") + array(U64, HUGE, b"")), "ends in the value of 'k'"),
    (raw_key(text("k") + array(STRING, HUGE, b"")), "strings in the value of 'k', more than"),
    (raw_key(text("k") + array(STRING, 1, struct.pack("<Q", 999_999))), "ends in the value of"),
    (raw_key(text("k") + array(STRING, 1, struct.pack("<Q", HUGE))), "has a string of 4,611,"),
    (keys(split__count=number(2)), "one of 2 parts of a model; merge .* llama-gguf-split --merge"),
    (keys(split__count=string("2")), "parts of a model"),
    (keys(general__type=string("adapter")), "is an adapter, not a model; merge it"),
    (keys(general__type=string("imatrix")), "importance matrix"),
    (without("general.architecture"), "does not name its architecture"),
    (keys(general__architecture=number(1)), "impossible architecture 1"),
    (keys(general__architecture=string("\x1b[31m")), "impossible architecture '\\\\x1b"),
    (keys(general__architecture=string("bert")), "text encoder .architecture bert. and cannot"),
    (keys(general__architecture=string("bert"), bert__pooling_type=number(0)), "text encoder"),
    (keys(general__architecture=string("bert"), bert__pooling_type=number(4)), "is a reranker"),
    (keys(general__architecture=string("bert"), bert__pooling_type=number(2)), "say its bert.block_count"),
    (keys(general__architecture=string("t5encoder"), t5encoder__pooling_type=number(1)), "text encoder"),
    (keys(general__architecture=string("clip")), "image encoder"),
    (keys(general__architecture=string("unheard-of")), "does not say its unheard-of.block_count"),
    (without("tokenizer.ggml.model"), "has no tokenizer"),
    (without("tokenizer.ggml.tokens"), "has no tokenizer"),
    (keys(tokenizer__ggml__model=string("no_vocab")), "has no tokenizer"),
    (keys(tokenizer__ggml__tokens=numbers(1, 2)), "not a list of strings"),
    (keys(tokenizer__ggml__tokens=strings()), "vocabulary of 0 tokens"),
    (keys(tokenizer__ggml__tokens=array(STRING, 1 << 21, b"")), "vocabulary of 2,097,152 tokens"),
    (keys(tokenizer__ggml__tokens=strings("a", "b", "a")), "has the token 'a' twice"),
    (keys(tokenizer__ggml__tokens=strings("a", "a\0b")), "has the token 'a' twice"),
    (keys(tokenizer__ggml__tokens=strings("[EMPTY_1]", "")), "token '.EMPTY_1.' twice"),
    (keys(tokenizer__ggml__token_type=numbers(1)), "token_type for 1 of its 3 tokens"),
    (keys(tokenizer__ggml__token_type=number(1)), "token_type that is not an array of int32"),
    (keys(tokenizer__ggml__scores=strings("1", "2", "3")), "not an array of float32 or int32"),
    (spm(["a", "b"]), "without a token for each byte"),
    (spm(BYTES[:-1]), "without a token for each byte"),
    (keys(tokenizer__chat_template=number(1)), "chat template that is not a text"),
    (keys(tokenizer__chat_template=string("t" * (9 << 20))), "chat template .* of sane length"),
    (keys(general__alignment=number(33)), "alignment 33, not a power of two"),
    (keys(general__alignment=number(0)), "alignment 0"),
    (keys(general__alignment=number(8)), "alignment 8"),
    (keys(general__alignment=string("32")), "alignment '32'"),
    (keys(general__alignment=number(1 << 31)), "is cut off|not a multiple"),
    (second(name=""), "name of tensor 2 of 2 of 0 bytes"),
    (second(name="n" * 64), "of 64 bytes"),
    (second(name="y\0"), "NUL byte"),
    (second(name="x"), "has the tensor 'x' twice"),
    (second(shape=()), "0 dimensions"),
    (second(shape=(1,) * 5), "5 dimensions"),
    (second(shape=(32, 0)), "impossible shape .32, 0."),
    (second(shape=(1 << 32, 1 << 32)), "impossible shape"),
    (second(shape=(32, 1 << 63)), "impossible shape"),
    (second(type_id=4), "type 4, which this runtime does not know"),
    (second(type_id=1 << 31), "which this runtime does not know"),
    (second(shape=(33,)), "33 values in a row: Q4_0 packs 32"),
    (second(offset=255), "not a multiple of 32"),
    (second(offset=224), "inside the tensor before it"),
    (second(offset=0), "inside the tensor before it"),
    (second(offset=288), "after a gap"),
    (second(offset=1 << 40), "does not fit"),
    (second(offset=(1 << 64) - 32), "does not fit"),
    (second(shape=(1 << 40,)), "does not fit"),
    (fields(data=bytes(256 + 17)), "is cut off: it has .* and should have"),
    (without("llama.block_count"), "does not say its llama.block_count"),
    (keys(llama__block_count=number(0)), "llama.block_count = 0, not a number from 1 to 512"),
    (keys(llama__block_count=number(513)), "llama.block_count = 513"),
    (keys(llama__block_count=string("2")), "llama.block_count = '2'"),
    (keys(llama__block_count=struct.pack("<IB", BOOL, 1)), "llama.block_count = True"),
    (without("llama.context_length"), "does not say its llama.context_length"),
    (keys(llama__context_length=number(0)), "llama.context_length = 0"),
    (keys(llama__embedding_length=number(0)), "llama.embedding_length = 0"),
    (keys(llama__embedding_length_out=string("9")), "llama.embedding_length_out = '9'"),
    (keys(llama__pooling_type=number(5)), "llama.pooling_type = 5, not a number from 0 to 4"),
    (keys(llama__pooling_type=number(-1, I32)), "llama.pooling_type = -1"),
    (keys(llama__pooling_type=string("mean")), "llama.pooling_type = 'mean'"),
    (keys(llama__attention__head_count=numbers(4)), "head_count for 1 of 2 layers"),
    (keys(llama__attention__head_count=number(-1, I32)), "head_count = -1"),
    (keys(llama__attention__head_count_kv=numbers(1, -1)), "values outside 0 to"),
    (keys(llama__attention__head_count_kv=numbers(*[1] * 513)), "for 513 of 2 layers"),
    (keys(llama__attention__head_count_kv=number(3)), "4 query heads for 3 key heads"),
    (keys(llama__attention__key_length=number(1 << 31)), "attention.key_length = 2147483648"),
    (keys(llama__full_attention_interval=number(0)), "full_attention_interval = 0"),
    (keys(llama__nextn_predict_layers=number(3)), "nextn_predict_layers = 3"),
    (keys(llama__rope__scaling__type=string("magic")), "unknown rope scaling 'magic'"),
    (keys(llama__expert_count=number(4)), "uses 0 experts of 4"),
    (keys(llama__expert_used_count=number(2)), "uses 2 experts of 0"),
    (keys(llama__expert_count=number(5000)), "expert_count = 5000"),
]


@pytest.mark.parametrize(("change", "words"), FAULTS, ids=[words for _, words in FAULTS])
def test_each_fault_has_its_sentence(tmp_path: Path, change: Callable[[Plan], None], words: str) -> None:
    plan = Plan()
    change(plan)
    assert re.search(words, refused(tmp_path / "m.gguf", bytes(plan)))


def test_the_plan_itself_is_good(tmp_path: Path) -> None:
    assert parse(tmp_path / "m.gguf", bytes(Plan())).n_vocab == 3
    for change in (
        spm(BYTES),
        keys(general__alignment=number(64)),
        keys(split__count=number(1)),
        keys(general__type=string("model")),
        keys(llama__rope__scaling__type=string("yarn")),
        keys(llama__expert_count=number(4), llama__expert_used_count=number(2)),
    ):
        plan = Plan()
        change(plan)
        parse(tmp_path / "m.gguf", bytes(plan))


# Any bytes at all.

anything = settings(
    deadline=None, max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def survives(path: Path, data: bytes) -> None:
    """Reads or is refused, within a second; what it reads has properties that do not raise."""
    path.write_bytes(data)
    start = time.process_time()
    try:
        model = read(path)
    except InvalidModel as error:
        assert str(error).startswith(str(path))
    else:
        for name in dir(GGUF):
            if isinstance(getattr(GGUF, name), property):
                getattr(model, name)
        model.kv_bytes_per_token("f16")
    assert time.process_time() - start < 1


@pytest.fixture(scope="module")
def header(tiny: Path) -> bytes:
    return tiny.read_bytes()[: read(tiny).data_offset]


@pytest.fixture(scope="module")
def weights(tiny: Path) -> bytes:
    return tiny.read_bytes()[read(tiny).data_offset :]


@anything
@given(cut=st.floats(0, 1, exclude_max=True))
def test_every_truncation_is_refused(tmp_path: Path, header: bytes, cut: float) -> None:
    refused(tmp_path / "m.gguf", header[: int(cut * len(header))])


def test_every_truncation_of_a_small_file_is_refused(tmp_path: Path) -> None:
    data = bytes(Plan())
    for n in range(len(data)):
        refused(tmp_path / "m.gguf", data[:n])


@anything
@given(flips=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=8))
def test_flipped_bytes(tmp_path: Path, header: bytes, weights: bytes, flips: list[tuple[float, int]]) -> None:
    data = bytearray(header)
    for where, byte in flips:
        data[int(where * (len(data) - 1))] = byte
    survives(tmp_path / "m.gguf", bytes(data) + weights)


@anything
@given(
    at=st.floats(0, 1),
    n_cut=st.integers(0, 64),
    piece=st.one_of(
        st.binary(max_size=64),
        st.integers(0, (1 << 64) - 1).map(lambda n: struct.pack("<Q", n)),
        st.sampled_from([number(1 << 31), strings("a"), numbers(*range(9)), text("general.type")]),
    ),
)
@example(at=8 / 9760, n_cut=8, piece=struct.pack("<Q", (1 << 64) - 1))
def test_splices(tmp_path: Path, header: bytes, weights: bytes, at: float, n_cut: int, piece: bytes) -> None:
    start = int(at * len(header))
    survives(tmp_path / "m.gguf", header[:start] + piece + header[start + n_cut :] + weights)


@anything
@given(st.data())
def test_flipped_bytes_of_a_small_file(tmp_path: Path, data: st.DataObject) -> None:
    """Most of this file is structure, so that more faults get past the first checks."""
    raw = bytearray(bytes(Plan()))
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    survives(tmp_path / "m.gguf", bytes(raw))


@anything
@given(st.binary(max_size=400))
def test_noise_after_the_magic(tmp_path: Path, noise: bytes) -> None:
    survives(tmp_path / "m.gguf", b"GGUF\3\0\0\0" + noise)


@pytest.mark.parametrize(
    "bomb",
    [
        pytest.param(text("k") + array(STRING, 3 << 19, bytes(8 * (3 << 19))), id="many strings"),
        pytest.param(text("k") + string(b"t" * (60 << 20)), id="a long text"),
        pytest.param(text("k") + array(U64, 4 << 20, bytes(32 << 20)), id="many numbers"),
        pytest.param(text("k") + array(STRING, 1, text(bytes(60 << 20))), id="a long string"),
    ],
)
def test_a_header_made_to_cost_time_or_memory(tmp_path: Path, bomb: bytes) -> None:
    plan = Plan()
    raw_key(bomb)(plan)
    path = tmp_path / "m.gguf"
    path.write_bytes(bytes(plan))
    tracemalloc.start()
    try:
        read(path)
    except InvalidModel:
        pass
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 8 << 20
    survives(path, bytes(plan))
