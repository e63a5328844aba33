"""Lines for people and for programs; no secret in either."""

import json
import logging

import pytest

from device_agent.adapters.logs import LINE_CHARACTERS_MAX, LINES_KEPT_MAX, STRUCK_OUT, Redaction, set_up_logging

KEY = "c2VjcmV0IGtleSBvZiB0aGUgbW9kdWxl"


@pytest.fixture
def root():
    """The root logger, put back as it was."""
    logger = logging.getLogger()
    handlers, level = logger.handlers[:], logger.level
    yield logger
    logger.handlers[:] = handlers
    logger.setLevel(level)


def said(capsys) -> list[str]:
    return capsys.readouterr().err.splitlines()


def test_a_json_line_has_stable_fields(root, capsys):
    set_up_logging("info", "json")
    fields = {"event": "phase", "model": "digits", "version": 2, "generation": 3, "phase": "failed", "code": "NO_SPACE"}
    logging.getLogger("device_agent.runtime.update_driver").warning("it %s", "failed", extra=fields)
    (line,) = said(capsys)
    found = json.loads(line)
    assert found.pop("time").endswith("+00:00")
    assert found == {
        "level": "warning", "logger": "device_agent.runtime.update_driver", "message": "it failed", **fields
    }  # fmt: skip


def test_an_exception_stays_on_its_json_line(root, capsys):
    set_up_logging("info", "json")
    try:
        int(f"SharedAccessKey={KEY}")
    except ValueError:
        logging.getLogger("device_agent").exception("tripped")
    (line,) = said(capsys)
    found = json.loads(line)
    assert "ValueError" in found["exception"]
    assert KEY not in line


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_secrets_are_struck_out_by_value_and_by_form(root, capsys, log_format):
    lines = set_up_logging("info", log_format, [KEY])
    log = logging.getLogger("device_agent")
    log.info("the key %s", KEY)
    log.info("HostName=h;SharedAccessKey=bm90IGtub3du;DeviceId=d")
    log.info("SharedAccessSignature sr=h%2Fd&sig=abcdef%3D&se=1")
    log.info("GET https://store.example.com/a?sv=1&sig=abcdef%3D&se=1")
    log.info("proxy http://user:hunter2@proxy.example.com:3128")
    everything = "\n".join(said(capsys) + lines.recent(10, "debug"))
    assert [secret for secret in (KEY, "bm90IGtub3du", "abcdef", "hunter2") if secret in everything] == []
    assert everything.count(STRUCK_OUT) >= 10
    assert "DeviceId=d" in everything
    assert "proxy.example.com:3128" in everything


def test_a_short_word_is_no_secret():
    assert Redaction(["a", ""])("a plain line") == "a plain line"


def test_the_newest_lines_are_kept_and_warnings_counted_by_what_they_are_about(root, capsys):
    lines = set_up_logging("info")
    log = logging.getLogger("device_agent.runtime.link_keeper")
    for number in range(LINES_KEPT_MAX + 10):
        log.info("line %d", number)
    log.warning("x" * (2 * LINE_CHARACTERS_MAX))
    logging.getLogger("device_agent.runtime.scoring").error("no reading")
    logging.getLogger("elsewhere").error("what")
    log.debug("unheard")
    assert len(lines.recent(10_000, "debug")) == LINES_KEPT_MAX
    assert [line[-10:] for line in lines.recent(2, "error")] == ["no reading", line_end("what")]
    assert max(map(len, lines.recent(3, "warning"))) == LINE_CHARACTERS_MAX
    assert lines.counts_by_kind() == {"link": 1, "sensor": 1, "other": 1}


def line_end(text: str) -> str:
    return f"ERROR   {text}"[-10:]


def test_set_up_twice_a_line_is_said_once(root, capsys):
    set_up_logging("info")
    set_up_logging("info")
    logging.getLogger("device_agent").info("once")
    assert len(said(capsys)) == 1
