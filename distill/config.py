"""The one TOML file of a run: every setting once, checked before anything is loaded."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from .errors import InvalidConfig

Positive = Annotated[int, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Source(_Table):
    """A file of rows.

    Attributes:
        forms: how a multiple-choice row is asked: "letter" lists the options, "text" asks for the answer in
            words, "reason" wants the rationale first. Each gives an example of its own.
        share: of the rows, chosen by a stable hash of their id.
        repeat: how often an epoch sees each row.
    """

    file: Path
    forms: tuple[Literal["letter", "text", "reason"], ...] = ("letter",)
    share: Annotated[float, Field(gt=0, le=1)] = 1.0
    repeat: Positive = 1


class Data(_Table):
    """Which rows.

    Attributes:
        development: never trained on; the loss that stops a training, and what evaluate measures on.
        n_watched: rows of them that are looked at while training.
        general: plain text of no medicine, for what was forgotten.
        max_tokens: of an example, with its prompt.
        too_long: what to do with longer ones: refuse them all, leave them out, or cut the answer's end.
    """

    train: tuple[Source, ...] = Field(min_length=1)
    development: tuple[Source, ...] = Field(min_length=1)
    n_watched: Positive = 128
    general: tuple[Path, ...] = ()
    max_tokens: Annotated[int, Field(ge=16)] = 512
    too_long: Literal["refuse", "drop", "cut"] = "refuse"


class Traces(_Table):
    """A teacher's written answers, from an endpoint that speaks OpenAI's chat completions.

    Attributes:
        endpoint: up to and with /v1.
        api_key_env: name of the environment variable that holds the key; keys are never in this file.
        samples: asked for each question; `keep` of those that are accepted are learned.
        in_flight: requests at once.
        retries: of a request that fails in a way that may pass, with growing pauses.
        min_words, max_words: of an answer that has no key to be compared with.
    """

    endpoint: Annotated[str, Field(pattern=r"^https?://.*[^/]$")]
    model: str
    api_key_env: str | None = None
    samples: Positive = 1
    keep: Positive = 1
    in_flight: Annotated[int, Field(gt=0, le=10_000)] = 64
    retries: Annotated[int, Field(ge=0)] = 6
    timeout_s: Annotated[float, Field(gt=0)] = 600.0
    max_tokens: Positive = 4096
    temperature: Annotated[float, Field(ge=0)] = 0.6
    top_p: Annotated[float, Field(gt=0, le=1)] = 0.95
    min_words: Annotated[int, Field(ge=0)] = 5
    max_words: Positive = 1500
    max_thought_words: Positive = 4000


class Lora(_Table):
    """Which matrices get an adapter.

    Attributes:
        targets: "attention", "all", or matrices by name: q, k, v, o, gate, up, down.
        layers: "all", "last third" (half, quarter; or first …), or numbers from 0 such as "20-29".
    """

    rank: Positive = 16
    alpha: Positive = 32
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    rslora: bool = False
    targets: Literal["attention", "all"] | tuple[str, ...] = "attention"
    layers: str = "all"


class Distillation(_Table):
    """What a teacher adds to the rows.

    Attributes:
        teacher: another model of this file, or a folder or hub name with the student's tokenizer.
        weight: of the divergence from the teacher; the rest is cross-entropy with the rows.
        top_k: how many of the teacher's tokens are known at each position.
        live: run the teacher beside the student instead of reading what was cached.
    """

    teacher: str
    divergence: Literal["forward_kl", "reverse_kl", "jsd"] = "forward_kl"
    weight: Share = 0.5
    temperature: Annotated[float, Field(gt=0)] = 1.0
    top_k: Positive = 32
    live: bool = False


class Training(_Table):
    """How.

    Attributes:
        batch: examples a step, over all devices.
        micro_batch: examples a device reads at once.
        epochs: times that every row is seen; may be a fraction.
        warmup: share of the steps in which the learning rate rises.
        evaluate_every: steps between two looks at the development rows; a checkpoint is kept at each.
        patience: such looks without a better loss before the training stops; 0 never stops early.
        precision: "auto" is bfloat16 where this machine multiplies it natively, else float32.
        quantized_base: hold the frozen weights in 4 bits (bitsandbytes, on CUDA).
    """

    batch: Positive = 16
    micro_batch: Positive = 8
    epochs: Annotated[float, Field(gt=0)] = 1.0
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    warmup: Share = 0.05
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    scheduler: Literal["cosine", "linear", "constant_with_warmup"] = "cosine"
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    evaluate_every: Positive = 50
    patience: Annotated[int, Field(ge=0)] = 3
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    gradient_checkpointing: bool = False
    quantized_base: bool = False


class Shape(_Table):
    """A base's dimensions, for a plan where its config.json cannot be read."""

    layers: Positive
    hidden: Positive
    intermediate: Positive
    heads: Positive
    kv_heads: Positive
    head_dim: Positive
    vocab: Positive
    tied: bool = False
    biases: bool = False


