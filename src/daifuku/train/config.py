"""The configuration of a run: a TOML file, read by pydantic. Nothing in it is code, and unknown keys are refused."""

import difflib
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, ValidationError, model_validator
from pydantic.fields import FieldInfo

from daifuku.errors import InvalidRequest
from daifuku.train.sections import (
    BatchSection,
    CheckpointSection,
    ComputeSection,
    Count,
    DataSection,
    DistillSection,
    LoraSection,
    ModelSection,
    OptimiserSection,
    ParallelSection,
    ScheduleSection,
    ScratchSection,
    Section,
    Share,
    SigmaSection,
    VAESection,
    ValidationSection,
    WatchSection,
)


class TrainConfig(Section):
    """Everything about a run."""

    method: Literal["lora", "full", "scratch", "vae"]
    """lora trains small matrices beside the weights; full all weights; scratch starts from none; vae trains the VAE."""
    output: Path
    """The folder of the run; it goes on from there."""
    seed: Count = 0
    """Of everything random."""
    model: ModelSection = ModelSection()
    scratch: ScratchSection | None = None
    data: Annotated[tuple[DataSection, ...], Field(min_length=1)]
    validation: ValidationSection = ValidationSection()
    lora: LoraSection = LoraSection()
    vae: VAESection = VAESection()
    sigmas: SigmaSection = SigmaSection()
    distill: DistillSection | None = None
    """For `daifuku distill`, and needed there."""
    caption_dropout: Share = 0.1
    """Share of the samples that are shown with the sampler's empty prompt."""
    given_share: Share = 0.0
    """Share of the clips that are learnt beside given frames: the first, first and last, or the first two or three."""
    batch: BatchSection = BatchSection()
    optimiser: OptimiserSection = OptimiserSection()
    schedule: ScheduleSection = ScheduleSection()
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.999
    """Of the average that is measured, shown and shipped; 0 averages nothing."""
    compute: ComputeSection = Field(default_factory=ComputeSection)
    parallel: ParallelSection = ParallelSection()
    checkpoints: CheckpointSection = CheckpointSection()
    watch: WatchSection = WatchSection()

    @model_validator(mode="after")
    def _fits_the_method(self) -> "TrainConfig":
        if (self.method == "scratch") != (self.scratch is not None):
            raise ValueError('the table [scratch] goes with method = "scratch", and with no other')
        for table in ("lora", "vae"):
            if table in self.model_fields_set and self.method != table:
                raise ValueError(f'the table [{table}] goes with method = "{table}", and with no other')
        if self.distill is not None and self.method not in ("lora", "full"):
            raise ValueError('the table [distill] goes with method = "lora" or "full"')
        if self.compute.quantise != "none" and self.method != "lora":
            raise ValueError('compute.quantise is for the frozen weights of method = "lora": leave it out')
        return self

    def conditions(self) -> dict[str, str]:
        """What decides the result, as one flat table: all but where things lie and how the run is watched or shared."""
        watched = {"output", "parallel", "watch", "checkpoints", "validation", "data", "model"}
        return dict(_flat(self.model_dump(mode="json", exclude=watched), ""))


def read_config(path: Path) -> TrainConfig:
    """The configuration in a TOML file.

    Raises InvalidRequest naming the key, what it may be and the nearest thing that works.
    """
    return parse_config(read_toml(path), str(path))


def read_toml(path: Path) -> dict[str, Any]:
    """What a TOML file says. Raises InvalidRequest."""
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise InvalidRequest(f"the configuration {path} cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"{path} is no TOML file: {error}") from error


def parse_config(content: dict[str, Any], where: str = "the configuration") -> TrainConfig:
    """The configuration from what a file says. Raises InvalidRequest."""
    try:
        return TrainConfig.model_validate(content)
    except ValidationError as error:
        wrong = "; ".join(explained(each) for each in error.errors())
        raise InvalidRequest(f"{where}: {wrong}") from None


def explained(error: Any) -> str:
    """What pydantic found wrong with one key, in words."""
    key = ".".join(map(str, error["loc"])) or "together"
    if error["type"] == "extra_forbidden":
        known = list(_fields_at(error["loc"][:-1]))
        near = difflib.get_close_matches(str(error["loc"][-1]), known, n=1)
        return f"there is no {key}: try {near[0]}" if near else f"there is no {key}: there are {', '.join(known)}"
    message = error["msg"].removeprefix("Value error, ")
    given = "" if error["type"] in ("missing", "value_error") else f" (and not {error['input']!r})"
    return f"{key}: {message[:1].lower()}{message[1:]}{given}"


def _fields_at(place: tuple[str | int, ...]) -> dict[str, FieldInfo]:
    """The keys of the table at a place of the file."""
    section: type[BaseModel] = TrainConfig
    for key in place:
        if isinstance(key, str):
            section = sections_of(section.model_fields[key].annotation)[0]
    return section.model_fields


def sections_of(annotation: Any) -> list[type[BaseModel]]:
    """The tables that a field of this type holds."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [found for inner in getattr(annotation, "__args__", ()) for found in sections_of(inner)]


def _flat(value: Any, prefix: str) -> list[tuple[str, str]]:
    if isinstance(value, dict):
        return [pair for key, inner in value.items() for pair in _flat(inner, f"{prefix}.{key}" if prefix else key)]
    return [(prefix, str(value))]
