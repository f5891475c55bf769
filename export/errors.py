"""What can be wrong with an export. Each message says what, the value, and the remedy."""

from __future__ import annotations


class ExportError(Exception):
    """The export cannot go on."""


class InvalidBase(ExportError):
    """The base model's folder or file is not what an export needs."""


class InvalidAdapter(ExportError):
    """The adapter is damaged, belongs to another base, or has parts that are not supported."""


class InvalidText(ExportError):
    """A calibration or evaluation file cannot be used."""


class InvalidRecipe(ExportError):
    """A recipe is wrong, or cannot be met."""


class GateFailed(ExportError):
    """What was written is not the model that it was made from."""
