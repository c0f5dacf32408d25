"""A clip's record: reading it, and telling where it could not give the same clip again."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

from daifuku.errors import InvalidRequest, MediaError
from daifuku.request import GenerateRequest

if TYPE_CHECKING:
    from daifuku.runtime.build import ModelInfo

RECORD_KEY = "daifuku"
"""Where a latents file keeps the record of its clip, among the metadata of the safetensors format."""


@dataclass(frozen=True, kw_only=True)
class RecordedModel:
    """Which model made a clip, and how it ran."""

    name: str
    identity: str
    device: str
    dtype: str
    revision: str | None = None
    variant: str | None = None


@dataclass(frozen=True, kw_only=True)
class Record:
    """What it takes to make a clip again."""

    request: GenerateRequest
    model: RecordedModel
    versions: Mapping[str, str]


def read_record(source: str) -> Record:
    """The record of a clip, from inside the file or from the .json beside it.

    Raises InvalidRequest where there is none, or where it does not suffice to make the clip again.
    """
    from daifuku.media.read import read_metadata

    try:
        found = read_metadata(source)
    except MediaError as error:
        raise InvalidRequest(str(error)) from error
    if found is None:
        raise InvalidRequest(
            f"{source} has no record of how it was made, and no .json stands beside it. Only a clip made by daifuku, "
            "and not converted since, can be replayed."
        )
    return parse_record(found, source)


def parse_record(found: Mapping[str, Any], source: str) -> Record:
    """Raises InvalidRequest where the record does not suffice to make the clip again."""
    if not found.get("noise_from_seed", True):
        raise InvalidRequest(f"{source} started from noise of its own, which its record does not hold.")
    if "decoded_by" in found:
        raise InvalidRequest(f"{source} was decoded by another model than it was sampled with. Replay its parent instead.")
    model = found.get("model")
    if isinstance(model, Mapping) and model.get("identity") is None:
        raise InvalidRequest(f"{source} was made by a model in memory, which no file holds.")
    try:
        known = {name: found["model"].get(name) for name in (each.name for each in fields(RecordedModel))}
        if not all(isinstance(known[name], str) for name in ("name", "identity", "device", "dtype")):
            raise TypeError
        return Record(
            request=GenerateRequest.from_dict(found["request"]),
            model=RecordedModel(**known),
            versions=dict(found.get("versions", {})),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise InvalidRequest(f"the record of {source} is not complete.") from error


def check_same_model(record: Record, info: "ModelInfo", source: str) -> None:
    """Raises InvalidRequest unless the model that was found is the one that made the clip."""
    if info.identity != record.model.identity:
        raise InvalidRequest(
            f"{source} was made by the model {record.model.name} with weights {record.model.identity}, and "
            f"{info.name} has weights {info.identity}: the clip would be another one. Where those weights have moved "
            "to another place, name it with --model."
        )


def differences(record: Record, info: "ModelInfo", versions: Mapping[str, str]) -> list[str]:
    """What is not as it was, and may change the last bits of the clip."""
    now, then = asdict(info), asdict(record.model)
    found = [f"{name} {now[name]} instead of {then[name]}" for name in ("device", "dtype") if now[name] != then[name]]
    then = record.versions
    return found + [
        f"{name} {now} instead of {then[name]}" for name, now in versions.items() if then.get(name, now) != now
    ]
