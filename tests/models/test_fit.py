"""What would fit instead: the ladder, with llama.cpp's own numbers of a tiny model."""

from __future__ import annotations

import json
import re
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from edge_runtime.config import Settings
from edge_runtime.device.plan import NOTE_BYTES, Budget, mib
from edge_runtime.engine.llama import Model, ModelConfig
from edge_runtime.errors import NotEnoughMemory
from edge_runtime.models import fit, gguf

MB = 1 << 20
AMPLE = Budget(1 << 40)
LARGE = Settings(ctx=65_536, slots=8, prefix_tokens=4096)


@pytest.fixture(scope="module")
def header(tiny: Path) -> gguf.GGUF:
    return gguf.read(tiny)


def test_each_rung_gives_up_one_thing_more_and_takes_less(header: gguf.GGUF) -> None:
    rungs = list(fit.ladder(header, LARGE))
    assert rungs[0] == LARGE
    for before, after in pairwise(rungs):
        assert len(fit.given_up(before, after).split("--")) == 2
    last = rungs[-1]
    assert (last.kv, last.prefix_tokens, last.slots, last.ctx, last.batch) == ("q8_0", 0, 1, 512, 64)
    made = fit.plans(header, rungs, AMPLE)
    assert all(plan.exact for plan in made)
    totals = [plan.total_bytes for plan in made]
    assert totals == sorted(totals, reverse=True)


def test_the_bound_is_never_less_than_what_llama_cpp_plans(header: gguf.GGUF) -> None:
    rungs = list(fit.ladder(header, LARGE))
    for settings, plan in zip(rungs, fit.plans(header, rungs, AMPLE)):
        bound = fit.at_most(header, settings)
        assert bound.total_bytes >= plan.total_bytes
        assert bound.weights_bytes == plan.weights_bytes
        assert abs(bound.kv_bytes - plan.kv_bytes) < MB // 50  # it is told in hundredths of MiB


def test_what_fits_is_taken_without_asking_llama_cpp(
    header: gguf.GGUF, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fit, "plans", lambda *_: pytest.fail("a start would take longer"))
    room = Budget(fit.at_most(header, LARGE).total_bytes)
    assert fit.require_room(header, LARGE, room) is LARGE


def test_what_fits_by_llama_cpps_word_alone_is_taken(header: gguf.GGUF) -> None:
    (exact,) = fit.plans(header, [LARGE], AMPLE)
    assert fit.require_room(header, LARGE, Budget(exact.total_bytes)) == LARGE


def test_a_refusal_has_the_parts_and_what_would_fit(header: gguf.GGUF) -> None:
    rungs = list(fit.ladder(header, LARGE))
    made = fit.plans(header, rungs, AMPLE)
    for i in (1, 3, len(rungs) - 1):
        room = Budget(made[i].total_bytes)
        with pytest.raises(NotEnoughMemory) as refused:
            fit.require_room(header, LARGE, room)
        text = refused.value.message
        assert re.match(r"The model needs [\d,]+ MiB \(weights 0 MiB, KV memory 154 MiB, shared", text)
        assert f"{mib(room.memory_bytes)} are free" in text
        flags = fit.given_up(LARGE, rungs[i])
        assert f"With {flags} it takes {mib(made[i].total_bytes)} and fits; --fit does that." in text
        chosen = fit.require_room(header, LARGE.model_copy(update={"fit": True}), room)
        assert chosen == rungs[i].model_copy(update={"fit": True})


def test_nothing_fits(header: gguf.GGUF) -> None:
    for asked in (LARGE, LARGE.model_copy(update={"fit": True})):
        with pytest.raises(
            NotEnoughMemory, match=r"Even with --kv q8_0 .* --batch 64 it needs .* smaller model"
        ):
            fit.require_room(header, asked, Budget(MB))


def test_llama_cpp_is_not_asked_of_what_cannot_fit(
    header: gguf.GGUF, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fit, "command", lambda module: pytest.fail("it would take gigabytes itself"))
    bound = fit.at_most(header, LARGE)
    assert fit.plans(header, [LARGE], Budget(bound.kv_bytes)) == [bound]
    huge = LARGE.model_copy(update={"ctx": 1 << 20, "slots": 64})
    assert fit.plans(header, [huge], AMPLE) == [fit.at_most(header, huge)]


def test_where_llama_cpp_gives_up_the_bound_is_used(
    header: gguf.GGUF, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fit, "SIMULATION_S", 0.2)
    for gives_up in (["false"], [sys.executable, "-c", "import time; time.sleep(9)"]):
        monkeypatch.setattr(fit, "command", lambda module, words=gives_up: words)
        assert fit.plans(header, [LARGE], AMPLE) == [fit.at_most(header, LARGE)]


@pytest.mark.parametrize("kv", ["f16", "q8_0"])
@pytest.mark.parametrize("flash_attention", [True, False])
def test_the_plan_is_what_a_real_context_reserves(
    header: gguf.GGUF, kv: str, flash_attention: bool, caplog: pytest.LogCaptureFixture
) -> None:
    if kv != "f16" and not flash_attention:
        pytest.skip("llama.cpp has no quantized values without flash attention")
    settings = Settings.model_validate(
        {"kv": kv, "flash_attention": flash_attention, "ctx": 4096, "slots": 3}
    )
    (plan,) = fit.plans(header, [settings], AMPLE)
    config = ModelConfig(header.path, 3, 4096, settings.batch, 1, kv=kv, flash_attention=flash_attention)
    caplog.set_level("INFO", "medge.llama")
    with Model(config):
        said = json.dumps(caplog.messages)
    kv = plan.kv_bytes - 3 * 4096 * NOTE_BYTES
    assert f"CPU KV buffer size = {kv / MB:8.2f} MiB" in said
    computing = [float(m.split("=")[1].split()[0]) for m in caplog.messages if "CPU compute buffer size" in m]
    output = [float(m.split("=")[1].split()[0]) for m in caplog.messages if "output buffer size" in m]
    assert plan.compute_bytes == pytest.approx((computing[-1] + output[-1]) * MB, abs=MB // 50)
