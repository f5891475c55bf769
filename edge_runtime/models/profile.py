"""Settings that were found to be the fastest for one model on one machine.

`python -m benchmarks.tune` writes them; commands that load a model take them where nobody asked for others.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ..config import Settings, state_dir
from ..device.machine import look
from .gguf import GGUF

log = logging.getLogger("medge.profile")

# What may be tuned: none of it changes what a server offers.
TUNED = ("threads", "batch", "kv", "flash_attention")


def file(header: GGUF) -> Path:
    """Where the profile of a model lies, below $MEDGE_STATE or the user's state folder."""
    return state_dir() / "profiles" / f"{header.path.stem}.json"


def _for(header: GGUF) -> dict[str, Any]:
    """What a profile holds for: another file of this name, or another processor, needs its own."""
    machine = look()
    return {"file_bytes": header.file_bytes, "cpu": machine.cpu, "n_cores": machine.n_cores}


def write(header: GGUF, settings: Mapping[str, Any]) -> Path:
    """Keep these settings for the model on this machine."""
    path = file(header)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"for": _for(header), "settings": dict(settings)}, indent=1), "utf-8")
    return path


def apply(header: GGUF, settings: Settings) -> Settings:
    """The settings, with the profile's where flags, environment and file say nothing.

    A profile that cannot be used is left alone, and the log says why.
    """
    path = file(header)
    try:
        kept = json.loads(path.read_text("utf-8"))
        if kept["for"] != _for(header):
            log.info("The profile %s is for another machine or file; it is not used.", path)
            return settings
        free = {name: kept["settings"][name] for name in TUNED if name not in settings.model_fields_set}
        return Settings(**settings.model_dump(exclude_unset=True) | free)
    except FileNotFoundError:
        return settings
    except (OSError, ValueError, KeyError, TypeError, ValidationError) as error:
        log.warning("The profile %s cannot be used: %s. Tune again, or delete it.", path, error)
        return settings
