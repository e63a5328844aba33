"""The audit log as a file: for its owner alone, in any locale, wherever it is moved."""

import json
import os
from pathlib import Path

import pytest

from cloud_registry.adapters.audit_file import AuditFile


@pytest.fixture
def loose_umask():
    before = os.umask(0o022)
    yield
    os.umask(before)


@pytest.mark.usefixtures("loose_umask")
def test_whatever_rotates_it_nobody_else_reads_it(tmp_path: Path):
    path = tmp_path / "audit.jsonl"
    log = AuditFile(path)
    log.write({"number": 1})
    path.rename(tmp_path / "audit.1")
    log.write({"number": 2})
    assert json.loads(path.read_text()) == {"number": 2}
    assert [each.stat().st_mode & 0o777 for each in (path, tmp_path / "audit.1")] == [0o600, 0o600]


def test_a_name_in_any_script_is_one_line_in_any_locale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("locale.getencoding", lambda: "latin-1")
    log = AuditFile(tmp_path / "audit.jsonl")
    names = ["日本 ü 🚢", "two\nlines", "a lone \ud800", "\0"]
    for name in names:
        log.write({"name": name})
    lines = (tmp_path / "audit.jsonl").read_text("utf-8").splitlines()
    assert [json.loads(line)["name"] for line in lines] == names
