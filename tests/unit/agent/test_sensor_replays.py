"""Replays and folders with the clock in the test's hand."""

import json
import os
import wave
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from device_agent.adapters.csv_source import CsvSource
from device_agent.adapters.folder_source import FolderSource
from device_agent.adapters.image_source import ImageSource
from device_agent.adapters.wav_source import WavSource
from device_agent.config.settings import SensorSettings
from device_agent.core.folder import FileSeen, Settling, is_wanted
from device_agent.core.pacing import Schedule, Windows, mixed, samples_of_pcm, time_of
from device_agent.errors import ConfigurationError, SensorEndedError, SensorError, UnreadableReadingError


class TestClock:
    """Satisfies `Stopwatch`: a wait passes at once, is written down, and lets the world do something meanwhile."""

    __test__ = False

    def __init__(self) -> None:
        self.time_s = 100.0
        self.waits: list[float] = []
        self.meanwhile = []
        self.is_closed = False

    def now_s(self) -> float:
        return self.time_s

    def wait(self, delay_s: float) -> None:
        if self.is_closed:
            raise SensorEndedError("closed")
        if delay_s > 0:
            self.waits.append(round(delay_s, 6))
            self.time_s += delay_s
            if self.meanwhile:
                self.meanwhile.pop(0)()
            assert len(self.waits) < 1000, "waits for ever"

    def close(self) -> None:
        self.is_closed = True


@pytest.fixture
def clock():
    return TestClock()


# Timing ---------------------------------------------------------------------------------------------------------------


def test_a_schedule_keeps_gaps_and_speed():
    schedule, now_s, waits = Schedule(2.0), 0.0, []
    for recorded_s in (1000.0, 1001.0, 1001.0, 1005.0, 1004.0, 1006.0):
        waits.append(schedule.wait_s(recorded_s, now_s))
        now_s += waits[-1]
    assert waits == [0.0, 0.5, 0.0, 2.0, 0.0, 1.0]


def test_a_late_schedule_makes_up_for_a_moment_but_not_for_an_hour():
    schedule = Schedule(1.0)
    assert schedule.wait_s(0.0, 0.0) == 0.0
    assert schedule.wait_s(1.0, 1.4) == 0.0
    assert schedule.wait_s(2.0, 1.4) == pytest.approx(0.6)
    assert schedule.wait_s(3.0, 3600.0) == 0.0
    assert schedule.wait_s(4.0, 3600.0) == pytest.approx(1.0)


def test_a_new_round_begins_after_the_last_gap():
    schedule, now_s, waits = Schedule(1.0), 0.0, []
    for recorded_s in (0.0, 3.0, None, 0.0, 3.0):
        if recorded_s is None:
            schedule.wrap()
        else:
            waits.append(schedule.wait_s(recorded_s, now_s))
            now_s += waits[-1]
    assert waits == [0.0, 3.0, 3.0, 3.0]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("12.5", 12.5),
        ("1970-01-01T00:01:00", 60.0),
        ("1970-01-01 00:01:00+00:00", 60.0),
        ("1970-01-01T01:01+01:00", 60),
    ],
)
def test_times_are_seconds_or_dates(text, expected):
    assert time_of(text) == expected


@pytest.mark.parametrize("text", ["", "soon", "nan", "inf"])
def test_what_is_no_time_is_told(text):
    with pytest.raises(UnreadableReadingError):
        time_of(text)


def test_windows_are_whole():
    windows = Windows(4, 2)
    assert [windows.count(samples) for samples in (0, 3, 4, 5, 6, 10)] == [0, 0, 1, 1, 2, 4]


# CSV ------------------------------------------------------------------------------------------------------------------

TABLE = "at,a,b,name\n10,1,2,x\n11.5,3,4,y\n12,5,6,z\n"
TIMED = SensorSettings(time_column="at", id_column="name", dtype="float32")


def table(tmp_path: Path, text: str = TABLE) -> Path:
    path = tmp_path / "live.csv"
    path.write_text(text)
    return path


