"""Settings of every service, read from environment variables that begin with `FEDRECON_`.

Rules:
- Names carry their unit (`drain_seconds`); everything has a default that works on one machine without configuration.
- A variable that no room knows is an error that names the nearest known one: pydantic ignores it silently.
- Variables that Kubernetes makes for a service called `fedrecon-...` (`FEDRECON_X_SERVICE_HOST`,
  `FEDRECON_X_PORT=tcp://...`) are none of ours and are ignored.
- Secrets are `SecretStr` and are never shown; a password inside a URL is masked.
- Any variable may be a file of that name in `FEDRECON_SECRETS_FOLDER`, as Compose and Kubernetes mount secrets: the
  environment, which processes pass on and show, need not hold them. The environment wins.
- Rooms subclass `Settings` in a module that imports nothing heavy, and register the class in the entry point group
  `fedrecon.settings`: the known names are the union over all rooms.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterator, Mapping
from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated, ClassVar, Literal, TypeVar, cast

from pydantic import BeforeValidator, Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_core import to_jsonable_python
from pydantic_settings import BaseSettings, EnvSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict

from fedrecon.ops.key_ring import KeyRing
from fedrecon.ops.mistakes import UserMistake
from fedrecon.ops.operators import read_operators

PREFIX = "FEDRECON_"
ENTRY_POINT_GROUP = "fedrecon.settings"
SECRETS_FOLDER = "FEDRECON_SECRETS_FOLDER"

NAMES_BESIDE_SETTINGS = frozenset({"FEDRECON_DATA"})
"""Variables that are ours and belong to no service: the folder of the public data sets."""

KEY_BYTES = 32
MASK = "********"

_SERVICE_LINK_NAME = re.compile(r"_SERVICE_(HOST|PORT(_[A-Z0-9_]+)?)$|_PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?$")
_SERVICE_LINK_VALUE = re.compile(r"^(tcp|udp|sctp)://", re.IGNORECASE)
_URL_PASSWORD = re.compile(r"(?<=://)([^/@\s:]*):[^/@\s]*@")

SettingsType = TypeVar("SettingsType", bound="Settings")


class InvalidSettings(UserMistake):
    """One or more variables are wrong.

    Attributes:
        problems: One sentence for each variable.
    """

    def __init__(self, problems: tuple[str, ...]) -> None:
        super().__init__("\n".join(problems), "`fedrecon settings` lists all names, values and meanings.")
        self.problems = problems


def _port_or_off(value: object) -> object:
    return -1 if isinstance(value, str) and value.strip().lower() in {"none", "off"} else value


Port = Annotated[int, Field(ge=0, le=65535)]
"""A TCP port; 0 lets the system choose a free one."""

OptionalPort = Annotated[int, BeforeValidator(_port_or_off), Field(ge=-1, le=65535)]
"""A TCP port, 0 for a free one, or -1 (also written `none` or `off`) for no port at all."""


class Settings(BaseSettings):
    """What all services share; rooms add their own fields in a subclass.

    Example:
        >>> Settings(log_level="debug").log_level
        'debug'
    """

    model_config: ClassVar[SettingsConfigDict] = SettingsConfigDict(
        env_prefix=PREFIX, extra="forbid", frozen=True, validate_default=False, hide_input_in_errors=True
    )

    redis_url: str = Field("", repr=False, description="Redis or Valkey of the journal; empty starts an embedded one")
    redis_durability: Literal["required", "accepted-loss"] = Field(
        "required", description="whether a Redis that may lose acknowledged writes is refused"
    )
    blobs_url: str = Field(
        "", repr=False, description="where blobs lie, for example s3://bucket/prefix; empty is a folder in home"
    )
    blobs_grace_hours: float = Field(
        24.0, ge=1, description="age below which no blob is removed; inference refreshes in time what it serves"
    )
    home: Path = Field(Path("./.fedrecon"), description="folder of the local stack")
    secrets_folder: Path | None = Field(
        None, description="folder of files that are called like variables and hold their values, such as /run/secrets"
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="least level that is logged")
    log_format: Literal["auto", "json", "console"] = Field(
        "auto", description="form of log lines; auto is console on a terminal and json elsewhere"
    )
    host: str = Field("127.0.0.1", min_length=1, description="address on which ports are opened")
    metrics_port: OptionalPort = Field(0, description="port of /metrics; 0 for a free one, none for no metrics")
    traces_url: str = Field(
        "", description="collector of OpenTelemetry traces, OTLP over gRPC: http://host:4317; empty: none are made"
    )
    tls: Literal["required", "off"] = Field(
        "required", description="off: plaintext by word, also beyond this machine; `fedrecon up` makes no certificates"
    )
    tls_certificate: Path | None = Field(None, description="PEM file of this service's certificate chain")
    tls_key: Path | None = Field(None, description="PEM file of this service's private key")
    tls_client_authority: Path | None = Field(None, description="PEM file of who signs clients: they must be known")
    tls_server_authority: Path | None = Field(None, description="PEM file of who signs the services that are called")
    seal_key: SecretStr = Field(SecretStr(""), description="64 hex digits: seals snapshots and staged updates on disk")
    round_token_key: SecretStr = Field(
        SecretStr(""),
        description="64 hex digits, the same for all services: makes tokens and session keys, and proves who calls",
    )
    round_token_old_keys: SecretStr = Field(
        SecretStr(""), description="keys of that kind that are still accepted, with commas between: see key rotation"
    )
    ledger_key: SecretStr = Field(
        SecretStr(""), description="64 hex digits, never replaced: names devices in ledgers; empty: the round token key"
    )
    enrolment: Literal["required", "off"] = Field(
        "required", description="whether only enrolled devices are heard, and only calls that they prove"
    )
    operators: str = Field("", description="who may call Admin: NAME:viewer|operator|admin:SHA256 of the token, commas")
    operator_token: SecretStr = Field(SecretStr(""), description="token by which commands are known to Admin")
    tls_service_names: str = Field(
        "", description="common names of certificates that are services', with commas, under mutual TLS"
    )
    address_calls_per_second: float = Field(
        1000.0,
        ge=0,
        description="calls from one address in the long run, ten seconds' worth at once; 0: any number, behind a proxy",
    )
    drain_seconds: float = Field(25.0, ge=0, le=3600, description="time that running calls have to end at shutdown")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Read arguments, then the environment without Kubernetes' own variables, then files of secrets."""
        del settings_cls, dotenv_settings, file_secret_settings
        if isinstance(env_settings, EnvSettingsSource):
            env_settings.env_vars = {
                **{name.lower(): value for name, value in secret_variables(os.environ).items()},
                **{
                    name: value
                    for name, value in env_settings.env_vars.items()
                    if value is None or not is_service_link(name.upper(), value)
                },
            }
        return init_settings, env_settings

    @field_validator(
        "secrets_folder", "tls_certificate", "tls_key", "tls_client_authority", "tls_server_authority", mode="before"
    )
    @classmethod
    def _empty_is_none(cls, value: object) -> object:
        return value or None

    @field_validator("round_token_old_keys")
    @classmethod
    def _are_keys(cls, value: SecretStr) -> SecretStr:
        for key in filter(None, value.get_secret_value().split(",")):
            cls._is_a_key(SecretStr(key.strip()))
        return value

    @field_validator("seal_key", "round_token_key", "ledger_key")
    @classmethod
    def _is_a_key(cls, value: SecretStr) -> SecretStr:
        if re.fullmatch(rf"([0-9a-fA-F]{{{2 * KEY_BYTES}}})?", value.get_secret_value()) is None:
            raise ValueError(f"a key is {2 * KEY_BYTES} hex digits: `openssl rand -hex {KEY_BYTES}` makes one")
        return value

    @field_validator("operators")
    @classmethod
    def _are_operators(cls, value: str) -> str:
        read_operators(value)
        return value

    @field_validator("redis_url")
    @classmethod
    def _is_a_redis_url(cls, value: str) -> str:
        if value and not value.startswith(("redis://", "rediss://", "unix://")):
            raise ValueError("the address of a Redis begins with redis://, rediss:// or unix://")
        return value

    @model_validator(mode="after")
    def _certificate_has_a_key(self) -> Settings:
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ValueError("FEDRECON_TLS_CERTIFICATE and FEDRECON_TLS_KEY belong together: set both or neither")
        if self.tls_client_authority is not None and self.tls_certificate is None:
            raise ValueError("FEDRECON_TLS_CLIENT_AUTHORITY needs FEDRECON_TLS_CERTIFICATE and FEDRECON_TLS_KEY")
        return self

    @property
    def is_on_loopback(self) -> bool:
        """Whether ports are opened for this machine alone."""
        return self.host in {"localhost", "::1"} or self.host.startswith("127.")

    @property
    def accepts_loss(self) -> bool:
        """Whether the operator accepts by name that Redis may lose what it acknowledged."""
        return self.redis_durability == "accepted-loss"

    @property
    def blobs_place(self) -> str | Path:
        """Where blobs lie: an object store, or a folder in home."""
        return self.blobs_url or self.home / "blobs"

    @property
    def seal_key_bytes(self) -> bytes | None:
        """The key that seals files, 32 bytes, or None if there is none."""
        return bytes.fromhex(self.seal_key.get_secret_value()) or None

    @property
    def round_token_keys(self) -> KeyRing | None:
        """The keys of tokens and proofs, 32 bytes each, or None if there is none."""
        newest = bytes.fromhex(self.round_token_key.get_secret_value())
        older = filter(None, self.round_token_old_keys.get_secret_value().split(","))
        return KeyRing(newest, tuple(bytes.fromhex(key) for key in older)) if newest else None

    @property
    def ledger_key_bytes(self) -> bytes | None:
        """The key under which devices have names in ledgers, 32 bytes, or None if there is none."""
        return bytes.fromhex(self.ledger_key.get_secret_value() or self.round_token_key.get_secret_value()) or None


