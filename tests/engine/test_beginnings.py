"""Shared beginnings on disk: found again, never damaged, never larger than allowed, never a user's text."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.engine.beginnings import Beginnings
from edge_runtime.engine.engine import Engine, EngineConfig
from edge_runtime.engine.request import Delta, Done, Event, Request, Sampling

TOKENS = tuple(range(100, 150))
LARGE = 10**9


def test_what_is_kept_is_there_the_next_day(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    kept = Beginnings(folder, LARGE)
    assert kept.wants(TOKENS)
    kept.keep(TOKENS, b"state" * 1000)
    for known in (kept, Beginnings(folder, LARGE)):
        assert not known.wants(TOKENS)
        assert known.find([*TOKENS, 1, 2]) == TOKENS
        assert known.find(TOKENS[:-1]) == known.find([7, *TOKENS]) == ()
        assert known.load(TOKENS) == b"state" * 1000


def test_the_longest_is_found(tmp_path: Path) -> None:
    kept = Beginnings(tmp_path / "model", LARGE)
    for n in (10, 30, 20):
        kept.keep(TOKENS[:n], b"x")
    assert [len(kept.find(TOKENS[:n])) for n in (9, 10, 25, 50)] == [0, 10, 20, 30]


def test_without_a_folder_nothing_is_kept() -> None:
    nothing = Beginnings(None, LARGE)
    assert not nothing.wants(TOKENS) and nothing.find(TOKENS) == ()


@pytest.mark.parametrize("damage", ["gone", "shorter", "other bytes", "empty", "other tokens"])
def test_a_damaged_file_is_a_miss(tmp_path: Path, damage: str) -> None:
    kept = Beginnings(tmp_path / "model", LARGE)
    kept.keep(TOKENS, b"state" * 100)
    (path,) = (tmp_path / "model").iterdir()
    data = path.read_bytes()
    if damage == "gone":
        path.unlink()
    else:
        new = {"shorter": data[:-1], "other bytes": data[:-40] + b"!" + data[-39:], "empty": b"",
               "other tokens": data[:22] + b"\1" + data[23:]}  # fmt: skip
        path.write_bytes(new[damage])
    assert kept.load(TOKENS) == b""
    assert kept.wants(TOKENS) and not path.exists()
    Beginnings(tmp_path / "model", LARGE)  # no trouble with what lies there


@given(st.binary(max_size=64))
def test_files_of_others_are_left_alone(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    folder = tmp_path_factory.mktemp("any")
    (folder / "a.state").write_bytes(data)
    assert Beginnings(folder, LARGE).find(TOKENS) == ()


def test_the_oldest_make_way_also_those_of_other_models(tmp_path: Path) -> None:
    other, own = Beginnings(tmp_path / "other", 3000), Beginnings(tmp_path / "own", 3000)
    other.keep(TOKENS[:5], b"o" * 1000)
    own.keep(TOKENS[:6], b"p" * 1000)
    for age, path in ((200, "other"), (100, "own")):
        (file,) = (tmp_path / path).iterdir()
        os.utime(file, (file.stat().st_mtime - age,) * 2)
    own.keep(TOKENS[:7], b"q" * 1000)
    assert not any((tmp_path / "other").iterdir())
    assert own.find(TOKENS) == TOKENS[:7] and own.load(TOKENS[:6])
    own.keep(TOKENS[:8], b"r" * 4000)  # more than may lie there: all the others would not be enough
    assert own.wants(TOKENS[:8])
    assert sum(f.stat().st_size for f in tmp_path.glob("*/*")) <= 3000


def test_a_disk_that_cannot_be_written_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    kept = Beginnings(tmp_path / "file" / "model", LARGE)
    kept.keep(TOKENS, b"x")
    assert kept.wants(TOKENS)


# -- in the engine


def engine(tiny: Path, folder: Path) -> Engine:
    return Engine.open(
        EngineConfig(tiny, n_slots=2, n_ctx=512, prefix_tokens=0, beginnings=folder, beginnings_bytes=LARGE)
    )


def run(engine: Engine, request: Request) -> tuple[list[int], int]:
    *deltas, done = engine.generate(request)
    assert isinstance(done, Done), done
    tokens: list[Event] = list(deltas)
    return [t.token for e in tokens if isinstance(e, Delta) for t in e.logprobs], done.timing.n_cached


def ask(own: list[int], question: list[int]) -> Request:
    sampling = Sampling(temperature=0)
    return Request("r", own + question, 12, sampling, n_top_logprobs=0, n_shared=len(own), ignore_eos=True)


def test_the_first_question_of_the_next_day_begins_where_the_template_ends(
    tiny: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    with engine(tiny, folder) as first:
        own = first.model.tokenize(
            "You help clinicians. Say what is missing. " * 3, special=False, add_bos=True
        )
        questions = [
            first.model.tokenize(q, special=False, add_bos=False) for q in ("Fever?", "A rash, at two?")
        ]
        cold = [run(first, ask(own, question)) for question in questions]
        assert cold[0][1] == 0
    assert len(list(folder.iterdir())) == 1
    with engine(tiny, folder) as second:
        warm = [run(second, ask(own, question)) for question in reversed(questions)]
    assert [n for _, n in warm] == [len(own), len(own)]
    assert [tokens for tokens, _ in reversed(warm)] == [tokens for tokens, _ in cold]


def test_only_the_beginning_is_written_and_shared(tiny: Path, tmp_path: Path) -> None:
    with engine(tiny, tmp_path / "model") as running:
        own = running.model.tokenize("You help clinicians. " * 4, special=False, add_bos=True)
        question = running.model.tokenize(
            "My name is Amina, and I have had a cough for weeks.", special=False, add_bos=False
        )
        run(running, ask(own, question))
        # The same question from somebody else, who must not learn that it was asked before.
        assert run(running, ask(own, question))[1] == len(own)
        same = [Request(str(i), own + question, 4, n_shared=len(own), conversation="c") for i in range(2)]
        assert [run(running, request)[1] for request in same] == [len(own), len(own + question) - 1]
    (path,) = (tmp_path / "model").iterdir()
    assert path.read_bytes()[22 : 22 + 4 * len(own)] == b"".join(t.to_bytes(4, "little") for t in own)


def test_a_beginning_alone_is_read_and_kept(tiny: Path, tmp_path: Path) -> None:
    with engine(tiny, tmp_path / "model") as running:
        own = running.model.tokenize("You help clinicians. " * 4, special=False, add_bos=True)
        assert not running.keeps(own)
        *_, done = running.generate(Request("b", own, max_tokens=0, n_shared=len(own)))
        assert isinstance(done, Done) and running.keeps(own)
        assert run(running, ask(own, own[1:9]))[1] == len(own)
