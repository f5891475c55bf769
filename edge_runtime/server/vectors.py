"""The inputs of one embeddings request, a few at a time through the worker.

It knows neither JSON nor HTTP.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from ..engine.request import Embedded, Failed
from ..errors import DeadlineExceeded, QueueFull
from .line import Ask
from .worker import Ticket, Worker

# A list that has begun looks this often for a place in a full queue.
RETRY_S = 0.05


async def embed(worker: Worker, asks: Sequence[Ask], n_at_once: int, deadline_s: float) -> list[Embedded]:
    """The vectors of `asks`, in their order. Nothing of them goes on when this returns or is cancelled.

    Args:
        n_at_once: places of the queue that are taken at most; others get theirs in between.
        deadline_s: give up after this time.

    Raises:
        QueueFull: there is no place for the first. Later ones wait for theirs: what is done is not lost.
        DeadlineExceeded: not finished in time.
        MedgeError: one of them cannot be embedded.
    """
    found: dict[int, Embedded] = {}
    todo = iter(enumerate(asks))
    begun = False

    async def submit(ask: Ask) -> Ticket:
        nonlocal begun
        while True:
            try:
                ticket = worker.submit(ask)
            except QueueFull:
                if not begun:
                    raise
                await asyncio.sleep(RETRY_S)
            else:
                begun = True
                return ticket

    async def lane() -> None:
        for index, ask in todo:
            ticket = await submit(ask)
            try:
                async for event in ticket.events():
                    if isinstance(event, Failed):
                        raise event.error
                    if isinstance(event, Embedded):
                        found[index] = event
            finally:
                worker.cancel(ticket)

    lanes = [asyncio.create_task(lane()) for _ in range(min(n_at_once, len(asks)))]
    try:
        await asyncio.wait_for(asyncio.gather(*lanes), deadline_s)
    except asyncio.TimeoutError:
        raise DeadlineExceeded(
            f"The request was not finished after {deadline_s:g} s, its deadline; send fewer texts at once, "
            "or start the server with a larger --deadline-s."
        ) from None
    finally:
        for task in lanes:
            task.cancel()
        await asyncio.gather(*lanes, return_exceptions=True)
    return [found[i] for i in range(len(asks))]
