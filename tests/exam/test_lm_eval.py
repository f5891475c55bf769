"""EleutherAI's lm-evaluation-harness against our server: the same answers as our own exam by likelihood."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edge_runtime.models import embedded
from export.unpack import unpack
from tests.serving import RunningServer, serving

pytestmark = pytest.mark.slow

ROWS = [
    ("Which vitamin is missing in scurvy?", ("vitamin A", "vitamin C", "vitamin D", "vitamin K"), "B"),
    ("Which organ makes insulin?", ("the liver", "the spleen", "the pancreas", "the kidney"), "C"),
    ("What does a thermometer measure?", ("weight", "temperature", "pressure", "length"), "B"),
    ("Which gas do we breathe in to live?", ("oxygen", "helium", "neon", "argon"), "A"),
    ("Which bone is in the thigh?", ("the femur", "the ulna", "the skull", "the sternum"), "A"),
    ("How is malaria passed on?", ("by mosquitoes", "by handshakes", "by cold air", "by birds"), "A"),
    ("Which of these lowers blood sugar?", ("glucagon", "cortisol", "adrenaline", "insulin"), "D"),
    ("Where does digestion of starch begin?", ("in the mouth", "in the colon", "in the blood"), "A"),
    ("What carries oxygen in the blood?", ("platelets", "haemoglobin", "fibrin", "albumin"), "B"),
    ("Which sense does the retina serve?", ("hearing", "smell", "sight", "touch"), "C"),
    ("What is the normal number of human chromosomes?", ("23", "44", "46", "48"), "C"),
    ("Which disease is a lack of thyroid hormone?", ("hypothyroidism", "asthma", "gout"), "A"),
]

ROWS_OF_A_TASK = """
dataset_path: json
dataset_kwargs: {data_files: {test: ROWS}}
test_split: test
"""

TASK = """
task: ours
output_type: multiple_choice
doc_to_text: "Question: {{question}}\\nAnswer:"
doc_to_choice: "{{choices}}"
doc_to_target: "{{place}}"
target_delimiter: " "
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""

CHAT_TASK = """
task: ours_chat
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{answer}}"
generation_kwargs: {until: ["\\n\\n"], max_gen_toks: 12, temperature: 0}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Questions in both forms, tasks over them, and the model's tokenizer, which the harness counts with."""
    folder = tmp_path_factory.mktemp("lm-eval")
    with (folder / "rows.jsonl").open("w") as ours, (folder / "theirs.jsonl").open("w") as theirs:
        for number, (question, choices, answer) in enumerate(ROWS):
            options = dict(zip("ABCD", choices))
            row: dict[str, Any] = {"id": f"q{number}", "question": question, "answer": answer}
            ours.write(json.dumps(row | {"options": options}) + "\n")
            theirs.write(json.dumps(row | {"choices": choices, "place": "ABCD".index(answer)}) + "\n")
    for name, task in (("ours", TASK), ("ours_chat", CHAT_TASK)):
        rows = ROWS_OF_A_TASK.replace("ROWS", json.dumps(str(folder / "theirs.jsonl")))
        (folder / f"{name}.yaml").write_text(rows + task)
    unpack(embedded.shipped(), folder / "tokenizer")
    return folder


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    with serving(None, "--slots", "2", "--ctx", "1024") as server:
        yield server


def harness(server: RunningServer, folder: Path, model: str, path: str, task: str, *words: str) -> list[Any]:
    """What the harness kept of each question, in their order."""
    out = folder / f"out-{task}"
    given = [
        f"base_url={server.url}/v1/{path}", "model=default", "num_concurrent=2", "tokenized_requests=False",
        f"tokenizer={folder / 'tokenizer'}",
    ]  # fmt: skip
    run = subprocess.run(
        [sys.executable, "-m", "lm_eval", "--model", model, "--model_args", ",".join(given), "--tasks", task,
         "--include_path", str(folder), "--output_path", str(out), "--log_samples", *words],
        capture_output=True, text=True, timeout=300,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "OPENAI_API_KEY": "none",
             "HF_HOME": str(folder / "hub")},
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    (samples,) = out.rglob("samples_*.jsonl")
    kept = [json.loads(line) for line in samples.read_text().splitlines()]
    return sorted(kept, key=lambda sample: int(sample["doc_id"]))


def test_the_same_answers_by_likelihood(server: RunningServer, folder: Path) -> None:
    theirs = harness(server, folder, "local-completions", "completions", "ours")
    result = folder / "result.jsonl"
    words = [sys.executable, "-m", "edge_runtime", "eval", str(folder / "rows.jsonl"), "--out", str(result)]
    run = subprocess.run([*words, "--ctx", "1024", "--json"], capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    lines = {line["id"]: line for line in map(json.loads, result.read_text().splitlines()[1:])}
    for number, sample in enumerate(theirs):
        found = [float(response[0]) for response in sample["filtered_resps"]]
        ours = list(lines[f"q{number}"]["nats"].values())
        # Pieces of another size round otherwise in 4 bits: 0.11 nats an option is the usual difference.
        assert ours == pytest.approx(found, abs=0.8)
        best, second = sorted(found)[-1], sorted(found)[-2]
        if best - second > 1.6:  # no near tie
            assert lines[f"q{number}"]["predicted"] == "ABCD"[found.index(best)]
    accuracy = sum(sample["acc"] for sample in theirs) / len(ROWS)
    (of_file,) = json.loads(run.stdout)["multiple_choice"]
    assert of_file["accuracy"] == pytest.approx(accuracy, abs=1.01 / len(ROWS))
    assert accuracy > 0.25


def test_the_harness_chats_too(server: RunningServer, folder: Path) -> None:
    theirs = harness(
        server, folder, "local-chat-completions", "chat/completions", "ours_chat", "--apply_chat_template"
    )
    texts = [sample["filtered_resps"][0] for sample in theirs]
    assert len(texts) == len(ROWS) and all(text.strip() for text in texts)
    assert {sample["exact_match"] for sample in theirs} <= {0.0, 1.0}
