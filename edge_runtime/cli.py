"""The program `medge`. Each command imports what it needs when it is called, so that --help is quick."""

from __future__ import annotations

import io
import os
import sys
from typing import Annotated

import typer

from . import __version__
from .commands import asking, examining, facts, serving
from .commands.options import out

app = typer.Typer(
    name="medge",
    help="A medical language model on machines without internet.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False,
) -> None:
    if version:
        out.print(f"medge {__version__}", highlight=False)
        raise typer.Exit()


for command in (serving.serve, asking.ask, asking.chat, facts.info, facts.plan, facts.classify, facts.stats):
    app.command()(command)
app.command("eval")(examining.evaluate)
app.add_typer(facts.templates, name="templates")


def main() -> None:
    if isinstance(sys.stdout, io.TextIOWrapper):  # an answer may have letters that the terminal has not
        sys.stdout.reconfigure(errors="replace")
    try:
        app()
    except BrokenPipeError:  # medge ask ... | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(1)


if __name__ == "__main__":
    main()
