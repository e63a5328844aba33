"""The catalog against a naive model of itself, in worlds of registrations, deletions and tags."""

import multiprocessing
import subprocess
import sys
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from sqlalchemy import Engine

from cloud_registry.adapters import sql_catalog
from cloud_registry.adapters.database import metadata, open_database
from cloud_registry.core.catalog import edited_tags, matches
from cloud_registry.core.http_ranges import answer
from cloud_registry.ports import ModelQuery
from manifests.identity import ModelReference
from manifests.model import Artifact, ModelManifest, Signature

# Names that differ by what LIKE might take for a wildcard, and tags that differ by case and accents.
NAMES = ("digits", "dig_ts", "dig-ts", "d", "faces")
KEYS = ("stage", "team", "Stage", "städ")
VALUES = ("", "production", "Production", "a%b", "é", "'; DROP TABLE model_tags; --")
NOW = datetime(2026, 11, 21, tzinfo=UTC).isoformat()

names = st.sampled_from(NAMES)
tag_maps = st.dictionaries(st.sampled_from(KEYS), st.sampled_from(VALUES), max_size=3)
PATTERNS = ("*", "d*", "dig?ts", "dig%", "*s", "d*t*", "*i*i*", "_", "D*", *NAMES)
patterns = st.one_of(st.none(), st.sampled_from(PATTERNS))
queries = st.builds(
    ModelQuery,
    patterns,
    st.lists(st.tuples(st.sampled_from(KEYS), st.one_of(st.none(), st.sampled_from(VALUES))), max_size=2).map(tuple),
)


def manifest(name: str, version: int, tags: dict[str, str]) -> ModelManifest:
    artifact = Artifact(
        format="onnx",
        digest="sha256:" + "0" * 64,
        size_bytes=1,
        target=f"{name}/{version}/model.onnx",
        signature=Signature(inputs=(), outputs=()),
    )
    return ModelManifest(name=name, version=version, artifacts=(artifact,), created_at=NOW, tags=tags)


class CatalogWorld(RuleBasedStateMachine):
    """Two connections to one database take turns; `kept` and `counted` are what must be so."""

    @initialize()
    def open(self) -> None:
        # In memory where there is such a place: durability is not what this is about.
        self.folder = TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None)
        url = f"sqlite:///{self.folder.name}/catalog.db"
        self.engines: list[Engine] = [open_database(url), open_database(url)]
        self.catalogs = [sql_catalog.SqlCatalog(engine) for engine in self.engines]
        self.kept: dict[ModelReference, ModelManifest] = {}
        self.counted: dict[str, int] = {}
        self.turn = 0

    def catalog(self) -> sql_catalog.SqlCatalog:
        self.turn += 1
        return self.catalogs[self.turn % 2]

    @rule(name=names, tags=tag_maps)
    def register(self, name: str, tags: dict[str, str]) -> None:
        added = self.catalog().add(name, lambda version: manifest(name, version, tags))
        self.counted[name] = self.counted.get(name, 0) + 1
        assert added.version == self.counted[name]
        self.kept[added.reference] = added

    @rule(name=names)
    def fail_to_register(self, name: str) -> None:
        def fail(_version: int) -> ModelManifest:
            raise RuntimeError("killed")

        with pytest.raises(RuntimeError):
            self.catalog().add(name, fail)

    @precondition(lambda self: self.kept)
    @rule(data=st.data())
    def delete_one_that_is_there(self, data: st.DataObject) -> None:
        reference = data.draw(st.sampled_from(sorted(self.kept)))
        assert self.catalog().remove(reference)
        del self.kept[reference]

    @rule(name=names, version=st.integers(1, 6))
    def delete(self, name: str, version: int) -> None:
        reference = ModelReference(name, version)
        assert self.catalog().remove(reference) is (self.kept.pop(reference, None) is not None)

    @precondition(lambda self: self.kept)
    @rule(data=st.data(), changes=tag_maps, removed=st.lists(st.sampled_from(KEYS), max_size=2))
    def tag(self, data: st.DataObject, changes: dict[str, str], removed: list[str]) -> None:
        reference = data.draw(st.sampled_from(sorted(self.kept)))
        assert self.catalog().edit_tags(reference, lambda tags: edited_tags(tags, changes, removed))
        old = self.kept[reference]
        tags = {key: value for key, value in {**old.tags, **changes}.items() if key not in removed}
        self.kept[reference] = manifest(old.name, old.version, dict(sorted(tags.items())))

    @rule(query=queries)
    def search(self, query: ModelQuery) -> None:
        expected = [self.kept[reference] for reference in sorted(self.kept) if matches(self.kept[reference], query)]
        found = self.catalog().search(query)
        assert [(one.reference, one.tags) for one in found] == [
            (one.reference, dict(sorted(one.tags.items()))) for one in expected
        ]

    @invariant()
    def everything_kept_is_found_and_nothing_else(self) -> None:
        if not hasattr(self, "catalogs"):
            return
        catalog = self.catalog()
        assert [found.reference for found in catalog.search(ModelQuery())] == sorted(self.kept)
        for pattern in PATTERNS:
            names_met = {name for name in NAMES if fnmatchcase(name, pattern.replace("?", "[?]"))}
            expected = [reference for reference in sorted(self.kept) if reference.name in names_met]
            assert [found.reference for found in catalog.search(ModelQuery(pattern))] == expected
        for name in NAMES:
            versions = [reference.version for reference in self.kept if reference.name == name]
            latest = catalog.latest(name)
            assert (latest.version if latest else None) == max(versions, default=None)
            assert catalog.last_version(name) == self.counted.get(name, 0)
            file = catalog.file(f"{name}/1/model.onnx")
            assert (file is not None) is (1 in versions)

    def teardown(self) -> None:
        for engine in getattr(self, "engines", []):
            engine.dispose()
        if hasattr(self, "folder"):
            self.folder.cleanup()