def is_service_link(name: str, value: str) -> bool:
    """Whether Kubernetes made this variable for a service called `fedrecon-...`.

    Example:
        >>> is_service_link("FEDRECON_COORDINATOR_PORT", "tcp://10.0.0.7:7000")
        True
        >>> is_service_link("FEDRECON_COORDINATOR_PORT", "7000")
        False
    """
    if _SERVICE_LINK_NAME.search(name):
        return True
    return name.endswith("_PORT") and _SERVICE_LINK_VALUE.match(value) is not None


def secret_variables(environment: Mapping[str, str]) -> dict[str, str]:
    """Read the variables that are files.

    Args:
        environment: Names their folder, if there is one.

    Returns:
        Values by name in capitals; without the white space around them, which editors leave.

    Raises:
        UserMistake: The folder, or a file in it, cannot be read.
    """
    folder = environment.get(SECRETS_FOLDER, "")
    if not folder:
        return {}
    try:
        found = sorted(path for path in Path(folder).iterdir() if path.name.upper().startswith(PREFIX))
        return {path.name.upper(): path.read_text().strip() for path in found}
    except (OSError, UnicodeDecodeError) as error:
        raise UserMistake(
            f"{SECRETS_FOLDER}={folder}: the secrets there cannot be read: {error}.",
            "Name a folder whose files this user may read, called like variables: FEDRECON_SEAL_KEY, for example.",
        ) from error


