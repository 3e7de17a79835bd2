"""Settings: where they come from, and what is refused."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from proteus_shards.config import GIB, MIB, Settings, load_settings, settings_table
from proteus_shards.errors import SettingError
from proteus_shards.settings_help import SETTINGS_HELP


def refusal(given: dict[str, object] | None = None, environ: dict[str, str] | None = None, path: Path | None = None) -> str:
    """Return the message with which these settings are refused."""
    with pytest.raises(SettingError) as caught:
        load_settings(given or {}, environ or {}, path)
    return str(caught.value)


@pytest.fixture
def toml(tmp_path: Path) -> Path:
    """A settings file that a test may fill."""
    return tmp_path / "proteus.toml"


def test_without_any_source_every_setting_has_its_default() -> None:
    """Nothing needs to be given."""
    assert load_settings({}, {}) == Settings()


def test_an_option_wins_over_the_environment_which_wins_over_the_file(toml: Path) -> None:
    """Each source covers those behind it, setting by setting."""
    toml.write_text('port = 1\nfronts = 2\nhost = "::1"\n')

    settings = load_settings({"port": "3", "fronts": None}, {"PROTEUS_PORT": "2", "PROTEUS_FRONTS": "5"}, toml)

    assert (settings.port, settings.fronts, settings.host, settings.store) == (3, 5, "::1", Settings().store)


def test_the_environment_may_name_the_file_and_an_option_wins_over_it(toml: Path, tmp_path: Path) -> None:
    """`PROTEUS_CONFIG` counts where no `--config` is given."""
    toml.write_text("port = 1")
    other = tmp_path / "other.toml"
    other.write_text("port = 2")

    assert load_settings({}, {"PROTEUS_CONFIG": str(toml)}).port == 1
    assert load_settings({}, {"PROTEUS_CONFIG": str(toml)}, other).port == 2


def test_the_file_takes_dashes_and_underscores_numbers_and_text(toml: Path) -> None:
    """A file may look like the options or like the fields."""
    toml.write_text('body-size-max = "2MiB"\nlog_level = "debug"\nwait-seconds-max = 5\npolls_max = "7"\n')

    settings = load_settings({}, {}, toml)

    assert (settings.body_size_max, settings.log_level, settings.wait_seconds_max, settings.polls_max) == (2 * MIB, "debug", 5.0, 7)


@pytest.mark.parametrize(("text", "size"), [("1048576", MIB), ("1MiB", MIB), ("1 mib", MIB), ("1024KiB", MIB)])
def test_a_size_may_have_a_unit(text: str, size: int) -> None:
    """KiB, MiB and GiB are powers of 1024; upper and lower case mean the same."""
    assert load_settings({}, {"PROTEUS_BODY_SIZE_MAX": text}).body_size_max == size


def test_a_count_takes_no_unit() -> None:
    """Only sizes have units."""
    assert "PROTEUS_POLLS_MAX must be a whole number, at least 1, not '1KiB'" in refusal(environ={"PROTEUS_POLLS_MAX": "1KiB"})


def test_an_unknown_option_of_the_environment_is_refused_with_the_nearest_name() -> None:
    """A misspelt variable would otherwise be ignored in silence."""
    message = refusal(environ={"PROTEUS_BODY_SISE_MAX": "1"})

    assert message == "there is no setting for the environment variable PROTEUS_BODY_SISE_MAX; did you mean PROTEUS_BODY_SIZE_MAX?"


def test_variables_for_tests_and_of_others_are_no_settings() -> None:
    """`PROTEUS_TEST_*` belongs to the tests, URL and token to clients, and other names to other programs."""
    assert (
        load_settings({}, {"PROTEUS_URL": "http://h", "PROTEUS_TOKEN": "t", "PROTEUS_TEST_SEED": "1", "PORT": "1", "PATH": "/bin"})
        == Settings()
    )


def test_an_unknown_key_of_the_file_is_refused_with_the_nearest_name(toml: Path) -> None:
    """A misspelt key would otherwise be ignored in silence."""
    toml.write_text("prot = 1")

    assert refusal(path=toml) == f"{toml}: there is no setting 'prot'; did you mean port?"


def test_a_key_that_stands_twice_in_the_file_is_refused(toml: Path) -> None:
    """Dashes and underscores mean the same, so both at once are a contradiction."""
    toml.write_text("polls-max = 1\npolls_max = 2")

    assert "polls_max stands there twice" in refusal(path=toml)


@pytest.mark.parametrize("content", [b"port =", b"\xff", b"port = 1\nport = 2"])
def test_a_file_that_is_not_toml_is_refused(toml: Path, content: bytes) -> None:
    """The message names the file."""
    toml.write_bytes(content)

    assert f"the settings file {toml} is not TOML" in refusal(path=toml)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    """A file that was named must exist."""
    assert refusal(path=tmp_path / "no.toml") == f"the settings file {tmp_path / 'no.toml'} cannot be read: No such file or directory"


@pytest.mark.parametrize("value", ["-1", "65536", "http", "", "1.5", "true", "null", "nan", "1_0"])
def test_a_port_that_is_none_is_refused_with_the_range(value: str) -> None:
    """The message names the option, the range and the value."""
    assert refusal({"port": value}) == f"--port must be a whole number, from 0 to 65535, not {value!r}"


@pytest.mark.parametrize("value", ["-1", "3601", "inf", "nan", "soon", ""])
def test_a_wait_that_is_none_is_refused_with_the_range(value: str) -> None:
    """Numbers that are not finite are out of any range."""
    assert "PROTEUS_WAIT_SECONDS_MAX must be a number of seconds, from 0 to 3600, not" in refusal(
        environ={"PROTEUS_WAIT_SECONDS_MAX": value}
    )


@pytest.mark.parametrize(("line", "named"), [("port = true", "true"), ("port = 1.5", "1.5"), ("port = {}", "a table or an array")])
def test_a_value_of_the_wrong_type_in_the_file_is_refused(toml: Path, line: str, named: str) -> None:
    """The message names the key and the file."""
    toml.write_text(line)

    assert refusal(path=toml) == f"port in {toml} must be a whole number, from 0 to 65535, not {named}"


def test_a_word_that_is_no_choice_is_refused_with_the_choices() -> None:
    """The choices stand in their order, not sorted."""
    assert refusal({"log_level": "loud"}) == "--log-level must be one of debug, info, warning, error, not 'loud'"


def test_an_empty_text_is_refused() -> None:
    """An empty host would listen everywhere."""
    assert refusal({"host": ""}) == "--host must be text that is not empty, not ''"


def test_more_shards_than_slots_are_refused() -> None:
    """A shard without a slot would own nothing."""
    assert "--shards must be a whole number, from 1 to 1024" in refusal({"shards": "1025"})


def test_a_body_that_would_not_fit_into_a_frame_with_its_state_is_refused() -> None:
    """A job is delivered in one frame of the IPC."""
    assert "--body-size-max" in refusal({"body_size_max": "32MiB", "shard_bytes_max": "1GiB"})


def test_a_shard_must_hold_at_least_one_of_the_largest_jobs() -> None:
    """The relation of two settings names both and where they came from."""
    message = refusal({"body_size_max": "2MiB"}, {"PROTEUS_SHARD_BYTES_MAX": "3MiB"})

    assert message.startswith("PROTEUS_SHARD_BYTES_MAX must be at least twice the largest body (--body-size-max, 2MiB)")


def test_a_store_that_is_none_is_refused_with_its_source() -> None:
    """The check of the store's URL is the store's business, where it came from is known here."""

    def check(url: str) -> None:
        raise SettingError(f"store: {url} is no store")

    with pytest.raises(SettingError, match=r"^PROTEUS_STORE: nothing: is no store$"):
        load_settings({}, {"PROTEUS_STORE": "nothing:"}, check_store=check)


def test_every_setting_has_a_help_and_a_default_that_is_read_back() -> None:
    """What the help shows as default may be given as a value."""
    table = settings_table()

    assert [setting.name for setting in table] == list(SETTINGS_HELP) == list(Settings.__struct_fields__)
    for setting in table:
        if setting.name != "shards" and setting.default != "none":
            settings = load_settings({setting.name: setting.default}, {})
            assert getattr(settings, setting.name) == getattr(Settings(), setting.name), setting.name


@pytest.mark.parametrize("name", ["tls_key", "tls_client_ca"])
def test_tls_needs_a_certificate(name: str) -> None:
    """A key or an authority for clients alone would leave the port open in plain text."""
    with pytest.raises(SettingError, match=f"--{name.replace('_', '-')} needs tls_cert"):
        load_settings({name: "some.pem"}, {})


def test_an_address_for_metrics_needs_a_port() -> None:
    """Alone it would mean nothing."""
    with pytest.raises(SettingError, match="PROTEUS_METRICS_HOST needs metrics_port"):
        load_settings({}, {"PROTEUS_METRICS_HOST": "0.0.0.0"})

    assert load_settings({"metrics_host": "0.0.0.0", "metrics_port": "9090"}, {}).metrics_port == 9090


def test_a_whole_batch_must_fit_into_a_shard() -> None:
    """Else one for a single queue could never pass as a whole."""
    with pytest.raises(SettingError, match=r"--batch-jobs-max: batch_jobs_max .* must be at most shard_pending_max"):
        load_settings({"batch_jobs_max": "20000", "shard_pending_max": "10000"}, {})


def test_settings_travel_as_json() -> None:
    """The children get them as one line."""
    settings = load_settings({"shard_bytes_max": "3GiB", "host": "::1"}, {})

    assert settings.shard_bytes_max == 3 * GIB
    assert msgspec.json.decode(msgspec.json.encode(settings), type=Settings) == settings


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.org", "localhost.example.org", "::ffff:192.0.2.1"])
def test_a_server_that_others_can_reach_asks_who_they_are_or_says_that_it_does_not(host: str) -> None:
    """With tokens, client certificates, or in so many words; else it does not start."""
    message = refusal({"host": host})

    assert message.startswith(f"--host: others can reach {host}, ")
    assert all(name in message for name in ("tokens_file", "tls_client_ca", "insecure"))
    for given in ({"tokens_file": "t"}, {"tls_cert": "c", "tls_client_ca": "a"}, {"insecure": True}):
        assert load_settings({"host": host, **given}, {}).host == host


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "localhost"])
def test_on_a_loopback_address_nobody_is_asked(host: str) -> None:
    """Whoever is on the machine is trusted, by default."""
    assert load_settings({"host": host}, {}).tokens_file == ""
