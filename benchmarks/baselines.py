"""What medge is compared with, each in a process of its own: transformers, and llama.cpp with its defaults.

`python -m benchmarks.baselines` reads one `Task` as JSON from its argument, and prints what it found as JSON.
"""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from edge_runtime.device.memory import pss_bytes

WARM_UP = (32, 4)  # tokens read and written before anything is measured


@dataclass(frozen=True)
class Task:
    """One measurement.

    Attributes:
        runner: "transformers" or "llama.cpp".
        path: a model folder, or a GGUF.
        n_vocab: prompts are random ids of the upper half of the vocabulary.
    """

    runner: str
    path: str
    n_ctx: int
    n_prompt: int
    n_answer: int
    n_threads: int
    n_vocab: int
    seed: int


@dataclass
class Found:
    """Seconds and bytes.

    Attributes:
        load_s: until the model can be asked; prompt_s until the first token of the answer.
        token_s: from one token to the next, the mean of the answer; total_s of the whole answer.
        parts: of the memory, as far as it is known: the rest of the peak is what computing took.
        gpu_bytes: at most, as the framework counts them.
    """

    load_s: float
    prompt_s: float
    token_s: float
    total_s: float
    parts: dict[str, int]
    gpu_bytes: int = 0


def prompt(n_tokens: int, n_vocab: int, seed: str) -> list[int]:
    """Random tokens: the same for everybody with this seed, and in nobody's cache."""
    chance = random.Random(seed)
    return [chance.randrange(n_vocab // 2, n_vocab) for _ in range(n_tokens)]


def timed(answer: Callable[[list[int], int], list[float]], task: Task) -> tuple[float, float, float]:
    """Seconds to the first token, from token to token, and of the whole answer, after a warm-up.

    Args:
        answer: reads a prompt, writes that many tokens, and says when each was there.
    """
    n_read, n_written = WARM_UP
    answer(prompt(n_read, task.n_vocab, f"warm {task.seed}"), n_written)
    asked = prompt(task.n_prompt, task.n_vocab, f"{task.seed}")
    began = time.perf_counter()
    times = answer(asked, task.n_answer)
    if len(times) != task.n_answer:
        raise RuntimeError(f"{len(times)} tokens instead of {task.n_answer}")
    return times[0] - began, (times[-1] - times[0]) / max(1, len(times) - 1), times[-1] - began


def transformers(task: Task) -> Found:
    """As its documentation loads a model: 16 bits a weight, everything else left alone."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.generation.streamers import BaseStreamer

    torch.set_num_threads(task.n_threads)
    on_gpu = torch.cuda.is_available()
    programs = pss_bytes() or 0
    began = time.perf_counter()
    dtype = torch.float16 if on_gpu else torch.bfloat16
    model = AutoModelForCausalLM.from_pretrained(task.path, dtype=dtype).eval()
    model = model.to("cuda" if on_gpu else "cpu")
    load_s = time.perf_counter() - began
    kv_bytes = 0

    class Clock(BaseStreamer):  # type: ignore[misc]
        def __init__(self) -> None:
            self.times: list[float] = []

        def put(self, _: Any) -> None:
            self.times.append(time.perf_counter())

        def end(self) -> None:
            pass

    def answer(asked: list[int], n: int) -> list[float]:
        nonlocal kv_bytes
        clock, ids = Clock(), torch.tensor([asked], device=model.device)
        made = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=n, min_new_tokens=n, do_sample=False,
            streamer=clock, return_dict_in_generate=True, pad_token_id=0,
        )  # fmt: skip
        held = [t for layer in made.past_key_values.layers for t in (layer.keys, layer.values)]
        kv_bytes = sum(t.numel() * t.element_size() for t in held)
        return clock.times[1:]  # the first is the prompt

    times = timed(answer, task)
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    held = {"weights": weights, "KV memory": kv_bytes}
    return Found(
        load_s, *times, parts={"the programs": programs} | ({} if on_gpu else held),
        gpu_bytes=torch.cuda.max_memory_reserved() if on_gpu else 0,
    )  # fmt: skip


def llama_cpp(task: Task) -> Found:
    """llama-cpp-python's own class with its defaults, but for the threads: it takes half of the cores."""
    from llama_cpp import Llama

    programs = pss_bytes() or 0
    began = time.perf_counter()
    model = Llama(task.path, n_ctx=task.n_ctx, n_threads=task.n_threads, n_gpu_layers=-1, verbose=False)
    load_s = time.perf_counter() - began

    def answer(asked: list[int], n: int) -> list[float]:
        return [time.perf_counter() for _ in islice(model.generate(asked, temp=0.0), n)]

    times = timed(answer, task)
    return Found(load_s, *times, parts={"the programs": programs, "weights": Path(task.path).stat().st_size})


RUNNERS: dict[str, Callable[[Task], Found]] = {"transformers": transformers, "llama.cpp": llama_cpp}

if __name__ == "__main__":
    task = Task(**json.loads(sys.argv[1]))
    print(json.dumps(asdict(RUNNERS[task.runner](task))))
