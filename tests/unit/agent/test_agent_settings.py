"""File, environment and flags; and what is said where they are wrong."""

import base64

import pytest

from device_agent.config import FORMATS, Identity, identity_of, read_config
from device_agent.core.backoff import delay_s
from device_agent.errors import ConfigurationError
from device_agent.wiring import trust_in_words, trust_of
from manifests.exit_codes import ExitCode

KEY = base64.b64encode(b"a key of the module").decode()
STRING = f"HostName=localhost;DeviceId=dev-01;ModuleId=slipway;SharedAccessKey={KEY}"
FLAGS = {
    "connection_string": STRING,
    "artifacts_url": "https://localhost:8444/artifacts/",
    "state_directory": "/var/lib/slipway",
    "source": "replay:live.npz",
}


def test_flags_win_over_the_environment_and_that_over_the_file(tmp_path):
    file = tmp_path / "agent.toml"
    file.write_text('interval_s = 3.0\nsource = "replay:file.npz"\nformats = ["tflite"]\n')
    environment = {"SLIPWAY_AGENT_INTERVAL": "2", "SLIPWAY_AGENT_SOURCE": "replay:environment.npz"}
    config = read_config(file, environment, {**FLAGS, "source": None, "interval_s": 1.5})
    assert (config.interval_s, config.source, config.formats) == (1.5, "replay:environment.npz", ("tflite",))
    assert config.identity == Identity("localhost", "dev-01", "slipway")


def test_what_is_not_said_has_a_default():
    config = read_config(None, {}, FLAGS)
    assert (config.interval_s, config.formats, config.ca_file) == (0.2, FORMATS, None)
    assert (config.settings.telemetry.drain_s, config.settings.engine.threads) == (5.0, 1)


def test_a_table_is_read_from_the_file_and_then_from_the_environment(tmp_path):
    file = tmp_path / "agent.toml"
    file.write_text("[engine]\nthreads = 2\n[telemetry]\ndrain_s = 1\nmessages_max = 9\n")
    environment = {"SLIPWAY_AGENT_TELEMETRY_DRAIN_S": "2.5"}
    settings = read_config(file, environment, FLAGS).settings
    assert (settings.engine.threads, settings.telemetry.drain_s, settings.telemetry.messages_max) == (2, 2.5, 9)


WRONG_TABLES = {
    "an unknown key": ("[engine]\nspeed = 3\n", "unknown key 'speed' in [engine]"),
    "a number that is none": ('[engine]\nthreads = "many"\n', "threads in [engine] is 'many'"),
    "a number too small": ("[engine]\nthreads = 0\n", "threads in [engine] is 0"),
    "a value for a table": ("engine = 3\n", "engine is 3; it is a table"),
}


@pytest.mark.parametrize("case", WRONG_TABLES)
def test_a_key_of_a_table_that_cannot_be_is_named(tmp_path, case):
    text, words = WRONG_TABLES[case]
    file = tmp_path / "agent.toml"
    file.write_text(text)
    with pytest.raises(ConfigurationError) as caught:
        read_config(file, {}, FLAGS)
    assert words in caught.value.message


WRONG = {
    "no connection string": ({"connection_string": None}, "needs connection_string"),
    "no artifacts": ({"artifacts_url": None}, "needs artifacts_url"),
    "artifacts that are no URL": ({"artifacts_url": "localhost:8444"}, "no http or https URL"),
    "a key that is none": ({"connection_string": STRING.replace(KEY, "not base64!")}, "is not Base64"),
    "a string without a device": ({"connection_string": f"HostName=h;SharedAccessKey={KEY}"}, "has no DeviceId"),
    "an interval that is no number": ({"interval_s": "often"}, "interval_s is 'often', which is no number"),
    "a negative interval": ({"interval_s": -1}, "the least is 0"),
    "an interval that is not a number": ({"interval_s": float("nan")}, "interval_s is nan"),
    "an unknown format": ({"formats": "onnx,pickle"}, "names 'pickle'"),
    "a CA file that is not there": ({"ca_file": "/no/such/ca.pem"}, "no CA file /no/such/ca.pem"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_setting_that_cannot_be_is_named(case):
    changes, words = WRONG[case]
    with pytest.raises(ConfigurationError) as caught:
        read_config(None, {}, {**FLAGS, **changes})
    assert words in caught.value.message
    assert caught.value.exit_code is ExitCode.USAGE


@pytest.mark.parametrize(
    ("text", "words"), [("interval = 1", "unknown key 'interval'"), ("interval_s = = 1", "is no TOML"), (None, "read")]
)
def test_a_file_that_cannot_be_is_named(tmp_path, text, words):
    file = tmp_path / "agent.toml"
    if text is not None:
        file.write_text(text)
    with pytest.raises(ConfigurationError, match=words):
        read_config(file, {}, FLAGS)


def test_the_key_is_in_no_message_and_no_repr():
    assert KEY not in repr(read_config(None, {}, FLAGS))
    with pytest.raises(ConfigurationError) as caught:
        identity_of(STRING.replace("HostName=localhost;", ""))
    assert KEY not in caught.value.message + caught.value.hint


def test_the_wait_doubles_up_to_its_cap_and_never_falls_below_half():
    waits = [delay_s(attempt, 0.0, base_s=0.5, cap_s=30) for attempt in range(10)]
    assert waits == [0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0, 30.0]
    assert delay_s(100_000, 0.999, base_s=0.5, cap_s=30) == pytest.approx(15.015)


# Trust ----------------------------------------------------------------------------------------------------------------


def config_with(**variables: str):
    return read_config(None, {f"SLIPWAY_AGENT_DOWNLOAD_{key}": value for key, value in variables.items()}, FLAGS)


def test_where_artifacts_come_from_is_read_from_the_environment():
    download = config_with(MIRRORS="https://a/x, http://b", PROXY="http://u:p@proxy:3128", BYTES_PER_SECOND_MAX="4096")
    settings = download.settings.download
    assert (settings.mirrors, settings.proxy) == (("https://a/x", "http://b"), "http://u:p@proxy:3128")
    assert settings.bytes_per_second_max == 4096
    for wrong in ({"MIRRORS": "ftp://a"}, {"PROXY": "proxy:3128"}, {"BYTES_PER_SECOND_MAX": "10"}):
        with pytest.raises(ConfigurationError, match=r"in \[download\] is"):
            config_with(**wrong)


def test_trust_needs_both_a_root_and_a_repository_and_says_when_there_is_none(tmp_path):
    assert trust_of(config_with()) is None
    assert trust_in_words(config_with()) == "no root is pinned: whoever owns the hub decides what is installed"
    root = tmp_path / "root.json"
    for variables, words in (
        ({"TRUSTED_ROOT": str(root)}, "has no metadata_url"),
        ({"METADATA_URL": "https://x/metadata"}, "has no trusted_root"),
        ({"TRUSTED_ROOT": str(root), "METADATA_URL": "https://x/metadata"}, "There is no trusted root"),
    ):
        with pytest.raises(ConfigurationError, match=words):
            trust_of(config_with(**variables))
    root.write_text("{}")
    trusting = config_with(TRUSTED_ROOT=str(root), METADATA_URL="https://x/metadata")
    assert trust_of(trusting, tmp_path) is not None
    assert trust_in_words(trusting).startswith(f"only what {root} vouches for is installed")
