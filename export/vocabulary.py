"""A tokenizer in Hugging Face's form -> GGUF's: tokens, merges, pre-tokenizer, special tokens, chat template.

The result is a guess until the parity gate has compared token ids on real text.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf

from .checkpoint import read_json
from .errors import InvalidBase

# How a byte-level BPE cuts text into words before merging, and llama.cpp's name for it. The patterns are
# those in the tokenizer.json of each family.
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN = LLAMA3.replace("{1,3}", "")
PRE_TOKENIZERS: dict[tuple[str, ...], str] = {
    ("digits", "bytes:words"): "smollm",
    (f"split:{LLAMA3}", "bytes"): "llama-bpe",
    (f"split:{QWEN}", "bytes"): "qwen2",
    ("bytes:words",): "gpt-2",
}


@dataclass(frozen=True)
class Vocabulary:
    """What GGUF says of a tokenizer.

    Attributes:
        tokens: by id, `n_vocab` of them; ids that the tokenizer does not use are padded.
        types: `gguf.TokenType` of each.
        merges: as "left right".
        pre: llama.cpp's name of the pre-tokenizer.
        special: ids by "bos", "eos", "unk", "pad"; those that there are.
        chat_template: None if the tokenizer has none.
    """

    tokens: list[str]
    types: list[int]
    merges: list[str]
    pre: str
    special: dict[str, int]
    add_bos: bool
    chat_template: str | None

    def write(self, writer: gguf.GGUFWriter) -> None:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(self.pre)
        writer.add_token_list(self.tokens)
        writer.add_token_types(self.types)
        writer.add_token_merges(self.merges)
        for name, token in self.special.items():
            getattr(writer, f"add_{name}_token_id")(token)
        writer.add_add_bos_token(self.add_bos)
        writer.add_add_space_prefix(False)
        if self.chat_template is not None:
            writer.add_chat_template(self.chat_template)


def read_vocabulary(folder: Path, n_vocab: int, config: dict[str, Any]) -> Vocabulary:
    """Read the tokenizer's files of a model folder.

    Args:
        n_vocab: rows of the embedding.
        config: config.json, for special tokens that the tokenizer does not name.

    Raises:
        InvalidBase: no tokenizer of a supported kind, or one that does not fit the embedding.
    """
    path = folder / "tokenizer.json"
    tokenizer = read_json(path)
    model = tokenizer.get("model") or {}
    if model.get("type") != "BPE" or model.get("byte_fallback"):
        raise InvalidBase(
            f"{path}: the tokenizer is {model.get('type')!r}"
            f"{' with byte fallback' if model.get('byte_fallback') else ''}; "
            "export knows byte-level BPE (SmolLM2, Llama 3, Qwen)."
        )
    pre = _pre_tokenizer(path, tokenizer.get("pre_tokenizer"))
    ids: dict[int, str] = {int(i): text for text, i in model.get("vocab", {}).items()}
    types = dict.fromkeys(ids, int(gguf.TokenType.NORMAL))
    for added in tokenizer.get("added_tokens", []):
        ids[added["id"]] = added["content"]
        kind = gguf.TokenType.CONTROL if added.get("special") else gguf.TokenType.USER_DEFINED
        types[added["id"]] = int(kind)
    if not ids or max(ids) >= n_vocab:
        raise InvalidBase(
            f"{path} has token ids up to {max(ids, default=-1)}, the embedding has {n_vocab} rows; "
            "the tokenizer is of another model."
        )
    settings = read_json(folder / "tokenizer_config.json")
    return Vocabulary(
        tokens=[ids.get(i, f"[PAD{i}]") for i in range(n_vocab)],
        types=[types.get(i, int(gguf.TokenType.UNUSED)) for i in range(n_vocab)],
        merges=[m if isinstance(m, str) else " ".join(m) for m in model.get("merges", [])],
        pre=pre,
        special=_special(folder, settings, config, {text: i for i, text in ids.items()}),
        add_bos=_adds_bos(settings, tokenizer),
        chat_template=_chat_template(folder, settings),
    )


def _pre_tokenizer(path: Path, described: dict[str, Any] | None) -> str:
    steps = (described or {}).get("pretokenizers", [described] if described else [])
    words = tuple(_word(step) for step in steps)
    if words not in PRE_TOKENIZERS:
        raise InvalidBase(
            f"{path}: an unknown pre-tokenizer ({json.dumps(described)[:300]}); export knows those of "
            "SmolLM2, Llama 3 and Qwen 2 and 3. A guess would give other token ids than the model was "
            "trained with."
        )
    return PRE_TOKENIZERS[words]


def _word(step: dict[str, Any]) -> str:
    kind = step.get("type")
    if kind == "Digits" and step.get("individual_digits"):
        return "digits"
    if kind == "ByteLevel" and not step.get("add_prefix_space"):
        return "bytes:words" if step.get("use_regex", True) else "bytes"
    if kind == "Split" and step.get("behavior") == "Isolated" and not step.get("invert"):
        return f"split:{step.get('pattern', {}).get('Regex')}"
    return f"unknown:{kind}"


def _special(
    folder: Path, settings: dict[str, Any], config: dict[str, Any], ids: dict[str, int]
) -> dict[str, int]:
    """Special tokens: the tokenizer's own word first; else the config's, whose `eos` may be a list."""
    special = {}
    for name in ("bos", "eos", "unk", "pad"):
        text = settings.get(f"{name}_token")
        if isinstance(text, dict):
            text = text.get("content")
        if text is not None and text not in ids:
            raise InvalidBase(
                f"{folder / 'tokenizer_config.json'}: {name}_token {text!r} is no token of tokenizer.json."
            )
        given = ids[text] if text is not None else config.get(f"{name}_token_id")
        if isinstance(given, list):
            given = given[0] if given else None
        if given is not None:
            special[name] = int(given)
    return special


def _adds_bos(settings: dict[str, Any], tokenizer: dict[str, Any]) -> bool:
    """Whether plain text gets a first token: the tokenizer's post-processor does it, if anything does."""
    post = tokenizer.get("post_processor") or {}
    for step in post.get("processors", [post]):
        if step.get("type") == "TemplateProcessing" and "SpecialToken" in (step.get("single") or [{}])[0]:
            return True
    return bool(settings.get("add_bos_token", False)) and "TemplateProcessing" in json.dumps(post)


def _chat_template(folder: Path, settings: dict[str, Any]) -> str | None:
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text("utf-8")
    template = settings.get("chat_template")
    if isinstance(template, list):  # several by name
        template = next((t["template"] for t in template if t.get("name") == "default"), None)
    return template
