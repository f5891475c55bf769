"""Names of models to files: a path, the embedded model, or a name on the hub."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ..errors import InvalidModel
from . import embedded, gguf

HUB_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*(:[\w./-]+)?")


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


def find(
    model: str | None, on_wait: Callable[[str], None] = lambda what: None, *, header_only: bool = False
) -> ModelFile:
    """The file for what the user named.

    Args:
        model: a path, `owner/repository[:file or quantization]` on the hub, or None for the embedded one.
        on_wait: called with a sentence before anything that takes long.
        header_only: of a file on the hub fetch no more, if it is not here yet; the rest are holes.

    Raises:
        InvalidModel: there is no such file, or it cannot be trusted.
    """
    if not model:
        path = embedded.prepare(
            lambda: on_wait(f"Preparing {embedded.NAME} for this machine (once, a few seconds)")
        )
        return ModelFile(path, f"{embedded.NAME}-{embedded.TYPE}", gguf.read(path), demo=True)
    path = Path(model)
    if _names_hub(model) and not _exists(path):
        on_wait(f"Looking for {model} on the hub")
        path = _download(model, header_only)
    else:
        with suppress(RuntimeError):  # ~nobody: there is no such user, and gguf.read says that of the file
            path = path.expanduser()
    return ModelFile(path, path.stem, gguf.read(path), demo=False)


def _names_hub(model: str) -> bool:
    # folder/model.gguf that is not there is a wrong path; owner/repository:model.gguf is meant for the hub.
    return bool(HUB_NAME.fullmatch(model)) and (":" in model or not model.lower().endswith(".gguf"))


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:
        return True  # something that cannot be looked at; gguf.read says why


def _download(name: str, header_only: bool) -> Path:
    from huggingface_hub import hf_hub_download, model_info

    repository, _, wanted = name.partition(":")
    try:
        folder = None
        try:
            # list_repo_files would try again and again for half a minute without a connection.
            files = [file.rfilename for file in model_info(repository, timeout=10).siblings or []]
        except Exception:
            folder = _downloaded_before(repository)
            if folder is None:
                raise
            files = [path.relative_to(folder).as_posix() for path in folder.rglob("*")]
        chosen = _choose(repository, [f for f in files if f.lower().endswith(".gguf")], wanted)
        if folder:
            return folder / chosen
        return fetch_header(repository, chosen) if header_only else Path(hf_hub_download(repository, chosen))
    except InvalidModel:
        raise
    except Exception as error:  # the errors of its HTTP library have no class in common with its own
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InvalidModel(
            f"{name} is no file here, and the hub does not give it: {reason:.200}. Name a .gguf file on "
            "this machine with --model FILE.gguf, or check the name and the connection."
        ) from None


def fetch_header(repository: str, name: str) -> Path:
    """A file of the full length with only the header in it: what planning needs of gigabytes."""
    from huggingface_hub import get_hf_file_metadata, get_session, hf_hub_url
    from huggingface_hub.utils._headers import build_hf_headers

    url = hf_hub_url(repository, name)
    size = get_hf_file_metadata(url).size or 0
    path = embedded.cache_dir() / "headers" / repository.replace("/", "--") / name
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        for end in (min(size, n << 20) for n in (2, 8, 32, 128)):
            span = {"Range": f"bytes={file.tell()}-{end - 1}"}
            answer = get_session().get(url, headers=build_hf_headers() | span)
            answer.raise_for_status()
            file.write(answer.content)
            file.flush()
            os.truncate(path, size)
            with suppress(InvalidModel):
                if gguf.read(path).data_offset <= end:
                    return path
            if end == size:
                break
    return path  # whose reader says what is wrong with it


def _downloaded_before(repository: str) -> Path | None:
    """The folder with what there is of a repository on this machine: it may have no internet any more."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(repository, local_files_only=True))
    except Exception:
        return None


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
