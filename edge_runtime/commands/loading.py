"""From settings to a model that can be asked: found, fitted, with a worker."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from rich.markup import escape

from ..config import Settings
from .options import err

if TYPE_CHECKING:
    from ..models.store import ModelFile
    from ..server.worker import Worker


def find_model(settings: Settings, *, header_only: bool = False) -> ModelFile:
    """The model file; not within an event loop, because it may download, and Ctrl-C should end that."""
    from ..models.store import find

    with err.status("Looking for the model") as status:
        return find(settings.model, lambda text: status.update(escape(text)), header_only=header_only)


def fitting(settings: Settings, model: ModelFile) -> Settings:
    """The settings, with what was tuned for this model, or with --fit less, if there is no room for them.

    Raises:
        NotEnoughMemory: the model would not fit; nothing is loaded.
    """
    from ..models import profile
    from ..models.fit import given_up, require_room

    settings = profile.apply(model.header, settings)
    found = require_room(model.header, settings)
    if found != settings:
        err.print(f"Too little memory; taking {given_up(settings, found)}.", style="yellow", highlight=False)
    return found


def make_worker(
    settings: Settings,
    model: ModelFile,
    on_end: Callable[[Any], None] | None = None,
    beginnings: tuple[tuple[dict[str, str], ...], ...] = (),
) -> Worker:
    """The worker for settings for which there is room.

    Args:
        beginnings: see `line.Start`.
    """
    from ..models.fit import engine_config
    from ..server.line import Start
    from ..server.worker import Worker

    header = model.header
    return Worker(
        Start(engine_config(header, settings), header.chat_template, header.embeddings, beginnings),
        n_slots=settings.slots,
        max_waiting=settings.queue,
        hang_timeout_s=settings.hang_timeout_s,
        on_end=on_end,
    )


def loading_bar() -> Any:
    from rich.progress import (  # fmt: skip
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=err,
        transient=True,
    )
