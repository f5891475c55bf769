"""What the engine and the embedder share: a model, threads that give way, and a sleep until there is work."""

from __future__ import annotations

import threading
from contextlib import ExitStack

from ..device.governor import ThreadGovernor
from .llama import Model


class Loop:
    """One thread steps; `wait` and `wake` may be called from any thread.

    Subclasses say when they are `busy`.
    """

    def __init__(self, model: Model, n_threads: int) -> None:
        self.model = model
        self._closing = ExitStack()
        self._closing.callback(model.close)
        self._governor = ThreadGovernor(n_threads)
        self._n_threads = n_threads
        self._wake = threading.Event()

    @property
    def busy(self) -> bool:
        """Whether there is something to do."""
        raise NotImplementedError

    def wake(self) -> None:
        """Make a `wait` that is going on return."""
        self._wake.set()

    def wait(self, timeout_s: float) -> bool:
        """Sleep until there is something to do. False if the time ran out first."""
        if self.busy:
            return True
        woken = self._wake.wait(timeout_s)
        self._wake.clear()
        return woken

    def _adapt_threads(self) -> None:
        n = self._governor.threads()
        if n != self._n_threads:
            self._n_threads = n
            self.model.set_threads(n)
