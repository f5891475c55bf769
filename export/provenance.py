"""Where a model comes from: name, licence, languages, base and adapter, for the GGUF and the card."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
from huggingface_hub import metadata_load

from . import hub
from .card import sha256
from .errors import InvalidBase
from .merge import WEIGHTS, Adapter

# Written as NaN with the weights, which come first, and filled in when the gates have passed.
MEASURED = ("parity.top1", "parity.mean_kl", "retention.perplexity_ratio", "retention.mean_kl")
PREFIX = "medge.export."


@dataclass(frozen=True)
class Provenance:
    """What is known of a model's origin.

    Attributes:
        base: the base's name; on the hub "organization/name".
        license: an SPDX expression, or what the base's card says.
        adapter: name of the adapter's folder, and the SHA-256 of its weights.
    """

    base: str
    license: str | None = None
    languages: tuple[str, ...] = ()
    adapter: str | None = None
    adapter_sha256: str | None = None

    @property
    def name(self) -> str:
        base = self.base.rpartition("/")[2]
        return f"{base} + {self.adapter}" if self.adapter else base

    def write(self, writer: gguf.GGUFWriter) -> None:
        """Add GGUF's `general` metadata, and the places of what will be measured."""
        writer.add_type(gguf.GGUFType.MODEL)
        writer.add_name(self.name)
        if self.license:
            writer.add_license(self.license)
        if self.languages:
            writer.add_languages(list(self.languages))
        organization, _, base = self.base.rpartition("/")
        writer.add_base_model_count(1)
        writer.add_base_model_name(0, base)
        if organization:
            writer.add_base_model_organization(0, organization)
            writer.add_base_model_repo_url(0, f"https://huggingface.co/{self.base}")
        if self.adapter:
            writer.add_finetune(self.adapter)
            writer.add_string(f"{PREFIX}adapter_sha256", self.adapter_sha256 or "")
        for name in MEASURED:
            writer.add_float32(PREFIX + name, float("nan"))


def read_provenance(
    folder: Path, config: dict[str, Any], hub_name: str | None, adapter: Adapter | None
) -> Provenance:
    """From a model folder's card (README.md) and config.

    Args:
        hub_name: if the folder was fetched from there.

    Raises:
        InvalidBase: the card's front matter is no YAML.
    """
    try:
        card = metadata_load(folder / "README.md") or {}
    except OSError:
        card = {}
    except ValueError as error:
        raise InvalidBase(f"{folder / 'README.md'}: its front matter cannot be read ({error}).") from None
    language = card.get("language") or ()
    license = card.get("license_name") if card.get("license") == "other" else card.get("license")
    given = str(config.get("_name_or_path") or folder.name)
    return Provenance(
        # A path is where it lay on the machine that trained it, which is nobody's business.
        hub_name or (given if hub.NAME.fullmatch(given) else Path(given).name),
        str(license) if license else None,
        (language,) if isinstance(language, str) else tuple(map(str, language)),
        adapter.folder.name if adapter else None,
        sha256(adapter.folder / WEIGHTS) if adapter else None,
    )


def stamp(path: Path, values: dict[str, float]) -> None:
    """Fill in what was measured, in place: see MEASURED."""
    reader = gguf.GGUFReader(path, "r+")
    for name, value in values.items():
        field = reader.fields[PREFIX + name]
        field.parts[field.data[0]][0] = value
    reader.data.flush()


def stamped(path: Path) -> dict[str, float]:
    """What `stamp` wrote."""
    fields = gguf.GGUFReader(path).fields
    return {name: float(fields[PREFIX + name].contents()) for name in MEASURED if PREFIX + name in fields}
