"""What was tuned is used where nobody asked for something else, for this file on this processor only."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from edge_runtime.config import Settings
from edge_runtime.models import gguf, profile

TUNED = {"threads": 1, "batch": 64, "kv": "q8_0", "flash_attention": True}
DEFAULT = Settings.model_validate({})


@pytest.fixture
def header(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> gguf.GGUF:
    monkeypatch.setenv("MEDGE_STATE", str(tmp_path))
    return gguf.read(tiny)


def test_without_a_profile_nothing_changes(header: gguf.GGUF) -> None:
    assert profile.apply(header, DEFAULT) == DEFAULT


def test_what_was_tuned_is_used_and_what_was_asked_for_stays(header: gguf.GGUF, tmp_path: Path) -> None:
    assert profile.write(header, TUNED) == profile.file(header)
    assert profile.file(header).is_relative_to(tmp_path)
    used = profile.apply(header, DEFAULT)
    assert used == DEFAULT.model_copy(update=TUNED)
    asked = Settings.model_validate({"batch": 256, "slots": 2})
    used = profile.apply(header, asked)
    assert (used.batch, used.slots, used.kv) == (256, 2, "q8_0")


@pytest.mark.parametrize(
    "change",
    [
        {"for": {"file_bytes": 1, "cpu": "another", "n_cores": 64}},
        {"settings": TUNED | {"threads": 0}},
        {"settings": {"threads": 1}},
        {"settings": None},
        {"for": None},
    ],
)
def test_a_profile_for_something_else_or_a_broken_one_is_left_alone(
    header: gguf.GGUF, change: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    path = profile.write(header, TUNED)
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | change), "utf-8")
    assert profile.apply(header, DEFAULT) == DEFAULT
    assert str(path) in caplog.text
    path.write_bytes(b"\xff{")
    assert profile.apply(header, DEFAULT) == DEFAULT
    assert path.exists()
