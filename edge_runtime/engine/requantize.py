"""`python -m edge_runtime.engine.requantize SOURCE TARGET TYPE`: a GGUF in another weight type.

A program of its own, because llama.cpp may end the process. Quantizing what is quantized already loses a
little more than quantizing the original would.
"""

from __future__ import annotations

import sys
from pathlib import Path

from ..errors import MedgeError
from .llama import requantize


def main() -> int:
    try:
        requantize(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
    except MedgeError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
