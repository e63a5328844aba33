"""Every session in this folder goes as it is written down. SLIPWAY_UPDATE_GOLDEN=1 writes them anew."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.postgresql import PostgresqlServer

SESSIONS = sorted(Path(__file__).parent.glob("*.session"))


@pytest.mark.parametrize("session", SESSIONS, ids=lambda path: path.stem)
def test_the_session_goes_as_it_is_written_down(session: Path, replay: Callable[[Path], tuple[str, str]]):
    transcript, written = replay(session)
    assert transcript == written


@pytest.mark.postgresql
def test_the_catalog_says_the_same_on_postgresql(postgresql: PostgresqlServer, replay: Callable[..., tuple[str, str]]):
    transcript, written = replay(Path(__file__).with_name("catalog.session"), postgresql.empty_database())
    assert transcript == written


def test_there_are_sessions():
    assert [path.stem for path in SESSIONS] == ["catalog", "manifest", "model"]
