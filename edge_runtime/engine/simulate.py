"""`python -m edge_runtime.engine.simulate STARTS`: what engines would take, as a line of JSON each.

STARTS is a list of `EngineConfig`s, or with "embeddings" of `EmbedderConfig`s, of one model file, in JSON. A
program of its own, because llama.cpp may end the process.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .embedder import EmbedderConfig
from .engine import EngineConfig
from .llama import ModelConfig, simulate


def _model_config(embeddings: bool, config: dict[str, Any]) -> ModelConfig:
    kind = EmbedderConfig if embeddings else EngineConfig
    return kind(**config | {"path": Path(config["path"])}).model


if __name__ == "__main__":
    for buffers in simulate([_model_config(**start) for start in json.loads(sys.argv[1])]):
        print(json.dumps(asdict(buffers)), flush=True)
