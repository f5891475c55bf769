"""What all commands share: flags made from the settings, errors as sentences, text that was typed."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NoReturn, Optional, get_args, get_origin

import typer
from rich.console import Console
from rich.markup import escape

from ..config import Settings, load
from ..errors import InvalidSetting, MedgeError

out = Console()
err = Console(stderr=True)

ENGINE_SETTINGS = ("model", "ctx", "threads", "kv", "flash_attention", "gpu_layers", "fit", "template_folder")
Config = Annotated[
    Optional[Path],  # noqa: UP045 - typer reads it at run time, on 3.10 too
    typer.Option("--config", help="TOML file with settings, the same names as the flags."),
]
Json = Annotated[bool, typer.Option("--json", help="One JSON object instead of text for people.")]


def with_settings(*names: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command one flag for each named setting, and call it with `settings`.

    The flags are made from the fields of `Settings`, so that each is described in one place.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = [
            p
            for name, p in inspect.signature(command, eval_str=True).parameters.items()
            if name != "settings"
        ]

        def run(config: Path | None = None, **given: Any) -> None:
            flags = {name: given.pop(name) for name in names}
            with errors_as_sentences():
                command(settings=load(flags, config), **given)

        parameters = [*own, *(_flag(name) for name in names)]
        parameters.append(
            inspect.Parameter("config", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Config)
        )
        keyword = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in parameters]
        run.__signature__ = inspect.Signature(keyword)  # type: ignore[attr-defined]
        run.__annotations__ = {p.name: p.annotation for p in keyword}
        run.__doc__, run.__name__ = command.__doc__, command.__name__
        return run

    return decorate


def _flag(name: str) -> inspect.Parameter:
    field = Settings.model_fields[name]
    kind: Any = field.annotation
    if get_origin(kind) is not None and type(None) in get_args(kind):
        kind = next(a for a in get_args(kind) if a is not type(None))
    text = field.description or ""
    if choices := get_args(kind):  # a Literal
        metavar = "|".join(str(c) for c in choices)
    else:
        metavar = {int: "INTEGER", float: "NUMBER"}.get(kind, "TEXT")
    if field.default_factory is None and field.default is not None:
        shown = ("on" if field.default else "off") if kind is bool else field.default
        text += f" Default: {shown}."
    option = "--" + name.replace("_", "-")
    names = [f"{option}/--no-{option[2:]}"] if kind is bool else [option]
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[
            # As text: `Settings` checks flags, environment and file alike, and says what is wrong.
            Optional[bool if kind is bool else str],  # noqa: UP045
            typer.Option(*names, help=text, metavar=None if kind is bool else metavar, show_default=False),
        ],
    )


class errors_as_sentences:
    """Turns an error of ours into one sentence on stderr and exit status 1."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, _: object) -> None:
        if isinstance(error, MedgeError):
            fail(error)
        if isinstance(error, KeyboardInterrupt):
            raise typer.Exit(130) from None


def fail(error: MedgeError) -> NoReturn:
    err.print(f"[bold red]medge:[/] {escape(error.message)}", highlight=False, soft_wrap=True)
    raise typer.Exit(2 if isinstance(error, InvalidSetting) else 1) from None


def as_text(typed: str) -> str:
    """What was typed, as text; bytes that are no UTF-8 are refused, not replaced."""
    return decoded(typed.encode("utf-8", "surrogateescape"))


def decoded(question: bytes) -> str:
    try:
        return question.decode("utf-8-sig")  # a byte order mark is what PowerShell puts before a pipe
    except UnicodeDecodeError:
        raise InvalidSetting(
            "The question is not valid UTF-8; check the terminal's encoding, or pipe it in as UTF-8."
        ) from None
