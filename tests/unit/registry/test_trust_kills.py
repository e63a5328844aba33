"""A trust command that is killed at any of its steps: devices see the old state or the new one, and it is mended."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tuf.ngclient import Updater

from cloud_registry.errors import NotFoundError
from tests.trust_repositories import FolderFetcher, Publisher, model_file
from tests.unit.registry.trust_lives import STORIES, TWO, service_in

ONE = model_file("digits:1", b"one")
pytestmark = pytest.mark.timeout(180)


def allowed(folder: Path, device: Path, pinned: bytes) -> list[bool]:
    """Whether a device takes versions 1 and 2; raises where the metadata is not good."""
    device.mkdir(exist_ok=True)
    updater = Updater(str(device), "http://x/", fetcher=FolderFetcher(folder), bootstrap=pinned)
    updater.refresh()
    return [updater.get_targetinfo(file.target) is not None for file in (ONE, TWO)]


class Lives:
    """A repository, a device that has seen it, and what each life of each story left."""

    def __init__(self, directory: Path) -> None:
        self.work, self.seen = directory / "work", directory / "seen"
        self.work.mkdir()
        publisher = Publisher(self.work)
        publisher.sign(ONE)
        self.pinned = publisher.files["1.root.json"]
        assert allowed(publisher.store.metadata, self.seen, self.pinned) == [True, False]
        self.before = self.facts(self.work)
        command = [sys.executable, "-m", "tests.unit.registry.trust_lives", str(self.work), *STORIES]
        done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[3])
        assert done.returncode == 0, done.stderr
        self.found = [json.loads(line) for line in done.stdout.splitlines()]

    @staticmethod
    def facts(directory: Path) -> dict[str, bytes]:
        files = (path for path in directory.rglob("*") if path.is_file())
        return {str(path.relative_to(directory)): path.read_bytes() for path in files}

    def of(self, story: str) -> list[tuple[Path, str]]:
        """Where lives ended that left another state than the one before them did, and the step that was the last."""
        distinct: dict[object, tuple[Path, str]] = {}
        for told, left, last in self.found:
            if told == story:
                now = self.facts(Path(left))
                state = tuple((name, len(now[name]), now[name] == self.before.get(name)) for name in sorted(now))
                distinct[state, bool(last)] = (Path(left), last)
        return list(distinct.values())


def test_whatever_step_is_the_last_one_devices_see_a_good_state_and_the_next_command_mends_it(tmp_path):
    """One test for all stories, since they share what is costly: the lives."""
    lives = Lives(tmp_path)
    for story in STORIES:
        found = lives.of(story)
        assert len([last for _, last in found if last]) >= 5, found
        assert [last for _, last in found].count("") == 1
        for left, last in found:
            device = tmp_path / "devices" / left.name
            if story == "init":
                _check_made(lives, left, device, last)
            else:
                _check_changed(lives, left, device, f"{story}, killed before {last or 'nothing'}")


def _check_changed(lives: Lives, left: Path, device: Path, told: str) -> None:
    shutil.copytree(lives.seen, device)
    assert allowed(left / "trust" / "metadata", device, lives.pinned)[0], told
    # The next command, in the place where the keys are.
    shutil.rmtree(lives.work)
    shutil.copytree(left, lives.work)
    service = service_in(lives.work)
    service.refresh()
    service.sign([TWO])
    state = service.state()
    assert (state.problems, state.waiting) == ((), ()), told
    assert allowed(lives.work / "trust" / "metadata", device, lives.pinned) == [True, True], told


def _check_made(lives: Lives, left: Path, device: Path, last: str) -> None:
    directory, service = left, service_in(left)
    try:
        service.state()
    except NotFoundError:
        assert last, "a life that was not cut short made it"
        directory = lives.work
        shutil.rmtree(directory)
        shutil.copytree(left, directory)
        STORIES["init"](directory)
        service = service_in(directory)
    metadata = directory / "trust" / "metadata"
    device.mkdir(parents=True)
    assert allowed(metadata, device, (metadata / "1.root.json").read_bytes()) == [False, False]
    assert service.state().problems == ()