class Machine(_Table):
    """What a plan is made for.

    Attributes:
        tflops: of a device, dense, in the training's precision.
        utilization: the share of it that training reaches.
        fsdp: weights, gradients and optimizer are spread over the devices.
        tokens_per_trace: what a teacher's answer is expected to take.
    """

    devices: Positive = 1
    memory_gb: Annotated[float, Field(gt=0)]
    tflops: Annotated[float, Field(gt=0)]
    utilization: Annotated[float, Field(gt=0, le=1)] = 0.4
    fsdp: bool = False
    tokens_per_trace: Positive = 1200


class Model(_Table):
    """One training: the base with a LoRA adapter, or with all its weights.

    Attributes:
        base: a folder in Hugging Face's form, or organization/name on the hub.
        published_as: the base's name where others know it, for the adapter's card, if `base` is a folder.
        method: "lora", or "full" for a teacher.
        traces: train on the teacher's verified answers instead of the rows' own.
    """

    base: str
    published_as: str | None = None
    method: Literal["lora", "full"] = "lora"
    lora: Lora = Lora()
    distillation: Distillation | None = None
    shape: Shape | None = None
    traces: bool = False
    training: Training = Training()


class Config(_Table):
    """All of it.

    Attributes:
        out: folder of everything that a run leaves.
        models: by name; a teacher comes before its students.
    """

    out: Path
    seed: int = 0
    data: Data
    traces: Traces | None = None
    machine: Machine | None = None
    models: dict[str, Model] = Field(min_length=1)

    @model_validator(mode="after")
    def _teachers_come_first(self) -> Config:
        names = list(self.models)
        for name, model in self.models.items():
            if not re.fullmatch(r"[\w.-]+", name):
                raise ValueError(
                    f"the name {name!r} is that of a folder: letters, digits, . _ - are possible"
                )
            if model.traces and not self.traces:
                raise ValueError(f"models.{name} learns from traces, and there is no table [traces]")
            teacher = model.distillation.teacher if model.distillation else None
            if teacher in names and names.index(teacher) >= names.index(name):
                raise ValueError(f"models.{teacher} teaches models.{name} and has to come before it")
        return self


def load(path: Path) -> Config:
    """Read and check a file. Paths in it are relative to its folder.

    Raises:
        InvalidConfig: naming the key, the value and what is possible.
    """
    try:
        given = tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise InvalidConfig(
            f"{path} does not exist; ready ones are in {Path(__file__).parent / 'configs'}."
        ) from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InvalidConfig(f"{path} is not TOML: {error}.") from None
    try:
        config = Config.model_validate(given)
    except ValidationError as error:
        # A key that is misspelled is also missing: the first is what the user sees.
        first = min(error.errors(), key=lambda found: found["type"] != "extra_forbidden")
        raise InvalidConfig(f"{path}: {_said(first)}.") from None
    return _beside(config, path.parent)


def _said(error: Any) -> str:
    key = ".".join(map(str, error["loc"])) or "the file"
    if error["type"] == "extra_forbidden":
        return f"there is no setting {key}"
    if error["type"] == "missing":
        return f"{key} is missing"
    return f"{key} is {str(error['input'])[:60]!r}: {error['msg']}"


def _beside(config: Config, folder: Path) -> Config:
    """With paths that hold from everywhere."""

    def at(path: Path) -> Path:
        return (folder / path.expanduser()).resolve()

    def sources(given: tuple[Source, ...]) -> tuple[Source, ...]:
        return tuple(source.model_copy(update={"file": at(source.file)}) for source in given)

    def name(given: str) -> str:
        # A path only if it is one: "embedded", other models' names and names on the hub stay as they are.
        return str(at(Path(given))) if (folder / Path(given).expanduser()).exists() else given

    data = config.data.model_copy(
        update={
            "train": sources(config.data.train),
            "development": sources(config.data.development),
            "general": tuple(map(at, config.data.general)),
        }
    )
    models = {}
    for key, model in config.models.items():
        update: dict[str, Any] = {"base": name(model.base)}
        if (taught := model.distillation) and taught.teacher not in config.models:
            update["distillation"] = taught.model_copy(update={"teacher": name(taught.teacher)})
        models[key] = model.model_copy(update=update)
    return config.model_copy(update={"out": at(config.out), "data": data, "models": models})
