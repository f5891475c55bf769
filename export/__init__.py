"""From a trained adapter to a 4-bit GGUF that is proven to be the same model."""

import os

# Threads that wait for each other spin. Without a limit another program on the same cores makes every step
# many times as slow; it is read when torch and llama.cpp load.
os.environ.setdefault("GOMP_SPINCOUNT", "100000")
