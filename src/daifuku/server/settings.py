"""How a server is configured: flags over environment variables over a TOML file over the defaults."""

import difflib
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, EnvSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict

from daifuku.errors import InvalidRequest
from daifuku.values import either

PREFIX = "DAIFUKU_"
LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})

Host = Annotated[str, Field(pattern=r"^([a-z0-9_.-]+|\[[0-9a-f:.]+\])(:[0-9]{1,5})?$")]
"""In small letters, perhaps with a port; an IPv6 address stands in brackets."""

_DAY_S = 24 * 3600.0


class Settings(BaseSettings):
    """Everything that can be set. As an environment variable each has the prefix DAIFUKU_ and capital letters."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="forbid", frozen=True, env_parse_none_str="none")

    host: str = Field("127.0.0.1", description="Address to listen on; any but loopback needs `keys`.")
    port: int = Field(8000, ge=0, le=65535, description="0 takes any that is free.")
    data: Path = Field(Path("daifuku-data"), description="Folder of the jobs and their files.")
    model: str | None = Field(None, description="Model folder or hub id; the built-in model if not given.")
    model_name: str | None = Field(None, description="What clients call the model; its folder's name if not given.")
    revision: str | None = Field(None, description="Branch, tag or commit of a hub id.")
    variant: str | None = Field(None, description="Weights published under that name, such as bf16.")
    devices: list[str] = Field([], description="One worker for each, such as cuda:0; the fastest there is if empty.")
    device_memory: str | None = Field(None, description="Of a device, such as 12GiB; what is free if not given.")
    loras: Path | None = Field(None, description="Folder of LoRAs; a request names a file without its ending.")
    keys: Path | None = Field(None, description="TOML file of the API keys; without one everybody is let in.")
    studio: bool = Field(False, description="A page for the browser at /studio; needs daifuku[studio].")
    allowed_hosts: list[str] = Field([], description="Further names that a request's Host may have.")
    public_url: str | None = Field(None, description="Where clients reach the server, for links.")
    moderation: str | None = Field(None, description="URL or package.module:function that is asked about each prompt.")
    moderation_s: float = Field(5.0, gt=0, description="Seconds for its answer; without one nothing is accepted.")
    webhooks: Literal["off", "public"] = Field("off", description="public sends them to any public address.")
    webhook_hosts: list[Host] = Field([], description="Hosts, or host:port, that webhooks may go to in any case.")
    webhook_private: bool = Field(False, description="Whether those hosts may have private addresses.")
    webhook_secret: SecretStr | None = Field(None, description="whsec_ and base64, or a file of it; signs webhooks.")
    webhook_tries: int = Field(12, ge=1, description="Times that the end of a job is told until somebody answers 2xx.")
    webhook_retry_s: float = Field(5.0, gt=0, description="Seconds until the second time; each pause doubles.")
    webhook_s: float = Field(5.0, gt=0, description="Seconds that one webhook may take.")
    max_queue: int = Field(100, ge=1, description="Jobs that may wait.")
    max_batch: int = Field(32, ge=1, description="Requests of one batch.")
    max_work: float = Field(2e10, gt=0, description="Width x height x frames x steps of one job.")
    max_body_bytes: int = Field(2**20, ge=1024, description="Of a request.")
    max_connections: int = Field(1000, ge=1, description="At a time; more are answered 503.")
    header_s: float = Field(10.0, gt=0, description="Seconds for the head of a request to arrive.")
    body_s: float = Field(30.0, gt=0, description="Seconds for its body.")
    slow_reader_s: float = Field(30.0, gt=0, description="Seconds after which a client who takes nothing is cut off.")
    deadline_s: float = Field(6 * 3600.0, gt=0, description="Seconds that one attempt at a job may take.")
    lease_s: float = Field(30.0, gt=0, description="Seconds without a sign of life that make a worker dead.")
    cancel_s: float = Field(60.0, gt=0, description="Seconds after which a worker that does not cancel is killed.")
    checkpoint_s: float = Field(2.0, ge=0, description="Seconds of work that a crash may cost; 0 keeps every step.")
    preview_every: int = Field(4, ge=0, description="Steps between two preview pictures; 0 for none.")
    drain_s: float = Field(30.0, ge=0, description="Seconds for the running step to end after SIGTERM.")
    worker_bytes: int | None = Field(None, ge=2**28, description="Address space of a worker process.")
    keep_s: float = Field(7 * _DAY_S, gt=0, description="Seconds that files are kept.")
    keep_bytes: int = Field(50 * 2**30, ge=0, description="Bytes of files that are kept; the oldest go first.")
    sweep_s: float = Field(60.0, gt=0, description="Seconds between two looks at what is kept.")
    log_level: Literal["info", "warning"] = Field("info", description="info or warning.")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Only what `read_settings` hands over: it puts the sources in order."""
        return (init_settings,)

    @property
    def is_open(self) -> bool:
        """Whether other machines can reach the server."""
        return self.host not in LOOPBACK


def read_settings(config: Path | None, given: Mapping[str, Any]) -> Settings:
    """The settings of a server; `given` are flags. Raises InvalidRequest naming what is wrong, and where it stands."""
    environment = EnvSettingsSource(Settings)
    for name in environment.env_vars:
        if name.lower().startswith(PREFIX.lower()):
            _check_known(name.lower().removeprefix(PREFIX.lower()), f"the environment variable {name.upper()}")
    from_file = {} if config is None else _read_file(config)
    try:
        values = {**from_file, **environment(), **{name: value for name, value in given.items() if value is not None}}
        settings = Settings(**values)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        name = ".".join(str(part) for part in first["loc"])
        raise InvalidRequest(f"the setting {name} does not work: {first['msg'].lower()}.") from error
    except Exception as error:
        if isinstance(error, ValueError):
            raise InvalidRequest(f'{error}. Lists are written as JSON, such as ["cuda:0"].') from error
        raise
    if settings.is_open and settings.keys is None:
        raise InvalidRequest(
            f"host={settings.host} lets other machines in, and there are no API keys. Name a file of keys with --keys "
            "(docs/serving.md shows one), or stay with --host 127.0.0.1."
        )
    return settings


def _read_file(path: Path) -> dict[str, Any]:
    try:
        with open(path, "rb") as file:
            found = tomllib.load(file)
    except OSError as error:
        raise InvalidRequest(f"the configuration {path} cannot be read: {error.strerror}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"the configuration {path} is no TOML: {error}.") from error
    for name in found:
        _check_known(name, f"{name} in {path}")
    return found


def _check_known(name: str, shown: str) -> None:
    known = list(Settings.model_fields)
    if name not in known:
        raise InvalidRequest(f"{shown} is no setting. Try {either(difflib.get_close_matches(name, known) or known)}.")
