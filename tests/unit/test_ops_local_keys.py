"""Keys of a stack on one machine: made once, and replaced without anything that they made going bad."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedrecon.ops.command import main
from fedrecon.ops.local_keys import KEYS_FILE, key_variables, make_keys, rotate_keys, with_keys
from fedrecon.ops.mistakes import UserMistake
from fedrecon.ops.settings import InvalidSettings, Settings, load_settings


def test_a_key_that_was_replaced_is_still_accepted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_keys(tmp_path)
    before = with_keys(Settings(), tmp_path)
    monkeypatch.setenv("FEDRECON_HOME", str(tmp_path))
    assert main(["keys", "rotate"]) == 0
    after = with_keys(Settings(), tmp_path)
    assert before.round_token_keys is not None
    assert after.round_token_keys is not None
    assert after.round_token_keys.newest != before.round_token_keys.newest
    assert after.round_token_keys.older == (before.round_token_keys.newest,)
    assert (after.seal_key, after.ledger_key) == (before.seal_key, before.ledger_key)
    assert (tmp_path / KEYS_FILE).stat().st_mode & 0o777 == 0o600


def test_keys_of_a_deployment_are_files_that_settings_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "deployment" / "secrets"
    assert main(["keys", "new", "--out", str(folder)]) == 0
    made = {path.name: path.read_text() for path in folder.iterdir()}
    assert made.keys() == {"FEDRECON_SEAL_KEY", "FEDRECON_ROUND_TOKEN_KEY", "FEDRECON_LEDGER_KEY"}
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o600}
    monkeypatch.setenv("FEDRECON_SECRETS_FOLDER", str(folder))
    settings = load_settings(Settings)
    assert settings.seal_key.get_secret_value() == made["FEDRECON_SEAL_KEY"]
    assert settings.ledger_key_bytes == bytes.fromhex(made["FEDRECON_LEDGER_KEY"])
    assert len({*made.values()}) == 3


def test_keys_of_a_deployment_that_are_there_stay(tmp_path: Path) -> None:
    assert main(["keys", "new", "--out", str(tmp_path)]) == 0
    before = {path.name: path.read_text() for path in tmp_path.iterdir()}
    (tmp_path / "FEDRECON_LEDGER_KEY").unlink()
    assert main(["keys", "new", "--out", str(tmp_path)]) == 0
    after = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert after | before == after | {"FEDRECON_LEDGER_KEY": before["FEDRECON_LEDGER_KEY"]}
    assert after["FEDRECON_SEAL_KEY"] == before["FEDRECON_SEAL_KEY"]


def test_names_in_ledgers_stay_also_where_they_had_no_key_of_their_own(tmp_path: Path) -> None:
    old, seal = "ab" * 32, "cd" * 32
    (tmp_path / KEYS_FILE).write_text(f'{{"FEDRECON_SEAL_KEY": "{seal}", "FEDRECON_ROUND_TOKEN_KEY": "{old}"}}')
    names = with_keys(Settings(), tmp_path).ledger_key_bytes
    rotate_keys(tmp_path)
    assert with_keys(Settings(), tmp_path).ledger_key_bytes == names == bytes.fromhex(old)


def test_old_keys_of_the_home_do_not_join_a_key_that_the_settings_name(tmp_path: Path) -> None:
    make_keys(tmp_path)
    rotate_keys(tmp_path)
    named = with_keys(Settings(round_token_key="ef" * 32), tmp_path)
    assert named.round_token_keys is not None
    assert named.round_token_keys.older == ()
    assert key_variables(named)["FEDRECON_ROUND_TOKEN_KEY"] == "ef" * 32


def test_a_home_without_keys_has_none_to_replace(tmp_path: Path) -> None:
    with pytest.raises(UserMistake, match="there are no keys"):
        rotate_keys(tmp_path)
    assert not list(tmp_path.iterdir())


def test_older_keys_are_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDRECON_ROUND_TOKEN_OLD_KEYS", f"{'ab' * 32},{'cd' * 32}")
    monkeypatch.setenv("FEDRECON_ROUND_TOKEN_KEY", "ef" * 32)
    keys = load_settings(Settings).round_token_keys
    assert keys is not None
    assert keys.older == (b"\xab" * 32, b"\xcd" * 32)
    monkeypatch.setenv("FEDRECON_ROUND_TOKEN_OLD_KEYS", f"{'ab' * 32},short")
    with pytest.raises(InvalidSettings, match="FEDRECON_ROUND_TOKEN_OLD_KEYS"):
        load_settings(Settings)