TestCatalogWorld = CatalogWorld.TestCase
TestCatalogWorld.settings = settings(max_examples=20, stateful_step_count=20, deadline=None)


WRITER = """
import sys
from cloud_registry.adapters import sql_catalog
from cloud_registry.adapters.database import open_database
from manifests.identity import ModelReference
from tests.property.registry.test_catalog_worlds import manifest
catalog = sql_catalog.SqlCatalog(open_database(sys.argv[1]))
for number in range(int(sys.argv[2])):
    added = catalog.add("digits", lambda version: manifest("digits", version, {"by": sys.argv[3]}))
    print(added.version, flush=True)
    if number % 3 == 2:
        assert catalog.remove(added.reference)
"""


def test_no_version_is_given_twice_by_processes_that_register_and_delete_at_once(tmp_path: Path):
    url, each, writers = f"sqlite:///{tmp_path}/catalog.db", 25, 3
    root = Path(__file__).parents[3]
    running = [
        # The first of them also makes the database, which the others may find half made.
        subprocess.Popen(
            [sys.executable, "-c", WRITER, url, str(each), str(number)], stdout=subprocess.PIPE, text=True, cwd=root
        )
        for number in range(writers)
    ]
    given_versions = []
    for process in running:
        output, _ = process.communicate(timeout=60)
        assert process.returncode == 0
        versions = [int(line) for line in output.split()]
        assert versions == sorted(versions)
        given_versions += versions
    assert sorted(given_versions) == list(range(1, writers * each + 1))
    kept = sql_catalog.SqlCatalog(open_database(url)).search(ModelQuery())
    assert len(kept) == writers * (each - each // 3)
    assert multiprocessing.active_children() == []


def test_the_sql_is_not_only_sqlites():
    # Every statement of the schema can be spelled for PostgreSQL; what is asked at run time is plain SQL of SQLAlchemy.
    from sqlalchemy.dialects import postgresql
    from sqlalchemy.schema import CreateIndex, CreateTable

    for table in metadata.sorted_tables:
        assert str(CreateTable(table).compile(dialect=postgresql.dialect()))
        for index in table.indexes:
            assert str(CreateIndex(index).compile(dialect=postgresql.dialect()))


# --- ranges ------------------------------------------------------------------


@settings(deadline=None, max_examples=300)
@given(
    content=st.binary(max_size=40),
    first=st.one_of(st.none(), st.integers(0, 60)),
    last=st.one_of(st.none(), st.integers(0, 60)),
)
def test_a_ranged_answer_is_the_slice_that_python_would_cut(content: bytes, first: int | None, last: int | None):
    header = f"bytes={'' if first is None else first}-{'' if last is None else last}"
    said = answer({"range": header}, "tag", len(content))
    if first is None and last is None:
        expected = (200, content)
    elif first is None:
        assert last is not None
        expected = (206, content[-last:]) if last and content else (416, b"")
    elif last is not None and last < first:
        expected = (200, content)
    else:
        cut = content[first:] if last is None else content[first : last + 1]
        expected = (206, cut) if cut else (416, b"")
    assert (said.status, content[said.start : said.stop]) == expected


@settings(deadline=None, max_examples=200)
@given(content=st.binary(min_size=1, max_size=200), cuts=st.lists(st.integers(1, 50), max_size=8))
def test_a_download_that_is_cut_again_and_again_comes_together(content: bytes, cuts: list[int]):
    have = b""
    for length in [*cuts, len(content)]:
        if len(have) == len(content):
            break
        said = answer({"range": f"bytes={len(have)}-", "if-range": '"tag"'}, "tag", len(content))
        assert (said.status, said.start) == (206, len(have))
        have += content[said.start : said.stop][:length]
    assert have == content
