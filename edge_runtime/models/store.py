"""Names of models to files: a path, the embedded model, or a name on the hub."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..errors import InvalidModel
from . import embedded, gguf

HUB_NAME = re.compile(r"^[\w.-]+/[\w.-]+(:[\w./-]+)?$")


@dataclass(frozen=True)
class ModelFile:
    """A checked GGUF.

    Attributes:
        name: what the API calls it.
        demo: True for the embedded model, which is no clinical model.
    """

    path: Path
    name: str
    header: gguf.GGUF
    demo: bool


def find(model: str | None, on_wait: Callable[[str], None] = lambda what: None) -> ModelFile:
    """The file for what the user named.

    Args:
        model: a path, `owner/repository[:file or quantization]` on the hub, or None for the embedded one.
        on_wait: called with a sentence before anything that takes long.

    Raises:
        InvalidModel: there is no such file, or it cannot be trusted.
    """
    if not model:
        path = embedded.prepare(
            lambda: on_wait(f"Preparing {embedded.NAME} for this machine (once, a few seconds)")
        )
        return ModelFile(path, f"{embedded.NAME}-{embedded.TYPE}", gguf.read(path), demo=True)
    path = Path(model).expanduser()
    if not path.exists() and HUB_NAME.match(model) and path.suffix != ".gguf":
        on_wait(f"Looking for {model} on the hub")
        path = _download(model)
    return ModelFile(path, path.stem, gguf.read(path), demo=False)


def _download(name: str) -> Path:
    from huggingface_hub import hf_hub_download, list_repo_files
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    repository, _, wanted = name.partition(":")
    try:
        files = [f for f in list_repo_files(repository) if f.lower().endswith(".gguf")]
        chosen = _choose(repository, files, wanted)
        return Path(hf_hub_download(repository, chosen))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InvalidModel(
            f"{name} is no file here, and the hub does not give it: {reason:.200}. Name a .gguf file on "
            "this machine with --model FILE.gguf, or check the name and the connection."
        ) from None


def _choose(repository: str, files: list[str], wanted: str) -> str:
    """The one file that is meant; a whole model in one GGUF, by file name or by quantization."""
    if not files:
        raise InvalidModel(
            f"{repository} holds no GGUF file. Take a repository that does, or convert the model first."
        )
    found = [f for f in files if f == wanted] or [
        f for f in files if (wanted or "Q4_0").lower() in f.lower() and "-of-" not in f
    ]
    if not found and not wanted and len(files) == 1:
        found = files
    if len(found) != 1:
        raise InvalidModel(
            f"{repository} has {len(found) or 'no'} files for {wanted or 'Q4_0'!r}. "
            f"Name one: {', '.join(f'{repository}:{f}' for f in sorted(files)[:8])}"
        )
    return found[0]
