"""What can be wrong with a distillation. Each message says what, the value, and the remedy."""

from __future__ import annotations


class DistillError(Exception):
    """The run cannot go on; what it has earned is kept."""


class InvalidConfig(DistillError):
    """The TOML file is wrong."""


class InvalidRows(DistillError):
    """A file of questions and answers cannot be used."""


class InvalidModel(DistillError):
    """A student or teacher cannot be used."""


class TeacherFailed(DistillError):
    """The teacher's endpoint does not give what was asked for."""
