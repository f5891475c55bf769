"""`python -m edge_runtime.engine.requantize SOURCE TARGET TYPE TYPES.json IMPORTANCE.npz`.

Writes a model with other weight types. A program of its own, because llama.cpp may end the process.
Quantizing what is quantized already loses a little more than quantizing the original would.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

from ..errors import MedgeError
from .llama import requantize


def main() -> int:
    source, target, weight_type, types, importance = sys.argv[1:]
    chosen = json.loads(Path(types).read_text("utf-8"))
    try:
        requantize(Path(source), Path(target), weight_type, chosen, dict(np.load(importance)))
    except MedgeError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
