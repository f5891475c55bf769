from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from distill import config, model
from distill.errors import InvalidConfig, InvalidModel
from tests.distill import rows

MODEL = '[models.student]\nbase = "x"\n'


@pytest.mark.parametrize(
    ("models", "said"),
    [
        ("[models.student]\nbas = 1\n", "there is no setting models.student.bas"),
        ("[models.student]\n", "models.student.base is missing"),
        (MODEL + "lora = { rank = 0 }\n", r"models.student.lora.rank is '0': .*greater than 0"),
        (MODEL + "lora = { layers = 3 }\n", "models.student.lora.layers is '3'"),
        (MODEL + 'distillation = { teacher = "student" }\n', "models.student teaches models.student"),
        (MODEL + "traces = true\n", r"there is no table \[traces\]"),
        ('[models."a/b"]\nbase = "x"\n', "name 'a/b' is that of a folder"),
        ("[models.student]\nbase = \n", "is not TOML"),
        ("", "models is missing"),
    ],
)
def test_a_wrong_key_is_named(tmp_path: Path, models: str, said: str) -> None:
    with pytest.raises(InvalidConfig, match=said):
        config.load(rows.config(tmp_path, Path("x"), models))


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InvalidConfig, match=r"nowhere.toml does not exist; ready ones are in .*configs"):
        config.load(tmp_path / "nowhere.toml")


def test_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    found = config.load(
        rows.config(tmp_path, Path("base"), '[models.m]\nbase = "base"\n[models.n]\nbase = "org/x"\n')
    )
    assert found.out == tmp_path / "out" and found.data.train[0].file == tmp_path / "train.jsonl"
    assert found.models["m"].base == str(tmp_path / "base") and found.models["n"].base == "org/x"


@pytest.mark.parametrize(
    ("said", "found"),
    [
        ("all", None),
        ("last third", list(range(20, 30))),
        ("first half", list(range(15))),
        ("20-22", [20, 21, 22]),
        ("7", [7]),
    ],
)
def test_layers(said: str, found: Any) -> None:
    assert model.layers(said, 30) == found


@pytest.mark.parametrize("said", ["last fifth", "30", "5-3", "-1", "half", ""])
def test_layers_that_are_not_there(said: str) -> None:
    with pytest.raises(InvalidModel, match=r"say \"all\""):
        model.layers(said, 30)
