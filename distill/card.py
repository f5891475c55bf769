"""The card beside a trained model: what it is, what it learned from, and what it is not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from huggingface_hub import metadata_save

from .config import Model
from .data import Row, languages

LIMITS = """\
## Limits

Not a medical device, and no advice for a patient. It was measured on the rows named above and nothing else;
text of the sources can be old or wrong, and the model can be wrong where they are right.
"""


def write(folder: Path, name: str, given: Model, rows: Iterable[Row], facts: dict[str, Any]) -> None:
    """Write README.md into a trained model's folder.

    Args:
        facts: of the run, as run.json has them.
    """
    rows = list(rows)
    base = given.published_as or given.base
    credits = Counter((row.source or "unnamed", row.license or "not stated") for row in rows)
    lines = [f"# {name}", "", f"{_what(given)} {base}, trained on medical questions and answers.", ""]
    if given.distillation:
        taught = given.distillation
        lines += [
            f"Taught by {taught.teacher}: {taught.divergence} on its top {taught.top_k} tokens at "
            f"temperature {taught.temperature:g}, weight {taught.weight:g}.",
            "",
        ]
    lines += ["## Trained on", "", "| source | licence | rows |", "| --- | --- | --: |"]
    lines += [f"| {source} | {license} | {n:,} |" for (source, license), n in sorted(credits.items())]
    before, after = facts["development_loss_before"], facts["development_loss"]
    if before and after:
        lines += [
            "",
            f"Loss on development rows: {before:.3f} before, {after:.3f} after, nats per answer token.",
        ]
    (folder / "README.md").write_text("\n".join([*lines, "", LIMITS]), "utf-8")
    metadata = {"base_model": base, "tags": ["medical", given.method], "language": languages(rows)}
    metadata_save(folder / "README.md", metadata)


def _what(given: Model) -> str:
    if given.method == "full":
        return "All weights of"
    targets = given.lora.targets if isinstance(given.lora.targets, str) else ", ".join(given.lora.targets)
    return f"A LoRA adapter (rank {given.lora.rank}, {targets}, layers {given.lora.layers}) for"