def shown(source, count: int) -> list[tuple]:
    readings = [source.next_reading() for _ in range(count)]
    return [(r.id, next(iter(r.inputs.values())).tolist(), r.position) for r in readings]


def test_a_table_is_replayed_with_its_timing_and_begins_anew(tmp_path, clock):
    source = CsvSource(table(tmp_path), TIMED, clock)
    assert shown(source, 5) == [
        ("x", [1, 2], 0),
        ("y", [3, 4], 1),
        ("z", [5, 6], 2),
        ("x", [1, 2], 3),
        ("y", [3, 4], 4),
    ]
    assert clock.waits == [1.5, 0.5, 0.5, 1.5]
    assert source.paces_itself


def test_a_table_without_times_is_read_once_an_interval(tmp_path, clock):
    source = CsvSource(table(tmp_path, "a;b\n1;2\n"), SensorSettings(delimiter=";"), clock)
    assert shown(source, 2) == [("live:1", [1, 2], 0), ("live:1", [1, 2], 1)]
    assert (source.paces_itself, clock.waits) == (False, [])


@pytest.mark.parametrize(("position", "then"), [(0, "y"), (2, "x"), (3, "y"), (3 * 1000 + 1, "z")])
def test_a_table_goes_on_where_it_was(tmp_path, clock, position, then):
    source = CsvSource(table(tmp_path), TIMED, clock)
    source.seek(position)
    (identifier, _, now), *_ = shown(source, 2)
    assert (identifier, now) == (then, position + 1)
    # The first reading after a start is given at once, and the next one with its gap, where there is one before it.
    assert clock.waits == {"y": [0.5], "x": [1.5], "z": []}[then]


def test_a_table_that_does_not_loop_ends_and_stays_ended_after_a_restart(tmp_path, clock):
    once = SensorSettings(loop=False, id_column="name", tensors={"t": ("b",)})
    source = CsvSource(table(tmp_path), once, clock)
    assert shown(source, 3)[-1] == ("z", [6], 2)
    for _ in range(2):
        with pytest.raises(SensorEndedError, match="3 rows"):
            source.next_reading()
    again = CsvSource(table(tmp_path), once, clock)
    again.seek(2)
    with pytest.raises(SensorEndedError):
        again.next_reading()
    again.seek(77)
    assert shown(again, 1) == [("x", [2], 0)]


def test_a_row_that_is_no_reading_is_passed_over_and_counted(tmp_path, clock):
    source = CsvSource(table(tmp_path, TABLE + "13,broken,6,bad\n14,7,8,w\n"), TIMED, clock)
    assert [identifier for identifier, _, _ in shown(source, 5)] == ["x", "y", "z", "w", "x"]
    assert source.facts().failed == 1


def test_a_table_that_went_bad_is_told_and_tried_again(tmp_path, clock):
    path = table(tmp_path, "a\n1\n")
    source = CsvSource(path, SensorSettings(), clock)
    source.next_reading()
    path.write_text("a\nx\n")
    with pytest.raises(SensorError, match="no row that is a reading"):
        source.next_reading()
    path.unlink()
    with pytest.raises(SensorError, match="cannot be read"):
        source.next_reading()
    path.write_text("a\n2\n")
    assert source.next_reading().inputs["value"].tolist() == [2]


@pytest.mark.parametrize(
    ("text", "settings", "words"),
    [
        (None, {}, "No such file"),
        ("", {}, "no rows"),
        ("a,b\n", {}, "no rows"),
        (TABLE, {}, "first row .* column 'name' holds 'x'"),
        (TABLE, {"time_column": "when"}, "no column 'when'; it has at, a, b, name"),
        (TABLE, {"tensors": {"f": ("a", "c")}}, "no column 'c'"),
        (TABLE, {"time_column": "name", "tensors": {"f": ("a",)}}, "neither a number of seconds"),
    ],
)
def test_a_table_that_cannot_be_used_is_told_at_the_start(tmp_path, clock, text, settings, words):
    path = tmp_path / "none.csv" if text is None else table(tmp_path, text)
    with pytest.raises(ConfigurationError, match=words) as caught:
        CsvSource(path, SensorSettings(**settings), clock)
    assert caught.value.hint


