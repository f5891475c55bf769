"""How long does each turn of a conversation wait for its first token, when thoughts are left out of the next?

A person asks, reads the answer, asks again. Two servers in turn, A B A B, with the embedded model in the chat
form of DeepSeek-R1: what it thinks is worth nothing, what its turns cost is what any model's do.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import gguf
import httpx
import typer
from gguf.scripts.gguf_new_metadata import MetadataDetails, copy_with_new_metadata
from rich.console import Console

from edge_runtime.errors import MedgeError, Unavailable
from edge_runtime.models.embedded import prepare
from edge_runtime.tables import rich_table

from . import facts
from .quiet import Watched
from .report import turns_section
from .serving import LLAMA_SERVER, Plan, Side

RESULTS = Path(__file__).parent / "results" / "turns.jsonl"
OURS = (
    "{python} -m edge_runtime serve --model {model} --slots {slots} --ctx {ctx} --threads {threads} "
    "--port {port} --no-records"
)

# The form of DeepSeek-R1 and its distillates: thoughts opened by the prompt, and not in earlier turns.
R1_FORM = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'user' %}<｜User｜>{{ message['content'] }}"
    "{% else %}<｜Assistant｜>{{ message['content'].split('</think>')[-1] }}{{ eos_token }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<｜Assistant｜><think>\n{% endif %}"
)

QUESTIONS = (
    "A man of 63 has had a cough for three weeks, with a little fever in the evenings. What comes to mind?",
    "He has lost four kilograms since the summer, and smokes a packet a day. Does that change the order?",
    "The picture of the chest shows a shadow in the right upper lobe. Which tests come next, and why?",
    "His kidneys are weak: the filtration rate is 38. Which of these tests need another preparation then?",
    "What would you tell him and his daughter today, in words that they understand?",
)

WARM_UP = ("What is a fever?", "And in a child?")

# Tokens of thoughts and answer together, of which medge gives this many to thoughts. llama-server has no such
# limit: its client takes the same share of the text for thoughts.
MAX_TOKENS, THOUGHTS = 192, 96


def write_thinker(source: Path, path: Path) -> None:
    """A copy of a GGUF in the form of R1."""
    reader = gguf.GGUFReader(source)
    field = reader.get_field(gguf.Keys.General.ARCHITECTURE)
    assert field is not None
    form = MetadataDetails(gguf.GGUFValueType.STRING, R1_FORM)
    writer = gguf.GGUFWriter(path, field.contents())
    copy_with_new_metadata(reader, writer, {gguf.Keys.Tokenizer.CHAT_TEMPLATE: form}, [])


def converse(
    base_url: str, ours: bool, seed: int, pause_s: float, questions: Sequence[str] = QUESTIONS
) -> list[dict[str, Any]]:
    """One conversation: for each turn the seconds to its first token, and tokens of its prompt.

    Raises:
        Unavailable: a turn was not answered.
    """
    messages: list[dict[str, str]] = []
    turns = []
    with httpx.Client(base_url=base_url, timeout=300, trust_env=False) as client:
        model = client.get("/v1/models").json()["data"][0]["id"]
        for question in questions:
            messages.append({"role": "user", "content": question})
            body: dict[str, Any] = {
                "model": model, "messages": messages, "max_tokens": MAX_TOKENS, "seed": seed,
                "repeat_penalty": 1.1, "ignore_eos": True, "stream": True,
                "stream_options": {"include_usage": True},
            }  # fmt: skip
            if ours:
                body |= {"conversation": str(seed), "max_thinking_tokens": THOUGHTS, "cut_loops": False}
            turn, answer = _turn(client, body)
            turns.append(turn)
            messages.append({"role": "assistant", "content": answer})
            time.sleep(pause_s)
    return turns


def _turn(client: httpx.Client, body: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """What the turn cost, and its answer without thoughts."""
    first, text, turn = None, "", {"ttft_s": 0.0, "n_prompt": 0}
    sent = time.perf_counter()
    with client.stream("POST", "/v1/chat/completions", json=body) as response:
        for line in response.iter_lines():
            chunk = json.loads(line[6:]) if line.startswith("data: {") else {}
            for choice in chunk.get("choices", ()):
                delta = choice["delta"]
                if first is None and (delta.get("reasoning_content") or delta.get("content")):
                    first = time.perf_counter()
                text += delta.get("content") or ""
            if usage := chunk.get("usage"):
                turn["n_prompt"] = usage["prompt_tokens"]
    if first is None:
        raise Unavailable(f"The server gave no answer: HTTP {response.status_code}.")
    turn["ttft_s"] = first - sent
    if "max_thinking_tokens" not in body:  # thoughts and answer are one text here
        text = text[len(text) * THOUGHTS // MAX_TOKENS :]
    return turn, text


def main(
    a: Annotated[str, typer.Option("--a", help="Command of medge.")] = OURS,
    against: Annotated[str, typer.Option(help="Command of llama-server.")] = LLAMA_SERVER,
    rounds: Annotated[int, typer.Option(min=1, help="Conversations with each server.")] = 5,
    pause: Annotated[
        float, typer.Option(min=0, help="Seconds that a person reads before the next turn.")
    ] = 3.0,
    threads: Annotated[int, typer.Option(min=1, help="Threads of each server.")] = 2,
    out: Annotated[
        Path,
        typer.Option(help="Results, appended as JSON lines.", show_default="benchmarks/results/turns.jsonl"),
    ] = RESULTS,
) -> None:
    """Time to the first token of each turn, of a model that thinks: medge (A) against llama-server (B)."""
    sides = [Side("a", a), Side("b", against + " --reasoning-format none")]
    records = []
    common = {
        "session": facts.now(),
        "threads": threads,
        "pause_s": pause,
        "max_tokens": MAX_TOKENS,
        "thoughts": THOUGHTS,
    }
    try:
        with tempfile.TemporaryDirectory() as folder:
            model = Path(folder) / "thinker.gguf"
            write_thinker(prepare(), model)
            plan = Plan(model, 2, 4096, threads, 1, 1, rounds, 0, False, None, 120.0, 300.0)
            for round_ in range(rounds):
                for side in sides:
                    # The server ends within: only what has ended counts as our own.
                    with Watched() as watched, side.server(plan) as server:
                        ours = side.name == "a"
                        converse(server.base_url, ours, 1000 + round_, pause, WARM_UP)
                        turns = converse(server.base_url, ours, round_, pause)
                    turn = {"side": side.name, "round": round_, "command": side.command, "turns": turns}
                    records.append(facts.about() | common | turn | {"quiet": watched.facts})
                    facts.append(out, records[-1:])
    except (MedgeError, httpx.HTTPError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(1) from error
    Console().print(rich_table(turns_section(records).made))


if __name__ == "__main__":
    typer.run(main)
