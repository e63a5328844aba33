"""The demo's own command line, where it ends before anything is started."""

import pytest
from click.testing import CliRunner

from simulators.demo import place
from simulators.demo.__main__ import main


def invoke(*arguments: str):
    return CliRunner().invoke(main, list(arguments))


def test_stopping_where_nothing_is_up_is_no_failure(tmp_path):
    result = invoke("--stop", "--directory", str(tmp_path / "demo"))
    assert (result.exit_code, result.stdout) == (0, "No demo is up.\n")


def test_a_folder_with_somebodys_files_is_refused(tmp_path):
    (tmp_path / "thesis.txt").write_text("ten years of work")
    result = invoke("--directory", str(tmp_path))
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == (
        f"Error: {tmp_path} holds files that are not a demo's: choose an empty folder with --directory.\n"
    )


def test_a_fleet_too_small_for_both_engines_is_a_usage_error(tmp_path):
    result = invoke("--devices", "3", "--directory", str(tmp_path / "demo"))
    assert result.exit_code == 2
    assert "4<=x<=60" in result.stderr
    assert not (tmp_path / "demo").exists()


@pytest.mark.parametrize("flags", [(), ("--address", "127.0.0.1")])
def test_where_there_is_no_free_address_nothing_is_started(tmp_path, monkeypatch, flags):
    monkeypatch.setattr(place, "are_free", lambda address: False)
    result = invoke("--directory", str(tmp_path / "demo"), *flags)
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: ")
    assert result.stderr.count("\n") == 1
    assert (
        not (tmp_path / "demo" / "processes.json").exists()
        or "[]" in (tmp_path / "demo" / "processes.json").read_text()
    )
