"""What a user names becomes one checked file, or one sentence. The hub is a server on this machine."""

from __future__ import annotations

from pathlib import Path

import huggingface_hub.constants
import pytest

from edge_runtime.errors import InvalidModel
from edge_runtime.models import gguf, store
from tests.hub import Hub


@pytest.fixture
def model(tiny: Path) -> bytes:
    return tiny.read_bytes()


def refusal(name: str) -> str:
    with pytest.raises(InvalidModel) as refused:
        store.find(name)
    assert "\n" not in refused.value.message
    return refused.value.message


# -- paths


def test_a_path(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = store.find(str(tiny))
    assert (found.path, found.name, found.demo) == (tiny, "tiny", False)
    assert found.header == gguf.read(tiny)
    monkeypatch.setenv("HOME", str(tiny.parent))
    monkeypatch.setenv("USERPROFILE", str(tiny.parent))
    assert store.find("~/tiny.gguf").path == tiny


def test_a_path_that_looks_like_a_name_on_the_hub(
    tiny: Path, tmp_path: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "owner").mkdir()
    (tmp_path / "owner/model").write_bytes(tiny.read_bytes())
    monkeypatch.chdir(tmp_path)
    assert store.find("owner/model").name == "model"
    assert not hub.asked


@pytest.mark.parametrize(
    "name",
    [
        "none.gguf",
        "folder/none.gguf",
        "folder/NONE.GGUF",
        "../folder/x",
        "./x",
        "/a/b",
        "~no such user/x",
        "a" * 300,
        "a/b/c",
        "a\0b",
    ],
)
def test_what_can_only_be_a_path_is_not_looked_for_on_the_hub(name: str, hub: Hub) -> None:
    refusal(name)
    assert not hub.asked


# -- the hub


def test_a_download_is_a_checked_file(hub: Hub, model: bytes) -> None:
    hub.repositories["clinic/tiny"] = {"README.md": b"hello", "tiny-Q4_0.gguf": model}
    said: list[str] = []
    found = store.find("clinic/tiny", said.append)
    assert found.path.read_bytes() == model
    assert found.name == "tiny-Q4_0" and not found.demo
    assert found.header == gguf.read(found.path)
    assert said == ["Looking for clinic/tiny on the hub"]


def test_a_header_alone(hub: Hub, model: bytes) -> None:
    hub.repositories["clinic/tiny"] = {"tiny-Q4_0.gguf": model + bytes(40 << 20)}
    found = store.find("clinic/tiny", header_only=True)
    assert found.header.tensors == gguf.read(store.find("clinic/tiny").path).tensors
    assert hub.sent == 2 << 20 and found.header.file_bytes == len(model) + (40 << 20)
    assert found.path.stat().st_blocks * 512 < 4 << 20, "the rest is a hole"


def test_a_header_that_is_none(hub: Hub) -> None:
    hub.repositories["clinic/m"] = {"m-Q4_0.gguf": b"<html>"}
    with pytest.raises(InvalidModel, match=r"m-Q4_0\.gguf"):
        store.find("clinic/m", header_only=True)


def test_the_second_time_nothing_is_downloaded(hub: Hub, model: bytes) -> None:
    hub.repositories["clinic/tiny"] = {"tiny-Q4_0.gguf": model}
    first = store.find("clinic/tiny")
    hub.asked.clear()
    assert store.find("clinic/tiny").path == first.path
    assert not [line for line in hub.asked if line.startswith("GET") and "resolve" in line]


def test_what_was_downloaded_serves_without_internet(hub: Hub, model: bytes) -> None:
    hub.repositories["clinic/tiny"] = {"a/tiny-Q4_0.gguf": model, "tiny-Q8_0.gguf": model}
    first = store.find("clinic/tiny")
    hub.close()
    assert store.find("clinic/tiny").path == first.path
    assert store.find("clinic/tiny:a/tiny-Q4_0.gguf").path == first.path
    assert "no files for 'Q8_0'" in refusal("clinic/tiny:Q8_0")


@pytest.mark.parametrize(
    ("asked", "file"),
    [
        ("", "m-Q4_0.gguf"),
        (":Q8_0", "m-Q8_0.gguf"),
        (":q8_0", "m-Q8_0.gguf"),
        (":m-Q8_0.gguf", "m-Q8_0.gguf"),
        (":big/m-F16.gguf", "big/m-F16.gguf"),
        (":F16", "big/m-F16.gguf"),
    ],
)
def test_a_file_is_chosen_by_type_or_name(asked: str, file: str, hub: Hub, model: bytes) -> None:
    names = ["m-Q4_0.gguf", "m-Q8_0.gguf", "m-Q4_K_M.gguf", "big/m-F16.gguf", "m-Q4_0.txt"]
    hub.repositories["clinic/m"] = dict.fromkeys(names, model)
    assert store.find("clinic/m" + asked).path.as_posix().endswith(file)


def test_a_single_file_needs_no_name(hub: Hub, model: bytes) -> None:
    hub.repositories["clinic/m"] = {"only.GGUF": model, "config.json": b"{}"}
    assert store.find("clinic/m").name == "only"


def test_a_name_that_fits_several_files_lists_them(hub: Hub) -> None:
    hub.repositories["clinic/m"] = {"a-Q4_0.gguf": b"", "b-Q4_0.gguf": b""}
    text = refusal("clinic/m")
    assert "has 2 files" in text and "clinic/m:a-Q4_0.gguf, clinic/m:b-Q4_0.gguf" in text


def test_what_a_refusal_names_can_be_named(hub: Hub, model: bytes) -> None:
    hub.repositories["clinic/m"] = {"a-Q4_0.gguf": model, "b-Q4_0.gguf": model}
    named = refusal("clinic/m").split("Name one: ")[1].split(", ")
    assert [store.find(name).path.name for name in named] == ["a-Q4_0.gguf", "b-Q4_0.gguf"]


def test_a_name_that_fits_no_file_lists_them(hub: Hub) -> None:
    hub.repositories["clinic/m"] = {"a-Q8_0.gguf": b"", "b-F16.gguf": b""}
    for asked in ("clinic/m", "clinic/m:Q5_1", "clinic/m:c.gguf"):
        assert "has no files" in refusal(asked) and "clinic/m:b-F16.gguf" in refusal(asked)


def test_a_model_in_parts_is_not_taken_by_its_first_part(hub: Hub) -> None:
    hub.repositories["clinic/m"] = {f"m-Q4_0-0000{i}-of-00002.gguf": b"" for i in (1, 2)}
    assert "has no files" in refusal("clinic/m")


def test_a_repository_without_a_gguf(hub: Hub) -> None:
    hub.repositories["clinic/m"] = {"model.safetensors": b""}
    assert "clinic/m holds no GGUF file" in refusal("clinic/m")


def test_a_repository_that_is_not_there(hub: Hub) -> None:
    text = refusal("clinic/none")
    assert text.startswith("clinic/none is no file here") and "--model FILE.gguf" in text


def test_what_is_downloaded_is_checked(hub: Hub) -> None:
    hub.repositories["clinic/m"] = {"m-Q4_0.gguf": b"<html>"}
    assert "m-Q4_0.gguf" in refusal("clinic/m")


def test_no_hub(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.close()
    text = refusal("clinic/tiny:tiny.gguf")
    assert text.startswith("clinic/tiny:tiny.gguf is no file here") and "connection" in text
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert "clinic/tiny is no file here" in refusal("clinic/tiny")
