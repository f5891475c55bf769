"""A setting is one thing with three spellings; the nearer one wins, and a wrong one says where it stands."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge_runtime.config import Settings, load
from edge_runtime.device.machine import default_threads, usable_cores
from edge_runtime.errors import InvalidSetting

NAMES = sorted(Settings.model_fields)


@pytest.fixture(autouse=True)
def _nothing_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [n for n in os.environ if n.startswith("MEDGE_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "nobody's"))


def three_values(name: str) -> list[Any]:
    """Three values that a field may have, the first unlike its default where there is room for it."""
    field = Settings.model_fields[name]
    kind = field.annotation
    if get_origin(kind) is Literal:
        choices = [c for c in get_args(kind) if c != field.default]
        return [*choices, field.default, choices[0]]
    if kind is bool:
        return [not field.default, field.default, not field.default]
    if name == "threads":
        return [usable_cores() * 4, 1, usable_cores()]
    if kind in (int, float):
        return (
            [kind(n) for n in (65, 64, 66)]
            if name in ("batch", "ctx", "port")
            else [kind(n) for n in (5, 6, 7)]
        )
    return ["one", "two", "three"]


def toml(**values: Any) -> str:
    return "".join(f"{name} = {json.dumps(value)}\n" for name, value in values.items())


def in_environment(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


@pytest.mark.parametrize("name", NAMES)
def test_the_nearer_place_wins(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    in_file, in_env, in_flag = three_values(name)
    kind = Path if name == "template_folder" else lambda value: value
    file = tmp_path / "settings.toml"
    file.write_text(toml(**{name: in_file}))

    assert getattr(load({name: None}), name) == Settings.model_fields[name].get_default(
        call_default_factory=True
    )
    assert getattr(load({}, file), name) == kind(in_file)
    monkeypatch.setenv("MEDGE_" + name.upper(), in_environment(in_env))
    assert getattr(load({}, file), name) == kind(in_env)
    assert getattr(load({name: in_flag}, file), name) == kind(in_flag)


@pytest.mark.parametrize("name", NAMES)
def test_every_field_says_what_it_is_and_its_default_is_allowed(name: str) -> None:
    assert (Settings.model_fields[name].description or "").endswith(".")
    value = getattr(Settings(), name)
    assert value is None or Settings(**{name: value})


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=50)
@given(
    st.lists(st.tuples(st.sampled_from(NAMES), st.sampled_from(["file", "environment", "flag"])), max_size=12)
)
def test_each_name_is_taken_from_its_own_nearest_place(
    tmp_path: Path, spelled: list[tuple[str, str]]
) -> None:
    places = ["file", "environment", "flag"]
    given_at = {
        place: {n: three_values(n)[places.index(place)] for n, p in spelled if p == place} for place in places
    }
    file = tmp_path / "some.toml"
    file.write_text(toml(**given_at["file"]))
    with pytest.MonkeyPatch.context() as patch:
        for name, value in given_at["environment"].items():
            patch.setenv("MEDGE_" + name.upper(), in_environment(value))
        found = load(given_at["flag"], file)
    assert found == Settings(**{**given_at["file"], **given_at["environment"], **given_at["flag"]})


@pytest.mark.parametrize(
    ("variable", "meant"),
    [("MEDGE_PROT", "MEDGE_PORT"), ("MEDGE_port", "MEDGE_PORT"), ("MEDGE_APIKEY", "MEDGE_API_KEY")],
)
@pytest.mark.skipif(os.name == "nt", reason="names of variables have no case on Windows")
def test_an_unknown_variable_is_refused_with_a_close_one(
    variable: str, meant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, "1")
    with pytest.raises(InvalidSetting, match=f"{variable}.*Did you mean {meant}"):
        load({})


def test_variables_that_are_no_settings_are_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEDGE_CACHE", str(tmp_path))
    monkeypatch.setenv("MEDGER", "1")
    assert load({}) == Settings()


def test_an_unknown_key_is_refused_with_a_close_one(tmp_path: Path) -> None:
    file = tmp_path / "a.toml"
    file.write_text("slotz = 4\n")
    with pytest.raises(InvalidSetting, match=r"slotz in .*a\.toml.*Did you mean slots\?"):
        load({}, file)
    file.write_text("[server]\nport = 1\n")
    with pytest.raises(InvalidSetting, match="server in"):
        load({}, file)
    file.write_text("qqqqqq = 1\n")
    with pytest.raises(InvalidSetting) as refused:
        load({}, file)
    assert all(name in refused.value.message for name in NAMES)


WRONG = [
    ("slots", 0),
    ("slots", 65),
    ("slots", "many"),
    ("slots", 1.5),
    ("slots", True),
    ("slots", [4]),
    ("ctx", -1),
    ("ctx", 10**30),
    ("threads", 0),
    ("kv", "q4_0"),
    ("kv", "F16"),
    ("flash_attention", "perhaps"),
    ("gpu_layers", -2),
    ("port", 65_536),
    ("port", False),
    ("api_key", ""),
    ("api_key", 12345),
    ("model", ""),
    ("host", ""),
    ("deadline_s", 0),
    ("deadline_s", -1),
]


@pytest.mark.parametrize(("name", "value"), WRONG)
def test_a_wrong_value_says_where_it_stands(
    name: str, value: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if (isinstance(value, int) and abs(value) < 1 << 63) or not isinstance(value, int):
        file = tmp_path / "a.toml"
        file.write_text(toml(**{name: value}))
        with pytest.raises(InvalidSetting, match=rf"^{name} in .*a\.toml: .*not possible") as refused:
            load({}, file)
        assert refused.value.param == name
    flag = "--" + name.replace("_", "-")
    with pytest.raises(InvalidSetting, match=f"^{flag}: .*not possible"):
        load({name: value})
    if not isinstance(value, (bool, list)) and name != "api_key":
        variable = "MEDGE_" + name.upper()
        monkeypatch.setenv(variable, str(value))
        with pytest.raises(InvalidSetting, match=f"^environment variable {variable}: .*not possible"):
            load({})


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
@pytest.mark.parametrize("name", [n for n in NAMES if Settings.model_fields[n].annotation is float])
def test_a_time_is_a_number(name: str, value: str, tmp_path: Path) -> None:
    file = tmp_path / "a.toml"
    file.write_text(f"{name} = {value}\n")
    with pytest.raises(InvalidSetting, match=f"^{name} in"):
        load({}, file)


def test_more_threads_than_can_run_are_refused_with_a_better_number() -> None:
    with pytest.raises(InvalidSetting, match=rf"^--threads: 1000 threads .*Take {default_threads()}\."):
        load({"threads": 1000})


@pytest.mark.parametrize("text", [b"slots = ", b"\xff\xfe", b"slots = 1\nslots = 2\n", b"{}", b"\x00"])
def test_a_broken_file_is_refused(text: bytes, tmp_path: Path) -> None:
    file = tmp_path / "broken.toml"
    file.write_bytes(text)
    with pytest.raises(InvalidSetting, match=r"broken\.toml is not valid TOML"):
        load({}, file)


def test_a_file_that_was_named_has_to_be_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InvalidSetting, match=r"none\.toml cannot be read: No such file"):
        load({}, tmp_path / "none.toml")
    with pytest.raises(InvalidSetting, match="cannot be read"):
        load({}, tmp_path)
    monkeypatch.setenv("MEDGE_CONFIG", str(tmp_path / "none.toml"))
    with pytest.raises(InvalidSetting, match=r"none\.toml cannot be read"):
        load({})


def test_where_the_file_is_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(path: Path, port: int) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(toml(port=port))
        return path

    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("USERPROFILE", str(tmp_path / "home"))
    monkeypatch.delenv("XDG_CONFIG_HOME")
    assert load({}).port == 8080
    write(tmp_path / "home/.config/medge/config.toml", 1001)
    assert load({}).port == 1001
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "xdg"))
    assert load({}).port == 8080
    write(tmp_path / "xdg/medge/config.toml", 1002)
    assert load({}).port == 1002
    monkeypatch.setenv("MEDGE_CONFIG", str(write(tmp_path / "variable.toml", 1003)))
    assert load({}).port == 1003
    assert load({}, write(tmp_path / "flag.toml", 1004)).port == 1004
