"""The file of results: going on, a torn end, another run, damage."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge_runtime.errors import InvalidSetting
from edge_runtime.exam import results
from edge_runtime.exam.results import Results, load

FILES = [{"name": "q.jsonl", "sha256": "aa", "n": 3}]
HEADER = results.header({"name": "m", "sha256": "00"}, FILES, {"by": "generate", "seed": 0})


def line(row: str, sample: int = 0, **more: Any) -> dict[str, Any]:
    return {"id": row, "sample": sample, "end": "stop", **more}


def test_a_run_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "r.jsonl"
    with Results(path, HEADER) as first:
        first.add(line("a"))
        first.add(line("ä", 1))
        assert len(path.read_bytes().splitlines()) == 3, "each line is there at once"
    with Results(path, HEADER) as second:
        assert list(second.lines) == [("a", 0), ("ä", 1)]
        second.add(line("b"))
    header, lines = load(path)
    assert header == HEADER and len(lines) == 3


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 400))
def test_killed_at_any_byte_it_goes_on_with_what_was_whole(tmp_path: Path, n: int) -> None:
    path = tmp_path / "r.jsonl"
    path.unlink(missing_ok=True)
    with Results(path, HEADER) as kept:
        for name in ("a", "b", "c"):
            kept.add(line(name))
    whole = path.read_bytes()
    path.write_bytes(whole[:n])
    n_lines = max(0, whole[:n].count(b"\n") - 1)
    if n < 14 and n:  # not even the mark
        return
    with Results(path, HEADER) as kept:
        assert len(kept.lines) == n_lines
        for name in ("a", "b", "c")[n_lines:]:
            kept.add(line(name))
    assert path.read_bytes() == whole


def test_another_run_is_refused_with_what_differs(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    Results(path, HEADER).__exit__(None, None, None)
    before = path.read_bytes()
    for change, said in (
        ({"model": {"name": "n", "sha256": "00"}}, "model name was m, is n"),
        ({"model": {"name": "m", "sha256": "ff"}}, "model sha256 was 00, is ff"),
        ({"files": [{**FILES[0], "sha256": "bb"}]}, "q.jsonl has changed"),
        ({"files": [{**FILES[0], "name": "r.jsonl"}]}, "r.jsonl was not asked; q.jsonl is missing"),
        ({"settings": {"by": "generate", "seed": 1}}, "seed was 0, is 1"),
        ({"settings": {"by": "generate", "seed": 0, "limit": 5}}, "limit was not given, is 5"),
    ):
        with pytest.raises(InvalidSetting) as caught:
            Results(path, HEADER | change)
        assert said in str(caught.value) and str(path) in str(caught.value)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "text", ["notes\n", "notes", "{}\n", "[]\n", '{"medge_eval": 2}\n', '{"medge_eval": 1}\n']
)
def test_a_file_of_somebody_else_is_left_alone(tmp_path: Path, text: str) -> None:
    path = tmp_path / "r.jsonl"
    path.write_text(text)
    with pytest.raises(InvalidSetting, match="left alone"):
        Results(path, HEADER)
    assert path.read_text() == text
    with pytest.raises(InvalidSetting, match="is no file"):
        Results(tmp_path, HEADER)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"id": 3, "sample": 0}', '{"id": "a", "sample": 0}'])
def test_damage_is_told_with_its_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "r.jsonl"
    path.write_text("\n".join([json.dumps(HEADER), json.dumps(line("a")), text, ""]))
    with pytest.raises(InvalidSetting, match="line 3"):
        load(path)


def test_nothing_to_compare_with(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    with pytest.raises(InvalidSetting, match="is empty"):
        load(tmp_path / "empty")
    with pytest.raises(InvalidSetting, match="cannot be read"):
        load(tmp_path / "none")


def test_the_same_run_has_the_same_file(tmp_path: Path) -> None:
    name = results.default_path(tmp_path, HEADER)
    assert name == results.default_path(tmp_path, json.loads(json.dumps(HEADER)))
    assert name != results.default_path(tmp_path, HEADER | {"settings": {"by": "generate", "seed": 1}})
    odd = results.header({"name": "../x y" * 60, "sha256": "0"}, FILES, HEADER["settings"])
    assert results.default_path(tmp_path, odd).parent == tmp_path
