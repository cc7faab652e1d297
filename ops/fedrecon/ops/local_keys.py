"""The keys of a stack on one machine: made once, kept in its home, readable by its owner alone.

Commands on the same machine read them there: whoever may read the home is an operator of its stack. Elsewhere the keys
come from the settings.
"""

from __future__ import annotations

import json
import os
import secrets
from pathlib import Path

from pydantic import SecretStr

from fedrecon.ops.durable_files import make_folder, sync_folder
from fedrecon.ops.mistakes import UserMistake
from fedrecon.ops.settings import KEY_BYTES, Settings, variable_of

KEYS_FILE = "keys.json"
_NEEDED = ("seal_key", "round_token_key")
_MADE = (*_NEEDED, "ledger_key")
_FIELDS = (*_MADE, "round_token_old_keys")


def make_keys(home: Path) -> None:
    """Make the keys of a home that has none, whole or not at all."""
    if not (home / KEYS_FILE).exists():
        _write(home, {variable_of(name): secrets.token_hex(KEY_BYTES) for name in _MADE})


def write_key_files(folder: Path) -> list[Path]:
    """Write the keys of a deployment as files that are called like variables, for `FEDRECON_SECRETS_FOLDER`.

    Args:
        folder: Where they lie; it is made if need be. A key that is there stays.

    Returns:
        The files that were made now.

    Raises:
        OSError: They cannot be written.
    """
    make_folder(folder)
    made = []
    for name in _MADE:
        path = folder / variable_of(name)
        if path.exists():
            continue
        _write_private(path, secrets.token_hex(KEY_BYTES))
        made.append(path)
    return made


def rotate_keys(home: Path) -> None:
    """Make a new key of tokens and proofs; the one before is still accepted, and earlier ones no more.

    The stack uses it from its next start: rounds under way go on, since what the old key made is still good.

    Raises:
        UserMistake: The home has no keys, or they are damaged.
    """
    before = with_keys(Settings(), home)
    if not (home / KEYS_FILE).exists():
        raise UserMistake(f"No stack was ever on {home}: there are no keys.", "Name its home with FEDRECON_HOME.")
    old, ledger = before.round_token_key.get_secret_value(), before.ledger_key.get_secret_value()
    _write(
        home,
        {
            variable_of("seal_key"): before.seal_key.get_secret_value(),
            variable_of("round_token_key"): secrets.token_hex(KEY_BYTES),
            variable_of("round_token_old_keys"): old,
            variable_of("ledger_key"): ledger or old,
        },
    )


def put_keys(home: Path, variables: dict[str, str]) -> None:
    """Keep keys of elsewhere in a home that has none.

    Args:
        home: The home.
        variables: As `key_variables` gives them.

    Raises:
        UserMistake: It has keys.
    """
    if (home / KEYS_FILE).exists():
        raise UserMistake(f"{home / KEYS_FILE} is there already.", "Restore into a home that has no keys.")
    _write(home, variables)


def _write(home: Path, content: dict[str, str]) -> None:
    _write_private(home / KEYS_FILE, json.dumps(content))


def _write_private(path: Path, content: str) -> None:
    """Writes a file for its owner alone, whole or not at all."""
    partial = path.with_name(f".{path.name}.partial")
    partial.unlink(missing_ok=True)
    try:
        with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        sync_folder(path.parent)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def with_keys(settings: Settings, home: Path) -> Settings:
    """Return the settings, with the home's keys where they have none of their own.

    Raises:
        UserMistake: The home's keys are damaged.
    """
    path = home / KEYS_FILE
    try:
        kept: dict[str, str] = json.loads(path.read_text())
        missing = {
            name: SecretStr(kept[variable_of(name)] if name in _NEEDED else kept.get(variable_of(name), ""))
            for name in _FIELDS
            if not getattr(settings, name).get_secret_value()
        }
        if settings.round_token_key.get_secret_value():  # with its own old ones, or none
            missing.pop("round_token_old_keys", None)
    except (FileNotFoundError, PermissionError):  # no stack was ever here, or it is somebody else's
        return settings
    except (ValueError, KeyError, TypeError) as error:
        raise UserMistake(
            f"{path} is damaged: it does not hold the keys.",
            "Restore it from a copy. Without one remove it: new keys are made, and what was sealed with the old ones "
            "cannot be read any more.",
        ) from error
    return settings.model_copy(update=missing)


def key_variables(settings: Settings) -> dict[str, str]:
    """Return the keys as variables for the services."""
    return {variable_of(name): getattr(settings, name).get_secret_value() for name in _FIELDS}
