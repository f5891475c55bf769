"""Commands that load no model: `info`, `plan`, `templates`, `classify`, `stats`."""

from __future__ import annotations

import json
import re
import sys
import time
from pathlib import Path
from typing import Annotated, Any, Optional

import typer
from rich.markup import escape

from .. import __version__
from ..config import Settings, state_dir
from ..errors import InvalidSetting
from .loading import find_model
from .options import Json, as_text, decoded, errors_as_sentences, out, with_settings


@with_settings("model")
def info(settings: Settings, as_json: Json = False) -> None:
    """What this machine is, and what a model file is, without loading it."""
    from dataclasses import asdict

    from ..device.machine import look

    machine = look()
    model = find_model(settings)
    header = model.header
    facts = {
        "machine": asdict(machine),
        "model": {
            "name": model.name,
            "path": str(model.path),
            "architecture": header.architecture,
            "quantization": header.quantization,
            "file_bytes": header.file_bytes,
            "n_params": header.n_params,
            "n_layers": header.n_layers,
            "n_ctx_train": header.n_ctx_train,
            "n_vocab": header.n_vocab,
            "kv_bytes_per_token": header.kv_bytes_per_token("f16"),
            "embeddings": header.embeddings,
            "has_chat_template": header.chat_template is not None,
            "demo": model.demo,
        },
        "versions": _versions(),
    }
    if as_json:
        print(json.dumps(facts))
        return
    from rich.table import Table

    for title, values in facts.items():
        table = Table(title=title.capitalize(), title_justify="left", show_header=False, box=None)
        table.add_column(style="bold")
        table.add_column(overflow="fold")
        for name, value in values.items():
            table.add_row(*_for_people(name, value))
        out.print(table)
        out.print()


# -- plan


