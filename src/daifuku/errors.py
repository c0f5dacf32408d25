"""Every error a user can meet. A message says what happened, the limit, and the nearest thing that works."""


class DaifukuError(Exception):
    """The root of the tree: catch this to catch everything the project raises on purpose."""


class InvalidRequest(DaifukuError):
    """The request can never work as it stands; nothing was loaded or written."""


class ModelNotFound(InvalidRequest):
    """No model at that path or hub id, or a file of it is missing."""


class UnwritableOutput(InvalidRequest):
    """The output cannot be written there."""


class CheckpointError(DaifukuError):
    """A weight file is damaged, or its tensors do not make the model."""


class NonFiniteLatent(DaifukuError):
    """Sampling produced NaN or infinity; the run stops rather than write a black video."""


class NotEnoughMemory(DaifukuError):
    """A run does not fit the memory, whichever way it is computed."""


class MediaError(DaifukuError):
    """A video or image file cannot be read or written."""


class TrainingError(DaifukuError):
    """Training cannot go on: the loss is not finite, or a checkpoint does not fit."""
