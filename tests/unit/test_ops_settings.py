"""Settings as an operator meets them: through environment variables."""

from __future__ import annotations

import os
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import ClassVar

import pytest

from fedrecon.ops import settings as module
from fedrecon.ops.mistakes import UserMistake
from fedrecon.ops.settings import InvalidSettings, Settings, load_settings, settings_json, settings_table

KEY = "0f" * 32


class FilmSettings(Settings):
    film_port: int = 7000
    film_names: tuple[str, ...] = ()


class MissingEntryPoint:
    name: ClassVar[str] = "theatre"

    def load(self) -> None:
        raise ModuleNotFoundError("No module named 'curtain'", name="curtain")


class FilmEntryPoint:
    name: ClassVar[str] = "film"

    def load(self) -> type[Settings]:
        return FilmSettings


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.upper().startswith("FEDRECON_"):
            monkeypatch.delenv(name)
    install(monkeypatch)


def install(monkeypatch: pytest.MonkeyPatch, *points: object) -> None:
    monkeypatch.setattr(module, "entry_points", lambda group: points if group == "fedrecon.settings" else ())


def problems(settings_class: type[Settings] = Settings) -> tuple[str, ...]:
    with pytest.raises(InvalidSettings) as caught:
        load_settings(settings_class)
    return caught.value.problems


def test_everything_has_a_default() -> None:
    settings = load_settings(Settings)
    assert not settings.redis_url
    assert settings.redis_durability == "required"
    assert settings.home == Path(".fedrecon")
    assert settings.host == "127.0.0.1"
    assert settings.seal_key_bytes is None


def test_variables_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDRECON_REDIS_URL", "redis://store:6379/0")
    monkeypatch.setenv("FEDRECON_DRAIN_SECONDS", "2.5")
    monkeypatch.setenv("FEDRECON_SEAL_KEY", KEY)
    monkeypatch.setenv("FEDRECON_FILM_PORT", "7001")
    settings = load_settings(FilmSettings)
    assert (settings.redis_url, settings.drain_seconds, settings.film_port) == ("redis://store:6379/0", 2.5, 7001)
    assert settings.seal_key_bytes == bytes.fromhex(KEY)


def test_arguments_win_over_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDRECON_LOG_LEVEL", "debug")
    assert load_settings(Settings, log_level="error").log_level == "error"


@pytest.mark.parametrize(("text", "port"), [("none", -1), ("off", -1), ("-1", -1), ("0", 0), ("9100", 9100)])
def test_a_metrics_port_may_be_none(monkeypatch: pytest.MonkeyPatch, text: str, port: int) -> None:
    monkeypatch.setenv("FEDRECON_METRICS_PORT", text)
    assert load_settings(Settings).metrics_port == port


def test_a_misspelt_variable_names_the_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDRECON_LOG_LEVLE", "debug")
    assert problems() == ("FEDRECON_LOG_LEVLE: there is no such setting; did you mean FEDRECON_LOG_LEVEL?",)


def test_a_variable_that_resembles_nothing_is_wrong_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDRECON_XYZZY", "1")
    assert problems() == ("FEDRECON_XYZZY: there is no such setting.",)


def test_names_of_other_rooms_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, FilmEntryPoint())
    monkeypatch.setenv("FEDRECON_FILM_PORT", "1")
    monkeypatch.setenv("FEDRECON_DATA", "/somewhere")
    assert load_settings(Settings).log_level == "info"
    monkeypatch.setenv("FEDRECON_FILM_PROT", "1")
    assert "did you mean FEDRECON_FILM_PORT?" in problems()[0]


def test_a_room_that_is_not_installed_may_have_names_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, FilmEntryPoint(), MissingEntryPoint())
    monkeypatch.setenv("FEDRECON_CURTAIN_COLOUR", "red")
    assert load_settings(Settings).log_level == "info"
    monkeypatch.setenv("FEDRECON_LOGLEVEL", "debug")
    assert problems() == ("FEDRECON_LOGLEVEL: there is no such setting; did you mean FEDRECON_LOG_LEVEL?",)


def test_variables_of_kubernetes_services_are_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "FEDRECON_COORDINATOR_SERVICE_HOST": "10.0.0.7",
        "FEDRECON_COORDINATOR_SERVICE_PORT": "7000",
        "FEDRECON_COORDINATOR_SERVICE_PORT_GRPC": "7000",
        "FEDRECON_COORDINATOR_PORT": "tcp://10.0.0.7:7000",
        "FEDRECON_COORDINATOR_PORT_7000_TCP": "tcp://10.0.0.7:7000",
        "FEDRECON_COORDINATOR_PORT_7000_TCP_PROTO": "tcp",
        "FEDRECON_COORDINATOR_PORT_7000_TCP_ADDR": "10.0.0.7",
        "FEDRECON_FILM_PORT": "tcp://10.0.0.8:80",  # a service called fedrecon-film: the same name as a setting
        "FEDRECON_METRICS_PORT": "udp://10.0.0.9:80",
    }.items():
        monkeypatch.setenv(name, value)
    settings = load_settings(FilmSettings)
    assert (settings.film_port, settings.metrics_port) == (7000, 0)


