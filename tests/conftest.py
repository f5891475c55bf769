"""What many tests share: the tiny model, written once, and the embedded one where it is installed."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import gguf
import huggingface_hub.constants
import huggingface_hub.hf_api
import pytest

from tests import tiny_gguf
from tests.hub import Hub

# A shell starts what it runs in the background with Ctrl-C ignored, and every child would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Servers that tests start record their requests; not among the user's own.
os.environ["MEDGE_STATE"] = tempfile.mkdtemp(prefix="medge-state-")
# Nor do they read beginnings that no test asked for.
os.environ["MEDGE_PREFIX_DISK_MB"] = "0"


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model of half a megabyte; heads of 32, so that q8_0 KV is possible."""
    return tiny_gguf.write(tmp_path_factory.mktemp("tiny") / "tiny.gguf", n_head=2, n_head_kv=1)


@pytest.fixture(scope="session")
def tiny_mean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same weights as an embedding model."""
    path = tmp_path_factory.mktemp("mean") / "tiny-mean.gguf"
    return tiny_gguf.write(path, n_head=2, n_head_kv=1, pooling=gguf.PoolingType.MEAN)


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder that was trained for 128 tokens; the first one's vector is the text's."""
    return tiny_gguf.write_bert(tmp_path_factory.mktemp("bert") / "tiny-bert.gguf")


@pytest.fixture(scope="session")
def embedded() -> Path:
    """The embedded model, prepared for this machine."""
    from edge_runtime.models import embedded

    return embedded.prepare()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Quick tests first: a mistake should show in seconds."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is not None)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """The hub that huggingface_hub talks to, with a cache of its own."""
    server = Hub()
    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.setattr(huggingface_hub.hf_api.api, "endpoint", server.url)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.url + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    yield server
    server.close()
