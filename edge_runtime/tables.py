"""A table as data, and its forms. Knows nothing of what it says."""

from __future__ import annotations

from dataclasses import dataclass

from rich.markup import escape
from rich.table import Table


@dataclass(frozen=True)
class Rows:
    """A table. The first `n_names` columns hold names, the others numbers."""

    columns: tuple[str, ...]
    rows: list[list[str]]
    n_names: int = 1


def rich_table(made: Rows) -> Table:
    table = Table(box=None, pad_edge=False, collapse_padding=True)
    for i, column in enumerate(made.columns):
        if i < made.n_names:
            table.add_column(column, overflow="fold")
        else:
            table.add_column(column, justify="right", min_width=max(len(row[i]) for row in made.rows))
    for row in made.rows:
        table.add_row(*map(escape, row))
    return table


def markdown_table(made: Rows) -> str:
    rule = ["---"] * made.n_names + ["--:"] * (len(made.columns) - made.n_names)
    lines = [made.columns, rule, *([cell.replace("|", "\\|") for cell in row] for row in made.rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
