"""daifuku distill: a model that needs fewer passes, as a configuration says."""

from daifuku.cli.train import AllowInexact, Config, run_config
from daifuku.errors import InvalidRequest


def distill(config: Config, allow_inexact: AllowInexact = False) -> None:
    """Teach a model to need fewer passes: what it does with guidance, or in many steps, in one or in few.

    CONFIG.toml is one for `daifuku train` with a table [distill]. The teacher is the model that it starts from.
    """
    from daifuku.train.config import read_config

    settings = read_config(config)
    if settings.distill is None:
        raise InvalidRequest(f'{config} has no table [distill]: give it one, such as method = "guidance"')
    run_config(settings, allow_inexact=allow_inexact)


COMMAND = distill
