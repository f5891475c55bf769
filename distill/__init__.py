"""From a large teacher to a small student: traces, logits, LoRA training, evaluation. Needs torch."""

import os

# Threads that wait for each other spin. Without a limit another program on the same cores makes every step
# many times as slow; it is read when torch loads.
os.environ.setdefault("GOMP_SPINCOUNT", "100000")