def variable_of(field: str) -> str:
    """The environment variable of a field."""
    return PREFIX + field.upper()


def room_settings() -> tuple[dict[str, type[Settings]], tuple[str, ...]]:
    """The settings of every installed room.

    Returns:
        The classes by room, and the names of rooms that cannot be loaded because their extra is not installed.
    """
    classes: dict[str, type[Settings]] = {}
    missing: list[str] = []
    for entry_point in sorted(entry_points(group=ENTRY_POINT_GROUP), key=lambda point: point.name):
        try:
            classes[entry_point.name] = entry_point.load()
        except ImportError:
            missing.append(entry_point.name)
    return classes, tuple(missing)


def misspelt_variables(environment: Mapping[str, str], *extra: type[Settings]) -> Iterator[str]:
    """Say what is wrong with the names of our variables.

    Where a room cannot be loaded its names are not known: then only names that resemble a known one are wrong.

    Args:
        environment: Names and values of all variables.
        *extra: Classes to know beside the registered ones.

    Yields:
        One sentence for each variable that no room knows.
    """
    classes, missing = room_settings()
    everyone: tuple[type[Settings], ...] = (Settings, *classes.values(), *extra)
    known = {variable_of(field) for one in everyone for field in one.model_fields}
    known |= NAMES_BESIDE_SETTINGS
    for name, value in sorted(environment.items()):
        if not name.upper().startswith(PREFIX) or name.upper() in known or is_service_link(name, value):
            continue
        nearest = difflib.get_close_matches(name.upper(), sorted(known), n=1, cutoff=0.75)
        if nearest:
            yield f"{name}: there is no such setting; did you mean {nearest[0]}?"
        elif not missing:
            yield f"{name}: there is no such setting."