# WAV ------------------------------------------------------------------------------------------------------------------


def pcm(values: np.ndarray, width_bytes: int) -> bytes:
    """Whole numbers as a WAV file holds them."""
    if width_bytes == 1:
        return (values + 128).astype(np.uint8).tobytes()
    if width_bytes == 3:
        return values.astype("<i4").reshape(-1, 1).view(np.uint8)[:, :3].tobytes()
    return values.astype(f"<i{width_bytes}").tobytes()


def recording(path: Path, values: np.ndarray, *, width_bytes: int = 2, channels: int = 1, rate: int = 10) -> Path:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(width_bytes)
        file.setframerate(rate)
        file.writeframes(pcm(values, width_bytes))
    return path


@pytest.mark.parametrize("width_bytes", [1, 2, 3, 4])
def test_samples_of_every_width_become_the_same_numbers(width_bytes):
    full = 2 ** (8 * width_bytes - 1)
    values = np.array([-full, -full // 2, 0, full // 4, full // 2, full - 1])
    samples = samples_of_pcm(pcm(values, width_bytes), width_bytes, 2)
    assert samples.dtype == np.float32
    assert samples.shape == (3, 2)
    assert np.allclose(samples.reshape(-1), values / full, atol=1e-7)


def test_channels_are_mixed_chosen_or_kept():
    samples = np.array([[0.5, -0.25], [1.0, 0.0]], dtype=np.float32)
    assert mixed(samples, "mix", "float32").tolist() == [0.125, 0.5]
    assert mixed(samples, "left", "float32").tolist() == [0.5, 1.0]
    assert mixed(samples, "right", "float32").tolist() == [-0.25, 0.0]
    assert mixed(samples, "all", "float32").shape == (2, 2)
    assert mixed(samples, "left", "int16").tolist() == [16384, 32767]


def test_a_recording_is_replayed_in_windows_with_its_timing(tmp_path, clock):
    path = recording(tmp_path / "pump.wav", np.arange(20) * 1000, rate=10)
    source = WavSource(path, SensorSettings(window_samples=8, hop_samples=5, sample_type="int16"), clock)
    found = shown(source, 5)
    assert [(identifier, values[0], len(values), position) for identifier, values, position in found] == [
        ("pump@0.000", 0, 8, 0),
        ("pump@0.500", 5000, 8, 1),
        ("pump@1.000", 10000, 8, 2),
        ("pump@0.000", 0, 8, 3),
        ("pump@0.500", 5000, 8, 4),
    ]
    assert clock.waits == [0.5, 0.5, 0.5, 0.5]


def test_a_recording_goes_on_where_it_was_or_ends(tmp_path, clock):
    path = recording(tmp_path / "pump.wav", np.arange(20), rate=10)
    once = SensorSettings(window_samples=5, loop=False)
    source = WavSource(path, once, clock)
    source.seek(2)
    assert [entry[0] for entry in shown(source, 1)] == ["pump@1.500"]
    with pytest.raises(SensorEndedError, match="4 windows"):
        source.next_reading()
    source.seek(99)
    assert shown(source, 1)[0][0] == "pump@0.000"


def test_a_recording_that_was_cut_off_gives_its_whole_windows(tmp_path, clock):
    path = recording(tmp_path / "pump.wav", np.arange(20), rate=10)
    os.truncate(path, 44 + 2 * 13)
    source = WavSource(path, SensorSettings(window_samples=5), clock)
    assert [entry[0] for entry in shown(source, 4)] == ["pump@0.000", "pump@0.500", "pump@0.000", "pump@0.500"]


@pytest.mark.parametrize("content", [None, b"", b"RIFF....", b"ID3 music"])
def test_a_file_that_is_no_recording_is_told_at_the_start(tmp_path, clock, content):
    path = tmp_path / "pump.wav"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigurationError, match="cannot be read") as caught:
        WavSource(path, SensorSettings(), clock)
    assert "PCM" in caught.value.hint


def test_a_recording_shorter_than_a_window_is_told(tmp_path, clock):
    path = recording(tmp_path / "pump.wav", np.arange(4), rate=10)
    with pytest.raises(ConfigurationError, match=r"4 samples, less than a window of 10") as caught:
        WavSource(path, SensorSettings(), clock)
    assert "window_samples" in caught.value.hint


# Folder ---------------------------------------------------------------------------------------------------------------


def seen(name: str, modified_ns: int = 1, size_bytes: int = 1) -> FileSeen:
    return FileSeen(name, size_bytes, modified_ns)


def test_a_file_is_complete_when_it_has_not_changed_for_a_while():
    settling = Settling(1.0)
    assert settling.complete([seen("a"), seen("b", 2)], 0.0) == []
    # b grows, a does not; a file's own time is compared with nothing but itself.
    assert settling.complete([seen("a"), seen("b", 3)], 1.0) == [seen("a")]
    assert settling.complete([seen("a"), seen("b", 3)], 1.9) == [seen("a")]
    assert settling.complete([seen("b", 3), seen("a")], 2.0) == [seen("a"), seen("b", 3)]
    # Gone and come back is new.
    assert settling.complete([], 3.0) == []
    assert settling.complete([seen("a")], 3.5) == []


def test_files_come_in_the_order_of_their_times_then_names():
    files = [seen("b", 5), seen("a", 5), seen("z", 1)]
    assert [file.name for file in Settling(0.0).complete(files, 0.0)] == ["z", "a", "b"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [("a.npy", True), ("A.NPY", True), (".a.npy", False), ("a.npy.part", False), ("a.npy~", False), ("a.txt", False)],
)
def test_unfinished_files_have_names_that_tell(name, expected):
    assert is_wanted(name, (".npy",)) is expected


class Folder:
    def __init__(self, tmp_path: Path, clock: TestClock) -> None:
        self.path, self.state, self.clock = tmp_path / "in", tmp_path / "state", clock
        self.path.mkdir()
        self.state.mkdir()
        self._time_s = 1_000_000

    def put(self, name: str, content: object, *, at_s: int | None = None) -> None:
        self._time_s += 1
        path = self.path / name
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        os.utime(path, (at_s or self._time_s, at_s or self._time_s))

    def source(self, **settings) -> FolderSource:
        return FolderSource(self.path, SensorSettings(**settings), self.state / "folder.jsonl", self.clock)

    def names(self) -> list[str]:
        return sorted(str(path.relative_to(self.path)) for path in self.path.rglob("*") if path.is_file())


@pytest.fixture
def folder(tmp_path, clock):
    return Folder(tmp_path, clock)


def store(reading) -> None:
    if reading.receipt is not None:
        reading.receipt.stored()


def test_files_are_read_once_and_in_order_as_they_come(folder, clock):
    folder.put("b.json", [1])
    folder.put("a.json", {"id": "mine", "inputs": {"x": 2}})
    folder.put("rows.csv", "x,y\n3,4\n5,6\n")
    source = folder.source(settle_s=0)
    found = shown(source, 4)
    assert found == [
        ("b.json", [1], None),
        ("mine", [2], None),
        ("rows.csv:1", [3, 4], None),
        ("rows.csv:2", [5, 6], None),
    ]
    clock.meanwhile = [lambda: None, lambda: folder.put("late.json", [7])]
    assert shown(source, 1) == [("late.json", [7], None)]
    assert clock.waits == [0.2, 0.2]


def test_a_file_that_is_still_written_is_waited_for(folder, clock):
    folder.put("a.json", "[1,")
    clock.meanwhile = [lambda: folder.put("a.json", "[1, 2"), lambda: None, lambda: folder.put("a.json", "[1, 2]")]
    assert shown(folder.source(settle_s=0.5, poll_s=0.2), 1) == [("a.json", [1, 2], None)]
    assert clock.waits == [0.2] * 6


@pytest.mark.parametrize(
    ("after", "left"),
    [
        ("leave", ["a.json", "b.csv"]),
        ("delete", []),
        ("move", ["done/a.json", "done/b.csv"]),
    ],
)
def test_a_file_is_put_away_when_its_answers_are_stored_and_not_earlier(folder, after, left):
    folder.put("a.json", [1])
    folder.put("b.csv", "x\n1\n2\n")
    source = folder.source(settle_s=0, after=after)
    readings = [source.next_reading() for _ in range(3)]
    assert folder.names() == ["a.json", "b.csv"]
    store(readings[0])
    store(readings[1])
    assert [name for name in folder.names() if name.endswith("b.csv")] == ["b.csv"]
    # Killed here, the rows of b come again; a does not.
    again = folder.source(settle_s=0, after=after)
    assert again.next_reading().id == "b.csv:1"
    store(again.next_reading())
    assert folder.names() == left
    folder.put("c.json", [3])
    assert folder.source(settle_s=0, after=after).next_reading().id == "c.json"


def test_a_file_that_changed_is_read_again_and_the_list_does_not_grow(folder):
    folder.put("a.json", [1])
    folder.put("gone.json", [2])
    source = folder.source(settle_s=0)
    for _ in range(2):
        store(source.next_reading())
    (folder.path / "gone.json").unlink()
    folder.put("a.json", [9])
    again = folder.source(settle_s=0)
    assert len((folder.state / "folder.jsonl").read_text().splitlines()) == 1
    reading = again.next_reading()
    assert reading.inputs["value"].tolist() == [9]
    # A line that was cut off, as by a power cut, is no obstacle.
    store(reading)
    with (folder.state / "folder.jsonl").open("a") as ledger:
        ledger.write('{"name": "b')
    folder.put("z.json", [3])
    assert folder.source(settle_s=0).next_reading().id == "z.json"


def test_a_file_that_is_no_reading_is_passed_over_kept_and_counted(folder):
    folder.put("bad.json", "not much")
    folder.put("bad.csv", "x\nno\n")
    folder.put("good.json", [1])
    source = folder.source(settle_s=0, after="move")
    assert source.next_reading().id == "good.json"
    assert source.facts().failed == 2
    assert folder.names() == ["done/unreadable/bad.csv", "done/unreadable/bad.json", "good.json"]


def test_a_bad_file_is_read_once_it_is_mended(folder, clock):
    folder.put("a.json", "[1")
    source = folder.source(settle_s=0, after="delete")
    clock.meanwhile = [lambda: None, lambda: None, lambda: folder.put("a.json", "[1]")]
    assert source.next_reading().inputs["value"].tolist() == [1]
    assert source.facts().failed == 1


def test_moving_overwrites_nothing(folder):
    for number in range(3):
        folder.put("a.json", [number])
        store(folder.source(settle_s=0, after="move").next_reading())
    assert folder.names() == ["done/a.1.json", "done/a.2.json", "done/a.json"]


def test_a_folder_that_goes_away_is_told_and_taken_up_again(folder):
    source = folder.source(settle_s=0)
    folder.path.rename(folder.path.with_name("away"))
    with pytest.raises(SensorError, match="cannot be read"):
        source.next_reading()
    folder.path.with_name("away").rename(folder.path)
    folder.put("a.json", [1])
    assert source.next_reading().id == "a.json"


def test_a_folder_that_cannot_be_used_is_told_at_the_start(folder, tmp_path):
    with pytest.raises(ConfigurationError, match="no folder"):
        FolderSource(tmp_path / "nowhere", SensorSettings(), tmp_path / "x", folder.clock)
    with pytest.raises(ConfigurationError, match="is the folder that is read"):
        folder.source(after="move", moved_to=str(folder.path))
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match="cannot be moved to"):
        folder.source(after="move", moved_to=str(tmp_path / "file"))