def test_secrets_are_read_from_files_that_are_called_like_variables(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "FEDRECON_SEAL_KEY").write_text(f"{KEY}\n")
    (tmp_path / "fedrecon_round_token_key").write_text("1f" * 32)
    (tmp_path / "somebody_elses").write_text("not ours")
    (tmp_path / "..data").mkdir()  # as Kubernetes mounts them
    monkeypatch.setenv("FEDRECON_SECRETS_FOLDER", str(tmp_path))
    settings = load_settings(Settings)
    assert settings.seal_key_bytes == bytes.fromhex(KEY)
    assert settings.round_token_key.get_secret_value() == "1f" * 32
    monkeypatch.setenv("FEDRECON_SEAL_KEY", "2f" * 32)
    assert load_settings(Settings).seal_key_bytes == bytes.fromhex("2f" * 32)


def test_a_misspelt_file_of_a_secret_is_wrong_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "FEDRECON_SEALKEY").write_text(KEY)
    monkeypatch.setenv("FEDRECON_SECRETS_FOLDER", str(tmp_path))
    assert problems() == ("FEDRECON_SEALKEY: there is no such setting; did you mean FEDRECON_SEAL_KEY?",)


def test_a_wrong_secret_in_a_file_is_not_repeated(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "FEDRECON_SEAL_KEY").write_text("hunter2")
    monkeypatch.setenv("FEDRECON_SECRETS_FOLDER", str(tmp_path))
    assert "hunter2" not in problems()[0]


def test_a_folder_of_secrets_that_is_not_there_is_a_mistake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FEDRECON_SECRETS_FOLDER", str(tmp_path / "none"))
    with pytest.raises(UserMistake, match="FEDRECON_SECRETS_FOLDER="):
        load_settings(Settings)


def test_each_wrong_value_has_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDRECON_LOG_LEVEL", "loud")
    monkeypatch.setenv("FEDRECON_METRICS_PORT", "70000")
    monkeypatch.setenv("FEDRECON_REDIS_URL", "http://store")
    said = problems()
    assert len(said) == 3
    assert said[0].startswith("FEDRECON_REDIS_URL is 'http://store': ")
    assert said[1].startswith("FEDRECON_LOG_LEVEL is 'loud': ")
    assert "least level that is logged" in said[1]
    assert said[2].startswith("FEDRECON_METRICS_PORT is '70000': ")


def test_a_wrong_secret_is_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDRECON_SEAL_KEY", "hunter2")
    said = problems()
    assert "hunter2" not in said[0]
    assert "openssl rand -hex 32" in said[0]


def test_a_certificate_without_its_key_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDRECON_TLS_CERTIFICATE", "/tls/certificate.pem")
    assert problems() == ("FEDRECON_TLS_CERTIFICATE and FEDRECON_TLS_KEY belong together: set both or neither.",)


def test_a_client_authority_needs_a_certificate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDRECON_TLS_CLIENT_AUTHORITY", "/tls/clients.pem")
    assert "needs FEDRECON_TLS_CERTIFICATE" in problems()[0]


def test_an_empty_path_is_no_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDRECON_TLS_CERTIFICATE", "")
    assert load_settings(Settings).tls_certificate is None


def test_secrets_are_shown_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDRECON_ROUND_TOKEN_KEY", KEY)
    monkeypatch.setenv("FEDRECON_REDIS_URL", "rediss://ops:hunter2@store/0")
    monkeypatch.setenv("FEDRECON_FILM_NAMES", '["Heat", "Alien"]')
    settings = load_settings(FilmSettings)
    table, shown = settings_table(settings), settings_json(settings)
    for text in (str(table), str(shown), repr(settings), str(settings)):
        assert KEY not in text
        assert "hunter2" not in text
    assert shown["FEDRECON_REDIS_URL"] == "rediss://ops:********@store/0"
    assert shown["FEDRECON_ROUND_TOKEN_KEY"] == "********"
    assert not shown["FEDRECON_SEAL_KEY"]
    assert shown["FEDRECON_FILM_NAMES"] == ["Heat", "Alien"]
    origins = {variable: origin for variable, _, origin, _ in table}
    assert (origins["FEDRECON_REDIS_URL"], origins["FEDRECON_HOST"]) == ("set", "default")


def test_every_setting_has_a_meaning() -> None:
    assert [variable for variable, _, _, meaning in settings_table(Settings()) if not meaning] == []


def test_invalid_settings_are_a_mistake_of_the_user() -> None:
    assert issubclass(InvalidSettings, UserMistake)


def test_the_entry_point_group_is_the_one_that_packages_register() -> None:
    point = EntryPoint("ops", "fedrecon.ops.settings:Settings", module.ENTRY_POINT_GROUP)
    assert point.group == "fedrecon.settings"
    assert point.load() is Settings