def load_settings(settings_class: type[SettingsType], **overrides: object) -> SettingsType:
    """Read and check settings.

    Args:
        settings_class: The room's own class.
        **overrides: Values by field that win over the environment, for example from the command line.

    Returns:
        The settings.

    Raises:
        InvalidSettings: A variable is misspelt or its value is wrong.
    """
    settings, problems = read_settings(settings_class, **overrides)
    if problems:
        raise InvalidSettings(problems)
    return settings


def read_settings(settings_class: type[SettingsType], **overrides: object) -> tuple[SettingsType, tuple[str, ...]]:
    """Read settings as far as they are right, for those who show them.

    Args:
        settings_class: The room's own class.
        **overrides: As in `load_settings`.

    Returns:
        The settings, with the default in place of every wrong value; and one sentence for each wrong variable.
    """
    problems = tuple(misspelt_variables({**secret_variables(os.environ), **os.environ}, settings_class))
    try:
        return settings_class(**overrides), problems  # type: ignore[arg-type]  # pydantic checks them
    except ValidationError as error:
        wrong = error.errors(include_url=False)
    problems += tuple(_sentence(settings_class, dict(problem)) for problem in wrong)
    fields = {str(problem["loc"][0]) for problem in wrong if problem["loc"]} & set(settings_class.model_fields)
    defaults = {
        field: settings_class.model_fields[field].get_default(call_default_factory=True, validated_data={})
        for field in fields
    }
    try:
        return settings_class(**overrides | defaults), problems  # type: ignore[arg-type]  # the same
    except ValidationError:  # values that are right one by one and do not go together
        return cast("SettingsType", settings_class.model_construct()), problems


def _sentence(settings_class: type[Settings], problem: Mapping[str, object]) -> str:
    location = problem["loc"]
    text = str(problem["msg"]).removeprefix("Value error, ")
    if not isinstance(location, tuple) or not location:
        return f"{text}."
    field = str(location[0])
    variable = variable_of(field)
    declared = settings_class.model_fields.get(field)
    meaning = f" ({declared.description})" if declared and declared.description else ""
    given = os.environ.get(variable)
    secret = declared is not None and declared.annotation is SecretStr
    shown = f" is {_mask_password(given)!r}" if given is not None and not secret else " is not valid"
    return f"{variable}{shown}: {text}{meaning}."


def _mask_password(text: str) -> str:
    return _URL_PASSWORD.sub(rf"\1:{MASK}@", text)


def settings_table(settings: Settings) -> list[tuple[str, str, str, str]]:
    """Rows for people: variable, value (secrets masked), where it comes from, meaning.

    Args:
        settings: Of any room.

    Returns:
        One row for each field, in the order of the class.
    """
    values = settings_json(settings)
    rows = []
    for field, declared in type(settings).model_fields.items():
        variable = variable_of(field)
        origin = "default" if field not in settings.model_fields_set else "set"
        value = values[variable]
        rows.append((variable, "" if value is None else str(value), origin, declared.description or ""))
    return rows


def settings_json(settings: Settings) -> dict[str, object]:
    """Values by variable, as JSON has them, secrets masked.

    Args:
        settings: Of any room.

    Returns:
        One entry for each field; a secret is `********` where it is set and empty where it is not.
    """
    shown: dict[str, object] = {}
    for field in type(settings).model_fields:
        value = getattr(settings, field)
        if isinstance(value, SecretStr):
            value = MASK if value.get_secret_value() else ""
        elif isinstance(value, str | Path):
            value = _mask_password(str(value))
        shown[variable_of(field)] = to_jsonable_python(value)
    return shown
