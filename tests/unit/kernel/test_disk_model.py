"""What a disk may hold after a cut: what was synced always, what was not in any mixture."""

from random import Random

from simulators.kernel.disk import Create, Disk, MakeFolder, Mark, Remove, Rename, Sync, SyncFolder, Truncate, Write


def disk_of(*operations, tree=None) -> Disk:
    disk = Disk(tree)
    for operation in operations:
        disk.record(operation)
    return disk


def trees(disk: Disk, kind: str | None = None, samples: int = 20) -> list[dict]:
    found = []
    for state in disk.crash_states(Random(1), samples):
        if (kind is None or state.kind == kind) and dict(state.tree) not in found:
            found.append(dict(state.tree))
    return found


WRITTEN = (Create("a", 1), Write(1, 0, b"new"))


def test_what_was_not_synced_is_there_or_not_or_there_without_its_bytes():
    assert trees(disk_of(*WRITTEN), "kept") == [{"a": b"new"}]
    assert trees(disk_of(*WRITTEN), "lost") == [{}]
    assert {"a": b""} in trees(disk_of(*WRITTEN), "reordered")


def test_a_synced_file_whose_folder_was_not_may_still_have_no_name():
    assert trees(disk_of(*WRITTEN, Sync(1))) == [{"a": b"new"}, {}]


def test_a_synced_file_in_a_synced_folder_stays():
    assert trees(disk_of(*WRITTEN, Sync(1), SyncFolder(""))) == [{"a": b"new"}]


def test_a_synced_name_may_lead_to_missing_bytes():
    assert {"a": b""} in trees(disk_of(*WRITTEN, SyncFolder("")), "lost")


def test_a_rename_without_a_sync_of_its_bytes_may_lead_to_nothing():
    """The oldest mistake: write, rename, and no fsync between."""
    disk = disk_of(Write(-1, 0, b"new"), Rename("a", "b"), SyncFolder(""), tree={"a": b""})
    assert trees(disk) == [{"b": b"new"}, {"b": b""}, {"b": b"n"}, {"b": b"\0ew"}] or {"b": b""} in trees(disk)


def test_a_rename_happens_or_does_not():
    disk = disk_of(Rename("a", "folder/a"), tree={"a": b"1", "folder": None})
    assert trees(disk) == [{"folder": None, "folder/a": b"1"}, {"folder": None, "a": b"1"}]


def test_the_sync_of_one_folder_makes_the_whole_rename_durable():
    disk = disk_of(
        Create("parts/a", 1),
        Sync(1),
        Rename("parts/a", "blobs/a"),
        SyncFolder("blobs"),
        tree={"parts": None, "blobs": None},
    )
    assert trees(disk) == [{"parts": None, "blobs": None, "blobs/a": b""}]


def test_a_folder_that_nobody_synced_takes_its_synced_files_with_it():
    disk = disk_of(MakeFolder("blobs"), Create("blobs/a", 1), Write(1, 0, b"1"), Sync(1), SyncFolder("blobs"))
    assert trees(disk) == [{"blobs": None, "blobs/a": b"1"}, {}]


def test_later_bytes_may_be_there_without_earlier_ones():
    disk = disk_of(Create("a", 1), SyncFolder(""), Write(1, 0, b"one"), Write(1, 3, b"two"))
    assert {"a": b"\0\0\0two"} in trees(disk, "reordered")
    assert {"a": b"one"} in trees(disk, "reordered")


def test_a_write_is_torn_between_sectors():
    content = b"x" * 512 + b"y" * 512
    disk = disk_of(Create("a", 1), SyncFolder(""), Write(1, 0, content))
    assert {"a": b"x" * 512} in trees(disk, "torn")
    assert {"a": bytes(512) + b"y" * 512} in trees(disk, "torn")


def test_a_removal_may_be_undone_and_a_truncation_too():
    assert trees(disk_of(Remove("a"), tree={"a": b"1"})) == [{}, {"a": b"1"}]
    assert trees(disk_of(Truncate(-1, 1), tree={"a": b"123"})) == [{"a": b"1"}, {"a": b"123"}]


def test_a_mark_is_no_operation_of_the_disk():
    assert trees(disk_of(Mark("something"))) == [{}]


def test_of_many_changes_a_sample_is_the_same_for_the_same_seed():
    disk = disk_of(*(Create(f"file-{number}", number) for number in range(1, 12)))
    first, second = trees(disk), trees(disk)
    assert first == second
    assert len(first) > 10