def test_closing_ends_the_wait_for_a_file(folder, clock):
    source = folder.source()
    clock.meanwhile = [source.close]
    with pytest.raises(SensorEndedError):
        source.next_reading()


# Images ---------------------------------------------------------------------------------------------------------------


def picture(path: Path, value: int, *, size: tuple[int, int] = (4, 2), at_s: int | None = None, **options) -> None:
    Image.new("RGB", size, (value, 0, 255)).save(path, **options)
    if at_s is not None:
        os.utime(path, (at_s, at_s))


def test_pictures_are_replayed_at_their_rate(tmp_path, clock):
    for number, suffix in enumerate(("png", "bmp", "jpg")):
        picture(tmp_path / f"{number}.{suffix}", number * 100)
    source = ImageSource(tmp_path, SensorSettings(frames_per_second=4), clock)
    readings = [source.next_reading() for _ in range(5)]
    assert [(r.id, r.position) for r in readings] == [
        ("0.png", 0),
        ("1.bmp", 1),
        ("2.jpg", 2),
        ("0.png", 3),
        ("1.bmp", 4),
    ]
    assert clock.waits == [0.25] * 4
    array = readings[1].inputs["value"]
    assert (array.shape, array.dtype.name, array[0, 0].tolist()) == ((2, 4, 3), "uint8", [100, 0, 255])
    # JPEG is not exact.
    assert np.allclose(readings[2].inputs["value"][0, 0], [200, 0, 255], atol=3)


