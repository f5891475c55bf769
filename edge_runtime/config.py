"""Every setting once: a field is flag, environment variable, TOML key, help text and check.

`--kv q8_0`, `MEDGE_KV=q8_0` and `kv = "q8_0"` mean the same. A flag wins over the environment, and that over
the file. Unknown names are refused.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from .device.machine import default_threads, usable_cores
from .errors import InvalidSetting

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PREFIX = "MEDGE_"
# Variables that are no settings of a command: the file to read, the folders for prepared models and records.
OTHER_VARIABLES = frozenset({"MEDGE_CONFIG", "MEDGE_CACHE", "MEDGE_STATE"})


class Settings(BaseModel):
    """All settings with their defaults."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str | None = Field(
        None,
        min_length=1,
        description="GGUF file, or OWNER/REPOSITORY[:FILE] on the hub. Without it: the embedded model.",
    )
    slots: int = Field(4, ge=1, le=64, description="Requests answered at the same time.")
    ctx: int = Field(2048, ge=64, le=1 << 20, description="Tokens a slot holds, prompt and answer together.")
    threads: int = Field(
        default_factory=default_threads,
        ge=1,
        le=1024,
        description="Threads at most; fewer are used while other programs need the cores. "
        "Default: the physical cores.",
    )
    kv: Literal["f16", "q8_0"] = Field("f16", description="Type of the KV memory. q8_0 takes half the room.")
    flash_attention: bool = Field(True, description="Use flash attention where the model allows it.")
    gpu_layers: int = Field(
        -1,
        ge=-1,
        le=10_000,
        description="Layers to put on a GPU; -1 for all that there is room for.",
    )
    prefix_tokens: int = Field(
        1024,
        ge=0,
        le=1 << 20,
        description="KV memory for prompts that requests have in common, in tokens.",
    )
    prefix_disk_mb: int = Field(
        256,
        ge=0,
        le=1 << 20,
        description="Disk space for what templates begin with, so that it is read only once; 0 for none.",
    )
    batch: int = Field(256, ge=32, le=4096, description="Tokens of one step at most. Fewer take less memory.")
    fit: bool = Field(
        False, description="Where there is too little memory, take less of what is needed, and say of what."
    )
    records: bool = Field(
        True, description="Write a line for each request: times and counts, no text. medge stats reads them."
    )
    queue: int = Field(
        64, ge=0, le=10_000, description="Requests that may wait for a slot; more get status 429."
    )
    step_limit_ms: float = Field(
        100.0, ge=1, le=60_000, description="How long answers may pause while prompts are read."
    )
    deadline_s: float = Field(600.0, gt=0, le=86_400, description="Give up on a request after this time.")
    template_folder: Path | None = Field(
        None, description="Folder with templates of your own: they add to the built-in ones or replace them."
    )
    host: str = Field(
        "127.0.0.1", min_length=1, description="Address to listen on. All but loopback need --api-key."
    )
    port: int = Field(8080, ge=0, le=65_535, description="Port to listen on; 0 takes a free one.")
    api_key: str | None = Field(
        None, min_length=1, description="Key that clients must send: Authorization: Bearer KEY."
    )
    allow_host: str | None = Field(
        None,
        description="More names, separated by commas, that the Host header may have. "
        "Loopback names and --host always may.",
    )
    allow_origin: str | None = Field(
        None, description="Origin of a web page elsewhere that may call the API (CORS)."
    )
    max_body_mb: float = Field(2.0, gt=0, le=1024, description="Largest request body in MB.")
    body_timeout_s: float = Field(
        30.0, gt=0, le=3600, description="Time a client has to send or take its data."
    )
    hang_timeout_s: float = Field(
        60.0, gt=0, le=3600, description="Restart the engine when it is silent for this long."
    )
    grace_s: float = Field(20.0, ge=0, le=3600, description="On Ctrl-C: time for running answers to finish.")

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        # pydantic would take `slots = true` of a TOML file for 1.
        if isinstance(value, bool) and cls.model_fields[info.field_name or ""].annotation is not bool:
            raise PydanticCustomError("not_bool", "input should not be true or false")
        return value