@with_settings("slots", "ctx", "kv", "prefix_tokens", "batch", "flash_attention", "gpu_layers")
def plan(
    settings: Settings,
    model: Annotated[
        Optional[str],  # noqa: UP045
        typer.Argument(help="GGUF file, or a name on the hub, of which only the header is fetched."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Whether a model fits into this machine's memory, and what would: nothing is loaded."""
    from ..device.plan import budget, facts
    from ..models.fit import given_up, ladder, plans
    from ..terminal.plan import plan_table, rung_table

    found = find_model(settings.model_copy(update={"model": model}), header_only=True)
    room, rungs = budget(), list(ladder(found.header, settings))
    made = plans(found.header, rungs, room)
    less = [(given_up(settings, rung), plan) for rung, plan in zip(rungs[1:], made[1:])]
    if as_json:
        told = {"model": found.name, "available_bytes": room.memory_bytes, **facts(made[0], room)}
        print(json.dumps(told | {"less": [{"settings": what} | facts(p, room) for what, p in less]}))
        return
    slots = "" if found.header.embeddings else f"{settings.slots} slots of "
    out.print(f"{escape(found.name)}, {slots}{found.header.context(settings.ctx):,} tokens, KV {settings.kv}")
    out.print(plan_table(made[0], room))
    if room.has_room_for(made[0]):
        out.print("[green]It fits.[/]")
    else:
        out.print("[bold red]It does not fit.[/]" + (" What takes less:" if less else ""))
        out.print(rung_table(less, room))


# -- templates

templates = typer.Typer(help="The medical prompt templates, built in and your own.", no_args_is_help=True)
Folder = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option("--folder", help="Templates of your own, which add to the built-in ones or replace them."),
]


@templates.command("list")
def list_templates(folder: Folder = None, as_json: Json = False) -> None:
    """Which templates there are, for whom, and what they take beside a question."""
    from rich.table import Table

    from ..prompts.template import load as load_templates
    from ..prompts.template import rows

    with errors_as_sentences():
        found = rows(load_templates(folder))
    if as_json:
        print(json.dumps(found))
        return
    table = Table(*found[0], box=None, pad_edge=False)
    for row in found:
        table.add_row(*map(escape, row.values()))
    out.print(table)


@templates.command("show")
def show_template(
    name: Annotated[str, typer.Argument(help="Its id.")],
    language: Annotated[str, typer.Option(help="en, es, fr or zh.")] = "en",
    folder: Folder = None,
) -> None:
    """What a template says."""
    from ..prompts.template import find as find_template
    from ..prompts.template import load as load_templates

    with errors_as_sentences():
        out.print(
            find_template(load_templates(folder), name).show(language),
            markup=False,
            highlight=False,
            soft_wrap=True,
        )


@templates.command("check")
def check_templates(files: Annotated[list[Path], typer.Argument(help="TOML files.")]) -> None:
    """Whether templates of your own can be used; a wrong one is named with its line."""
    from ..prompts.template import check

    with errors_as_sentences():
        for path in files:
            found = check(path)
            out.print(f"{found.id}, version {found.version}: {len(found.tests)} tests pass.", highlight=False)


def classify(
    question: Annotated[str, typer.Argument(help="What somebody asks; - reads it from standard input.")],
    as_json: Json = False,
) -> None:
    """Which template a question asks for, and which emergencies it speaks of. No model is needed."""
    from rich.table import Table

    from ..prompts.router import classify as classified

    with errors_as_sentences():
        found = classified(
            as_text(decoded(sys.stdin.buffer.read()) if question == "-" else question)
        ).as_json()
    if as_json:
        print(json.dumps(found, ensure_ascii=False))
        return
    table = Table(show_header=False, box=None)
    table.add_column(style="bold")
    for name, value in found.items():
        told = ", ".join(value) if isinstance(value, tuple) else str(value)
        table.add_row(name.replace("_", " "), escape(told or "none"))
    out.print(table)


# -- stats


def stats(
    since: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Only the last so many, such as 90m, 24h or 7d."),
    ] = None,
    as_json: Json = False,
) -> None:
    """What the requests of this machine cost: percentiles of all that were recorded."""
    from ..telemetry.records import percentiles, read
    from ..terminal.stats import percentile_table, summary, ttft_table

    with errors_as_sentences():
        found = read(state_dir(), time.time() - _seconds(since) if since else 0.0)
    if as_json:
        names = ("p5", "p50", "p95", "p99")
        facts = {name: dict(zip(names, values)) | {"n": n} for name, n, values in percentiles(found.records)}
        others = {"n_unreadable": found.n_unreadable, "n_other": found.n_other}
        print(json.dumps({"n": len(found.records), **others, "percentiles": facts}))
        return
    if not found.records:
        out.print(f"No request was recorded in {state_dir()} yet.", soft_wrap=True, highlight=False)
        return
    out.print(percentile_table(found))
    out.print(ttft_table(found.records))
    out.print(summary(found), highlight=False)


def _seconds(span: str) -> float:
    units = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
    if not re.fullmatch(r"\d+(\.\d+)?[smhd]", span):
        raise InvalidSetting(f"--since {span}: that is no time; write 90m, 24h or 7d.")
    return float(span[:-1]) * units[span[-1]]


def _for_people(name: str, value: Any) -> tuple[str, str]:
    label = name.removesuffix("_bytes").removeprefix("n_").replace("_", " ")
    if name.endswith("_bytes"):
        return label, f"{value / 1e6:,.0f} MB"
    if isinstance(value, bool):
        return label, "yes" if value else "no"
    if value is None or value == ():
        return label, "not available"
    if isinstance(value, (list, tuple)):
        return label, " ".join(value)
    return label, f"{value:,}" if isinstance(value, int) else escape(str(value))


def _versions() -> dict[str, str]:
    from importlib.metadata import version
    from platform import python_version

    names = ("llama_cpp_python", "fastapi", "uvicorn", "numpy")
    return {"medge": __version__, "python": python_version(), **{n: version(n) for n in names}}
