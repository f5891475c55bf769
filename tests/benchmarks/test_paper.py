"""16 against 4 bits: order, ratios, what was done already, and the whole command on a tiny model."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import gguf as gguf_package
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("torch", reason="torch is not installed: pip install -e .[export]")

from benchmarks import ceiling, savings, tune
from benchmarks.paper import Case, Side, turns
from benchmarks.quiet import Watched
from edge_runtime.errors import InvalidSetting
from edge_runtime.models import gguf
from tests import tiny_checkpoint, tiny_gguf


def test_turns_go_there_and_back() -> None:
    sides = [Side(name, "medge", Path()) for name in "ABC"]
    order = "".join(side.name for _, _, side in turns(sides, [Case(8, 2)], 4))
    assert order == "ABCCBAABCCBA"


@pytest.mark.parametrize("text", ["", "256", "256+", "a+b", "0+5", "5+1", "1+2+3", "-1+5"])
def test_a_case_that_cannot_be_measured_is_refused(text: str) -> None:
    with pytest.raises(InvalidSetting, match="--case"):
        Case.of(text)
    assert Case.of("256+128").n_ctx == 384


@given(
    st.lists(st.floats(0.1, 100), min_size=1, max_size=8),
    st.lists(st.floats(0.1, 100), min_size=1, max_size=8),
)
def test_a_ratio_lies_in_its_interval_and_that_in_what_was_seen(of: list[float], to: list[float]) -> None:
    middle, low, high = savings.ratio(of, to)
    least, most = min(of) / max(to), max(of) / min(to)
    assert least * 0.999 <= low <= high <= most * 1.001
    assert least * 0.999 <= middle <= most * 1.001


@pytest.mark.parametrize("line", ["{", "[]", "{}", '{"session": "a"}', "null"])
def test_lines_of_others_are_refused(tmp_path: Path, line: str) -> None:
    (tmp_path / "r.jsonl").write_text(line + "\n", "utf-8")
    with pytest.raises(InvalidSetting, match=r"r\.jsonl"):
        savings.read(tmp_path / "r.jsonl")
    with pytest.raises(InvalidSetting, match="no results"):
        savings.read(tmp_path / "none.jsonl")


def test_another_busy_process_makes_a_measurement_noisy() -> None:
    spin = [sys.executable, "-c", "import time; t = time.time()\nwhile time.time() < t + 1.5: pass"]
    with Watched() as watched:
        subprocess.run(spin)
    own = watched.facts["others_share"]
    other = subprocess.Popen(spin)
    with Watched() as watched:
        subprocess.run([sys.executable, "-c", "import time; time.sleep(1)"])
    assert watched.facts["others_share"] > own
    assert not watched.facts["quiet"], "that process has not ended: it is not ours"
    other.wait()


def test_what_a_token_needs(tmp_path: Path) -> None:
    """Of two layers, by hand."""
    path = tiny_gguf.write(tmp_path / "t.gguf", n_head=2, n_head_kv=1)
    header = gguf.read(path)
    tensors = {t.name: t for t in gguf_package.GGUFReader(path).tensors}
    n_used = sum(
        np.prod(t.shape) for n, t in tensors.items() if len(t.shape) == 2 and n != "token_embd.weight"
    )
    if "output.weight" not in tensors:
        n_used += np.prod(tensors["token_embd.weight"].shape)
    need = ceiling.Need.of(header, n_before=10)
    attention = 10 * header.n_layers * 2 * 2 * (header.head_dim_k + header.head_dim_v)
    assert need.operations == pytest.approx(2 * n_used + attention)
    assert ceiling.Need.of(header, 11).bytes_read - need.bytes_read == header.kv_bytes_per_token("f16")


def test_only_what_is_worth_more_than_chance_is_changed() -> None:
    assert tune.best_of({256: [1.0, 1.1, 1.0], 64: [0.99, 0.98, 1.0]}) == 256
    assert tune.best_of({256: [1.0, 1.1, 1.0], 64: [0.9, 0.8, 0.95], 512: [0.7, 2, 3]}) == 64
    assert not tune.possible({"flash_attention": False, "kv": "q8_0"})


def command(module: str, *words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", module, *map(str, words)], capture_output=True, text=True, timeout=300
    )


@pytest.mark.slow
def test_a_tiny_model_goes_through_the_whole_comparison(tmp_path: Path) -> None:
    folder = tiny_checkpoint.write(tmp_path / "base", "smollm")
    out, words = tmp_path / "found.jsonl", ["--work", tmp_path, "--model", folder, "--rounds", "1"]
    words += ["--case", "40+8", "--session", "one", "--out", tmp_path / "found.jsonl"]
    run = command("benchmarks.paper", *words)
    assert run.returncode == 0, run.stderr
    lines = [json.loads(line) for line in out.read_text("utf-8").splitlines()]
    sides: dict[str, Any] = {line["side"]: line for line in lines}
    assert list(sides) == ["transformers", "llama.cpp BF16", "medge 4-bit, f16 KV"], (
        "its heads are too small for q8_0"
    )
    for line in lines:
        assert line["peak_pss_bytes"] > 1 << 20 and 0 < line["prompt_s"] < line["total_s"]
        assert line["parts"]["weights"] and not line["synthetic"]
    assert "of the first" in " ".join(run.stdout.split()) or "transformers" in run.stdout
    again = command("benchmarks.paper", *words)
    assert again.returncode == 0 and len(out.read_text("utf-8").splitlines()) == len(lines), "all was done"
    assert command("benchmarks.paper", *words, "--only", "nothing").returncode == 1


@pytest.mark.slow
def test_ceiling_and_tuning_of_a_tiny_model(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEDGE_STATE", str(tmp_path / "state"))
    run = command("benchmarks.ceiling", tiny, "--case", "40+8", "--out", tmp_path / "c.jsonl")
    assert run.returncode == 0, run.stderr
    (line,) = [json.loads(line) for line in (tmp_path / "c.jsonl").read_text("utf-8").splitlines()]
    assert 1e9 < line["read_bytes_per_s"] < 1e13 and 1e9 < line["operations_per_s"] < 1e14
    assert 0 < line["of_bandwidth"] < 1 and 0 < line["of_arithmetic"] < 1
    words = ["--case", "40+8", "--rounds", "1", "--out", tmp_path / "t.jsonl"]
    run = command("benchmarks.tune", tiny, *words)
    assert run.returncode == 0, run.stderr
    (kept,) = (tmp_path / "state/profiles").iterdir()
    best = json.loads(kept.read_text("utf-8"))["settings"]
    assert set(best) == {"threads", "batch", "kv", "flash_attention"} and str(kept) in run.stdout
    lines = [json.loads(line) for line in (tmp_path / "t.jsonl").read_text("utf-8").splitlines()]
    assert {line["setting"] for line in lines} <= set(best) and all(line["total_s"] > 0 for line in lines)
    run = command("benchmarks.tune", tmp_path / "none.gguf")
    assert run.returncode == 1 and "none.gguf" in run.stderr