def user_folder(variable: str, xdg: str, default: str) -> Path:
    """A folder for what medge itself writes.

    Args:
        variable: the environment variable that names it as it is.
        xdg: the one that names the folder of all programs, on Windows LOCALAPPDATA.
        default: that folder, below the user's home.
    """
    if chosen := os.environ.get(variable):
        return Path(chosen)
    base = os.environ.get(xdg) or (os.environ.get("LOCALAPPDATA") if sys.platform == "win32" else None)
    return (Path(base) if base else Path.home() / default) / "medge"


def state_dir() -> Path:
    """Where records and profiles are kept: $MEDGE_STATE, or the user's state folder."""
    return user_folder("MEDGE_STATE", "XDG_STATE_HOME", ".local/state")


def load(flags: Mapping[str, Any], config: Path | None = None) -> Settings:
    """Settings from flags, environment and file.

    Args:
        flags: values by field name; None means that the flag was not given.
        config: the TOML file; None looks for $MEDGE_CONFIG, then for medge/config.toml in the user's
            configuration folder.

    Raises:
        InvalidSetting: a name that does not exist, or a value out of range; with where it was found.
    """
    values: dict[str, Any] = {}
    origin: dict[str, str] = {}
    layers = [_file_layer(config), _environment_layer(), _flag_layer(flags)]
    for layer in layers:
        for name, (value, where) in layer.items():
            values[name], origin[name] = value, where
    try:
        settings = Settings(**values)
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0])
        raise InvalidSetting(
            f"{origin.get(name, name)}: {first['input']!r} is not possible: {_lower(first['msg'])}. "
            f"{Settings.model_fields[name].description}",
            name,
        ) from None
    if settings.threads > 4 * usable_cores():
        raise InvalidSetting(
            f"{origin.get('threads', 'threads')}: {settings.threads} threads on {usable_cores()} cores "
            f"would only wait for each other. Take {default_threads()}.",
            "threads",
        )
    return settings


def _flag_layer(flags: Mapping[str, Any]) -> dict[str, tuple[Any, str]]:
    return {
        name: (value, "--" + name.replace("_", "-")) for name, value in flags.items() if value is not None
    }


def _environment_layer() -> dict[str, tuple[Any, str]]:
    layer = {}
    for variable, value in os.environ.items():
        if not variable.startswith(PREFIX) or variable in OTHER_VARIABLES:
            continue
        name = variable[len(PREFIX) :].lower()
        if name not in Settings.model_fields or variable != variable.upper():
            raise InvalidSetting(_unknown(variable, f"environment variable {variable}", PREFIX), name)
        layer[name] = (value, f"environment variable {variable}")
    return layer


def _file_layer(config: Path | None) -> dict[str, tuple[Any, str]]:
    path = config or (Path(os.environ["MEDGE_CONFIG"]) if os.environ.get("MEDGE_CONFIG") else None)
    if path is None:
        base = os.environ.get("XDG_CONFIG_HOME")
        path = (Path(base) if base else Path.home() / ".config") / "medge" / "config.toml"
        if not path.is_file():
            return {}
    try:
        table = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise InvalidSetting(f"The settings file {path} cannot be read: {error.strerror}.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidSetting(f"The settings file {path} is not valid TOML: {error}.") from None
    layer = {}
    for name, value in table.items():
        if name not in Settings.model_fields:
            raise InvalidSetting(_unknown(name, f"{name} in {path}", ""), name)
        layer[name] = (value, f"{name} in {path}")
    return layer


def _unknown(name: str, where: str, prefix: str) -> str:
    from difflib import get_close_matches

    names = [prefix + (n.upper() if prefix else n) for n in Settings.model_fields]
    close = get_close_matches(name.upper() if prefix else name.lower(), names, 1)
    hint = f"Did you mean {close[0]}?" if close else f"There are: {', '.join(names)}."
    return f"{where} is not a setting. {hint}"


def _lower(message: str) -> str:
    return message[:1].lower() + message[1:]