def test_a_picture_is_turned_upright_and_may_be_gray(tmp_path, clock):
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees to see it upright
    picture(tmp_path / "a.jpg", 50, exif=exif)
    source = ImageSource(tmp_path, SensorSettings(color="gray"), clock)
    assert source.next_reading().inputs["value"].shape == (4, 2, 1)
    assert source.paces_itself is False


def test_a_replay_of_pictures_goes_on_where_it_was_or_ends(tmp_path, clock):
    for number in range(3):
        picture(tmp_path / f"{number}.png", number)
    round_and_round = ImageSource(tmp_path, SensorSettings(), clock)
    round_and_round.seek(4)
    assert round_and_round.next_reading().id == "2.png"
    once = ImageSource(tmp_path, SensorSettings(loop=False), clock)
    once.seek(1)
    assert once.next_reading().id == "2.png"
    with pytest.raises(SensorEndedError):
        once.next_reading()


def test_a_broken_picture_is_passed_over(tmp_path, clock):
    picture(tmp_path / "a.png", 1)
    content = (tmp_path / "a.png").read_bytes()
    (tmp_path / "b.png").write_bytes(content[:40])
    (tmp_path / "c.png").write_bytes(b"")
    source = ImageSource(tmp_path, SensorSettings(), clock)
    assert [source.next_reading().id for _ in range(2)] == ["a.png", "a.png"]
    assert source.facts().failed == 2
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(SensorError, match="no picture that can be read"):
        source.next_reading()


