"""Writes models of half a megabyte that llama.cpp loads: random weights, words for any text.

What they answer is noise, but the same noise for the same seed.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt

DEFAULT_CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

# The form of DeepSeek-R1: no role for a system, thoughts opened by the prompt and left out of earlier turns.
R1_CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ message['content'] }}"
    "{% elif message['role'] == 'user' %}<｜User｜>{{ message['content'] }}"
    "{% else %}<｜Assistant｜>{{ message['content'].split('</think>')[-1] }}{{ eos_token }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}<｜Assistant｜><think>\n{% endif %}"
)

Array = npt.NDArray[np.float32]


def vocabulary() -> tuple[list[bytes], list[float], list[int]]:
    """Text, score and `gguf.TokenType` of each token.

    SentencePiece writes a space as U+2581. A character without a token is spelled in bytes.
    """
    tokens = [
        (b"<unk>", gguf.TokenType.UNKNOWN),
        (b"<s>", gguf.TokenType.CONTROL),
        (b"</s>", gguf.TokenType.CONTROL),
        *((b"<0x%02X>" % byte, gguf.TokenType.BYTE) for byte in range(256)),
        *((bytes((byte,)), gguf.TokenType.NORMAL) for byte in range(0x21, 0x7F)),
        ("\u2581".encode(), gguf.TokenType.NORMAL),
        (b"<|im_start|>", gguf.TokenType.CONTROL),
        (b"<|im_end|>", gguf.TokenType.CONTROL),
        (b"<think>", gguf.TokenType.USER_DEFINED),
        (b"</think>", gguf.TokenType.USER_DEFINED),
    ]
    texts = [text for text, _ in tokens]
    types = [int(kind) for _, kind in tokens]
    normal = gguf.TokenType.NORMAL
    scores = [-float(i) if kind == normal else 0.0 for i, kind in enumerate(types)]
    return texts, scores, types


def write(
    path: Path,
    *,
    seed: int = 0,
    n_ctx: int = 2048,
    chat_template: str | None = DEFAULT_CHAT_TEMPLATE,
    architecture: str = "llama",
    pooling: gguf.PoolingType | None = None,
    causal: bool = True,
    **overrides: int,
) -> Path:
    """Writes the model and returns its path.

    Args:
        n_ctx: the context length that the file claims it was trained for.
        pooling: makes it an embedding model, or with RANK a reranker.
        causal: tokens look only at what is before them.
        overrides: sizes in place of n_layers=2, n_embd=64, n_head=4, n_head_kv=2, n_ff=128.

    Raises:
        TypeError: an override that is not one of these sizes.
    """
    sizes = {"n_layers": 2, "n_embd": 64, "n_head": 4, "n_head_kv": 2, "n_ff": 128}
    if unknown := overrides.keys() - sizes.keys():
        raise TypeError(f"unknown sizes {sorted(unknown)}; known are {sorted(sizes)}")
    sizes |= overrides
    n_embd, n_ff = sizes["n_embd"], sizes["n_ff"]
    head_dim = n_embd // sizes["n_head"]
    n_embd_kv = head_dim * sizes["n_head_kv"]
    texts, scores, types = vocabulary()

    writer = gguf.GGUFWriter(path, architecture)
    writer.add_name("tiny")
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_context_length(n_ctx)
    writer.add_embedding_length(n_embd)
    writer.add_block_count(sizes["n_layers"])
    writer.add_feed_forward_length(n_ff)
    writer.add_head_count(sizes["n_head"])
    writer.add_head_count_kv(sizes["n_head_kv"])
    writer.add_rope_dimension_count(head_dim)
    writer.add_layer_norm_rms_eps(1e-5)
    if pooling is not None:
        writer.add_pooling_type(pooling)
    if not causal:
        writer.add_causal_attention(False)
    writer.add_vocab_size(len(texts))
    writer.add_tokenizer_model("llama")
    writer.add_token_list(texts)
    writer.add_token_scores(scores)
    writer.add_token_types(types)
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_eot_token_id(texts.index(b"<|im_end|>"))
    writer.add_add_bos_token(True)
    writer.add_add_space_prefix(False)
    if chat_template is not None:
        writer.add_chat_template(chat_template)

    matrix = _matrices(seed)
    ones = np.ones(n_embd, dtype=np.float32)
    writer.add_tensor("token_embd.weight", matrix(len(texts), n_embd, n_embd**0.5))
    for i in range(sizes["n_layers"]):
        writer.add_tensor(f"blk.{i}.attn_norm.weight", ones)
        # Sharp queries, so that attention picks tokens out and the text does not fall into a loop.
        writer.add_tensor(f"blk.{i}.attn_q.weight", matrix(n_embd, n_embd, 2.0))
        writer.add_tensor(f"blk.{i}.attn_k.weight", matrix(n_embd_kv, n_embd, 2.0))
        writer.add_tensor(f"blk.{i}.attn_v.weight", matrix(n_embd_kv, n_embd, 2.0))
        writer.add_tensor(f"blk.{i}.attn_output.weight", matrix(n_embd, n_embd, 2.0))
        writer.add_tensor(f"blk.{i}.ffn_norm.weight", ones)
        writer.add_tensor(f"blk.{i}.ffn_gate.weight", matrix(n_ff, n_embd, 2.0))
        writer.add_tensor(f"blk.{i}.ffn_up.weight", matrix(n_ff, n_embd, 2.0))
        writer.add_tensor(f"blk.{i}.ffn_down.weight", matrix(n_embd, n_ff, 2.0))
    writer.add_tensor("output_norm.weight", ones)
    head = matrix(len(texts), n_embd, 3.0)
    for i, kind in enumerate(types):
        if kind in (gguf.TokenType.CONTROL, gguf.TokenType.UNKNOWN):
            head[i] *= np.float32(0.1)  # logits near 0, so that an answer seldom ends by itself
    writer.add_tensor("output.weight", head)
    return _written(writer, path)


def write_bert(
    path: Path, *, seed: int = 0, n_ctx: int = 128, pooling: gguf.PoolingType | None = gguf.PoolingType.CLS
) -> Path:
    """Writes an encoder of BERT's kind, which reads a text in both directions and has no KV memory.

    Its words are single letters and digits; a text stands between [CLS] and [SEP].
    """
    n_embd, n_ff = 64, 128
    letters = "abcdefghijklmnopqrstuvwxyz0123456789"
    control = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    # U+2581 marks the beginning of a word, and what has none goes on with one.
    texts = [*control, *("\u2581" + letter for letter in letters), *letters]
    kinds = [gguf.TokenType.CONTROL] * len(control) + [gguf.TokenType.NORMAL] * (2 * len(letters))

    writer = gguf.GGUFWriter(path, "bert")
    writer.add_name("tiny-bert")
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_context_length(n_ctx)
    writer.add_embedding_length(n_embd)
    writer.add_block_count(2)
    writer.add_feed_forward_length(n_ff)
    writer.add_head_count(2)
    writer.add_layer_norm_eps(1e-12)
    writer.add_causal_attention(False)
    if pooling is not None:
        writer.add_pooling_type(pooling)
    writer.add_token_type_count(2)
    writer.add_vocab_size(len(texts))
    writer.add_tokenizer_model("bert")
    writer.add_token_list(texts)
    writer.add_token_types(kinds)
    for name, add in (
        ("[PAD]", writer.add_pad_token_id),
        ("[UNK]", writer.add_unk_token_id),
        ("[CLS]", writer.add_bos_token_id),
        ("[SEP]", writer.add_sep_token_id),
        ("[MASK]", writer.add_mask_token_id),
    ):
        add(texts.index(name))

    matrix = _matrices(seed)
    ones, zeros = np.ones(n_embd, dtype=np.float32), np.zeros(n_embd, dtype=np.float32)
    writer.add_tensor("token_embd.weight", matrix(len(texts), n_embd, n_embd**0.5))
    writer.add_tensor("token_types.weight", matrix(2, n_embd))
    writer.add_tensor("position_embd.weight", matrix(n_ctx, n_embd, n_embd**0.5))
    writer.add_tensor("token_embd_norm.weight", ones)
    writer.add_tensor("token_embd_norm.bias", zeros)
    for i in range(2):
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            writer.add_tensor(f"blk.{i}.{name}.weight", matrix(n_embd, n_embd))
            writer.add_tensor(f"blk.{i}.{name}.bias", zeros)
        writer.add_tensor(f"blk.{i}.ffn_up.weight", matrix(n_ff, n_embd, 2.0))
        writer.add_tensor(f"blk.{i}.ffn_up.bias", np.zeros(n_ff, dtype=np.float32))
        writer.add_tensor(f"blk.{i}.ffn_down.weight", matrix(n_embd, n_ff, 2.0))
        writer.add_tensor(f"blk.{i}.ffn_down.bias", zeros)
        for name in ("attn_output_norm", "layer_output_norm"):
            writer.add_tensor(f"blk.{i}.{name}.weight", ones)
            writer.add_tensor(f"blk.{i}.{name}.bias", zeros)
    return _written(writer, path)


def _matrices(seed: int) -> Callable[..., Array]:
    random = np.random.default_rng(seed)

    def matrix(n_out: int, n_in: int, gain: float = 1.0) -> Array:
        """Keeps the variance of its input, times `gain` squared."""
        weights = random.standard_normal((n_out, n_in), dtype=np.float32)
        weights *= np.float32(gain / n_in**0.5)
        return weights

    return matrix


def _written(writer: gguf.GGUFWriter, path: Path) -> Path:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
