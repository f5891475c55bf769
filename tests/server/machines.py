"""The web application on a recorded machine; its engine is not started."""

from __future__ import annotations

from pathlib import Path

from fastapi import FastAPI

from edge_runtime.config import Settings
from edge_runtime.models.fit import engine_config
from edge_runtime.models.store import find
from edge_runtime.server.app import create_app
from edge_runtime.server.line import Start
from edge_runtime.server.worker import Worker
from edge_runtime.telemetry.watch import Watch


def app_on(root: Path, model: Path) -> FastAPI:
    """The application, where `root` has the machine's `sys`, `proc`, `etc` and `var`."""
    settings, found = Settings(), find(str(model))
    worker = Worker(Start(engine_config(found.header, settings), None, False), settings.slots, settings.queue)
    watch = Watch(lambda: [], root)
    watch.look()
    return create_app(worker, found, settings, machine=lambda: watch.facts)
