"""A clip's record: reading it, and telling where it could not give the same clip again."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from daifuku.config import RuntimeConfig
from daifuku.errors import InvalidRequest, MediaError, ModelNotFound
from daifuku.request import GenerateRequest
from daifuku.values import Loras

if TYPE_CHECKING:
    from daifuku.runtime.build import ModelInfo

LATENTS_ENDING = ".latents.safetensors"
"""What the name of a clip's latents ends in, in place of the clip's suffix."""

RECORD_KEY = "daifuku"
"""Where a latents file keeps the record of its clip, among the metadata of the safetensors format."""


@dataclass(frozen=True, kw_only=True)
class RecordedModel:
    """Which model made a clip, and how it ran."""

    name: str
    identity: str
    device: str
    revision: str | None = None
    variant: str | None = None
    loras: Sequence[str] = ()
    """Fingerprints of the LoRA files: those of the preset, then those of the request."""


@dataclass(frozen=True, kw_only=True)
class Record:
    """What it takes to make a clip again."""

    source: str
    found: Mapping[str, Any]
    """The record as it was read."""
    request: GenerateRequest
    model: RecordedModel
    runtime: RuntimeConfig


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
        raise InvalidRequest(
            f"{source} was decoded by another model than it was sampled with. Replay its parent instead."
        )
    model = found.get("model")
    if isinstance(model, Mapping) and model.get("identity") is None:
        raise InvalidRequest(f"{source} was made by a model in memory, which no file holds.")
    try:
        known = {each.name: found["model"].get(each.name, each.default) for each in fields(RecordedModel)}
        if not all(isinstance(known[name], str) for name in ("name", "identity", "device")):
            raise TypeError
        request = GenerateRequest.from_dict(found["request"])
        if len(request.loras or ()) > len(known["loras"]):
            raise TypeError
        runtime = RuntimeConfig(**found["runtime"])
        return Record(source=source, found=found, request=request, model=RecordedModel(**known), runtime=runtime)
    except (KeyError, TypeError, AttributeError) as error:
        raise InvalidRequest(f"the record of {source} is not complete.") from error


def check_same_model(record: Record, info: "ModelInfo") -> None:
    """Raises InvalidRequest unless the model that was found is the one that made the clip."""
    if info.identity != record.model.identity:
        raise InvalidRequest(
            f"{record.source} was made by the model {record.model.name} with weights {record.model.identity}, and "
            f"{info.name} has weights {info.identity}: the clip would be another one. If the old weights lie somewhere "
            "else, name that place with --model."
        )


def check_same_loras(record: Record, loras: Loras) -> None:
    """Raises InvalidRequest unless the LoRAs that act are those that the clip was made with."""
    from daifuku.weights.lora import fingerprint

    if len(loras) != len(record.model.loras):
        raise InvalidRequest(
            f"{record.source} was made with {len(record.model.loras)} LoRAs, and {len(loras)} would act now: the model "
            f"has others of its own for preset={record.request.preset!r}. Put the old model back."
        )
    for (path, _), then in zip(loras, record.model.loras, strict=True):
        try:
            now = fingerprint(path)
        except ModelNotFound as error:
            raise InvalidRequest(
                f"{record.source} was made with the LoRA {path}, and {error}. Put it back to make the clip again."
            ) from error
        if now != then:
            raise InvalidRequest(
                f"{record.source} was made with the LoRA {path} when it was {then}, and now it is {now}: the clip "
                "would be another one. Put the old file back."
            )


def differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """In what two records differ that may change the last bits of a clip: device, way of running and versions."""
    pairs = [("device", then["model"].get("device"), now["model"]["device"])]
    pairs += [(name, then["runtime"].get(name), value) for name, value in now["runtime"].items()]
    pairs += [(name, then.get("versions", {}).get(name), version) for name, version in now["versions"].items()]
    return [f"{name} is {new} instead of {old}" for name, old, new in pairs if new != old]
