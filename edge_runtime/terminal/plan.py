"""A memory plan for people: the parts as a table with bars, and what would take less."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from ..device.plan import Budget, Plan, mib

WIDTH = 40
COLORS = ("blue", "cyan", "green", "yellow", "magenta")


def plan_table(plan: Plan, room: Budget) -> Table:
    """Each part's bar begins where the last one's ends."""
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(justify="right")
    table.add_column(no_wrap=True)
    begin = 0
    for (name, size), color in zip(plan.parts.items(), COLORS):
        if size:
            first, last = (round(n / plan.total_bytes * WIDTH) for n in (begin, begin + size))
            bar = Text(" " * first).append("█" * (last - first) or "▏", color)
            table.add_row(name, mib(size), bar)
        begin += size
    share = f"{plan.total_bytes / room.memory_bytes:.1%} of what is free" if room.memory_bytes else ""
    table.add_row("together", mib(begin), share)
    table.add_row("free", mib(room.memory_bytes), "")
    if plan.gpu_bytes:
        table.add_row("on the GPU", mib(plan.gpu_bytes), "")
    return table


def rung_table(less: Sequence[tuple[str, Plan]], room: Budget) -> Table:
    """What would be given up, and what it would take then, down to the first that fits."""
    table = Table("settings", "takes", "", box=None, pad_edge=False)
    for what, plan in less:
        fits = room.has_room_for(plan)
        table.add_row(what, mib(plan.total_bytes), "[green]fits; --fit takes it[/]" if fits else "")
        if fits:
            return table
    table.add_row("a smaller model, or other programs ended", "", "")
    return table