def test_the_latest_picture_is_given_and_older_ones_are_passed_over(tmp_path, clock):
    for number in range(3):
        picture(tmp_path / f"{number}.png", number, at_s=1000 + number)
    source = ImageSource(tmp_path, SensorSettings(latest=True, settle_s=0), clock)
    assert source.next_reading().id == "2.png"
    assert source.facts().dropped == 2
    # The clock was set back, so the next picture looks older than the one before it.
    clock.meanwhile = [lambda: None, lambda: picture(tmp_path / "3.png", 3, at_s=10)]
    assert source.next_reading().id == "3.png"
    # The same name again, as a camera that has one file does it.
    clock.meanwhile = [lambda: picture(tmp_path / "3.png", 99, at_s=2000)]
    assert source.next_reading().inputs["value"][0, 0, 0] == 99


def test_a_folder_without_pictures_is_told_at_the_start(tmp_path, clock):
    with pytest.raises(ConfigurationError, match="holds no picture"):
        ImageSource(tmp_path, SensorSettings(), clock)
    ImageSource(tmp_path, SensorSettings(latest=True), clock)


def test_without_pillow_the_error_says_what_to_install(tmp_path, clock, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "PIL.Image", None)
    with pytest.raises(ConfigurationError, match="Pillow") as caught:
        ImageSource(tmp_path, SensorSettings(latest=True), clock)
    assert "slipway[agent,images]" in caught.value.hint
