"""The recording disk against the real one: every way in which the agent writes is in the record, in order."""

import errno
import os
import sqlite3
import threading

import pytest

from simulators.kernel import sqlite_vfs
from simulators.kernel.disk import Create, MakeFolder, Remove, Rename, Sync, SyncFolder, Truncate, Write
from simulators.kernel.recording import recording

pytestmark = pytest.mark.skipif(
    sqlite_vfs.library() is None, reason="libsqlite3 is linked into the _sqlite3 module, where nothing can watch it"
)


def test_the_calls_of_the_os_and_of_paths_are_recorded_in_order(tmp_path):
    with recording(tmp_path) as record:
        folder = tmp_path / "folder"
        folder.mkdir()
        with (folder / "a").open("wb") as file:
            file.write(b"one")
            file.flush()
            os.fsync(file.fileno())
            os.write(file.fileno(), b"two")
        (folder / "a").rename(folder / "b")
        descriptor = os.open(folder, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
        os.truncate(folder / "b", 4)
        (folder / "b").unlink()
        record.check()
    number = record.operations[1].file
    assert record.operations == [
        MakeFolder("folder"),
        Create("folder/a", number),
        Write(number, 0, b"one"),
        Sync(number),
        Write(number, 3, b"two"),
        Rename("folder/a", "folder/b"),
        SyncFolder("folder"),
        Truncate(number, 4),
        Remove("folder/b"),
    ]


def test_writing_again_appending_and_text_are_recorded_as_they_are(tmp_path):
    (tmp_path / "old").write_bytes(b"0123456789")
    with recording(tmp_path) as record:
        with (tmp_path / "old").open("r+b") as file:
            file.seek(4)
            file.write(b"xx")
        with (tmp_path / "old").open("ab") as file:
            file.write(b"yy")
        (tmp_path / "text").write_text("grün")
        (tmp_path / "text").write_bytes(b"")
        record.check()
    assert (tmp_path / "old").read_bytes() == b"0123xx6789yy"


@pytest.mark.parametrize("mode", ["WAL", "DELETE", "TRUNCATE"])
def test_sqlite_is_recorded_to_the_byte_in_every_journal_mode(tmp_path, mode):
    with recording(tmp_path) as record:
        connection = sqlite3.connect(tmp_path / "some.db", isolation_level=None)
        connection.execute(f"PRAGMA journal_mode={mode}")
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("CREATE TABLE facts (name TEXT, value BLOB)")
        for number in range(40):
            connection.execute("INSERT INTO facts VALUES (?, zeroblob(9000))", (str(number),))
        record.check()
        connection.execute("DELETE FROM facts")
        connection.execute("VACUUM")
        record.check()
        connection.close()
        record.check()
    kinds = {type(operation) for operation in record.operations}
    assert {Create, Write, Sync, SyncFolder, Remove} <= kinds | ({Remove} if mode == "TRUNCATE" else set())
    assert any(isinstance(o, Create) and o.path.startswith("some.db-") for o in record.operations)


def test_a_commit_is_durable_when_it_returns_and_not_before(tmp_path):
    """What the model makes of SQLite's own promise: nothing that was committed is missing from any crash state."""
    from random import Random

    from simulators.kernel.recording import write_tree

    with recording(tmp_path / "disk") as record:
        (tmp_path / "disk").mkdir()
        connection = sqlite3.connect(tmp_path / "disk" / "some.db", isolation_level=None)
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("CREATE TABLE facts (name TEXT)")
        connection.execute("INSERT INTO facts VALUES ('kept')")
        states = list(record.disk.crash_states(Random(0)))
        connection.close()
    for number, state in enumerate(states):
        write_tree(state.tree, tmp_path / str(number))
        with sqlite3.connect(tmp_path / str(number) / "some.db") as found:
            assert found.execute("SELECT name FROM facts").fetchall() == [("kept",)]


def test_threads_are_recorded_in_the_order_in_which_they_wrote(tmp_path):
    with recording(tmp_path) as record:
        with (tmp_path / "a").open("ab") as file:

            def write(letter: bytes) -> None:
                for _ in range(50):
                    os.write(file.fileno(), letter)

            threads = [threading.Thread(target=write, args=(letter,)) for letter in (b"a", b"b", b"c")]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        record.check()


def test_what_it_does_not_see_does_not_stay_unnoticed(tmp_path):
    with recording(tmp_path) as record:
        # As a program would that is not Python: the record knows nothing of it.
        assert os.system(f"echo unseen > {tmp_path}/a") == 0
        with pytest.raises(AssertionError, match="a: the record has nothing, the disk 7 bytes"):
            record.check()
        with pytest.raises(AssertionError, match=r"does not know os\.link"):
            os.link(tmp_path / "a", tmp_path / "b")


def test_files_elsewhere_are_none_of_its_business(tmp_path):
    with recording(tmp_path / "in") as record:
        (tmp_path / "out").write_text("elsewhere")
        connection = sqlite3.connect(tmp_path / "out.db")
        connection.execute("CREATE TABLE facts (name TEXT)")
        connection.close()
    assert record.operations == []


@pytest.mark.parametrize(("number", "said"), [(errno.ENOSPC, "full"), (errno.EIO, "disk I/O error")])
def test_a_fault_stops_python_and_sqlite_alike(tmp_path, number, said):
    with recording(tmp_path) as record:
        connection = sqlite3.connect(tmp_path / "some.db", isolation_level=None)
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("CREATE TABLE facts (name TEXT)")

        def refuse(operation) -> None:
            if isinstance(operation, Write | Create):
                raise OSError(number, os.strerror(number))

        record.before = refuse
        with pytest.raises(OSError, match=os.strerror(number)):
            (tmp_path / "a").write_bytes(b"1")
        with pytest.raises(sqlite3.OperationalError, match=said):
            connection.execute("INSERT INTO facts VALUES ('a')")
        record.before = lambda operation: None
        connection.execute("INSERT INTO facts VALUES ('b')")
        record.check()
        connection.close()


def test_afterwards_everything_is_as_before(tmp_path):
    before = (os.open, os.write, os.unlink, open)
    with recording(tmp_path):
        assert os.open is not before[0]
    assert (os.open, os.write, os.unlink, open) == before
    connection = sqlite3.connect(tmp_path / "some.db")
    connection.execute("CREATE TABLE facts (name TEXT)")
    connection.close()
