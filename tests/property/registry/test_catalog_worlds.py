"""The catalog against a naive model of itself, in worlds of registrations, deletions and tags."""

import multiprocessing
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec
import pytest
from hypothesis import given, note, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import Engine

from cloud_registry.adapters import sql_catalog
from cloud_registry.adapters.database import open_database
from cloud_registry.core.catalog import edited_tags, matches
from cloud_registry.core.http_ranges import answer
from cloud_registry.errors import ConflictError
from cloud_registry.ports import ModelQuery
from manifests.identity import ModelReference
from manifests.model import Artifact, Lineage, ModelManifest, Signature
from tests.postgresql import PostgresqlServer

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


ALIASES = ("champion", "next")
ACCURACIES = (None, 0.0, 0.5, 0.97, -1.0)


@st.composite
def comparisons(draw: st.DrawFn) -> str:
    """One test of a condition: fields that have rows, that have columns and that have neither, present or not."""
    field = draw(st.sampled_from(
        ["accuracy", "metric.accuracy", "version", "name", "alias", "format", "label", "archived", "size", "created",
         "author", *(f"tag.`{key}`" for key in KEYS), "tag.number", "property.run"]
    ))  # fmt: skip
    kind = draw(st.sampled_from(["present", "number", "text", "like", "in"]))
    is_number = field in ("accuracy", "metric.accuracy", "version", "size")
    texts = st.sampled_from([*VALUES, *NAMES, *ALIASES, "onnx", "zero", "true", "7", "2026-11-21"])
    quoted = texts.map(lambda text: "'" + text.replace("'", "''") + "'")
    if kind == "present":
        return field
    if kind == "number" or is_number:
        number = draw(st.sampled_from(["0", "0.5", "-1", "2", "7", "97e-2"]))
        return f"{field} {draw(st.sampled_from(['=', '!=', '<', '<=', '>', '>=']))} {number}"
    if field == "created":
        return f"created {draw(st.sampled_from(['<', '>=', '=']))} '2026-11-21'"
    if kind == "like":
        return f"{field} {draw(st.sampled_from(['', 'not ']))}like {draw(st.sampled_from(['*i*', 'p%', '*']))!r}"
    if kind == "in":
        return f"{field} {draw(st.sampled_from(['', 'not ']))}in ({draw(quoted)}, {draw(quoted)})"
    return f"{field} {draw(st.sampled_from(['=', '!=', '<', '>=']))} {draw(quoted)}"


conditions = st.recursive(
    comparisons(),
    lambda inner: st.one_of(
        inner.map(lambda text: f"not ({text})"),
        st.tuples(inner, st.sampled_from(["and", "or"]), inner).map(lambda parts: f"({' '.join(parts)})"),
    ),
    max_leaves=5,
)


def manifest(name: str, version: int, tags: dict[str, str], accuracy: float | None = None) -> ModelManifest:
    artifact = Artifact(
        format="onnx",
        digest="sha256:" + "0" * 64,
        size_bytes=1,
        target=f"{name}/{version}/model.onnx",
        signature=Signature(inputs=(), outputs=()),
    )
    return ModelManifest(
        name=name,
        version=version,
        artifacts=(artifact,),
        created_at=NOW,
        tags=tags,
        metrics={} if accuracy is None else {"accuracy": accuracy},
        labels=("zero", "one") if version % 2 else (),
        lineage=Lineage(author="vision", parent=f"{name}:{version - 1}") if version > 1 else None,
    )


class CatalogWorld(RuleBasedStateMachine):
    """Two connections to one database take turns; `kept` and `counted` are what must be so."""

    def empty_database(self) -> str:
        # In memory where there is such a place: durability is not what this is about.
        self.folder = TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None)
        return f"sqlite:///{self.folder.name}/catalog.db"

    @initialize()
    def open(self) -> None:
        url = self.empty_database()
        self.engines: list[Engine] = [open_database(url), open_database(url)]
        self.catalogs = [sql_catalog.SqlCatalog(engine) for engine in self.engines]
        self.kept: dict[ModelReference, ModelManifest] = {}
        self.counted: dict[str, int] = {}
        self.aliases: dict[tuple[str, str], int] = {}
        self.turn = 0

    def catalog(self) -> sql_catalog.SqlCatalog:
        self.turn += 1
        return self.catalogs[self.turn % 2]

    @rule(name=names, tags=tag_maps, accuracy=st.sampled_from(ACCURACIES))
    def register(self, name: str, tags: dict[str, str], accuracy: float | None) -> None:
        added = self.catalog().add(name, lambda version: manifest(name, version, tags, accuracy))
        self.counted[name] = self.counted.get(name, 0) + 1
        assert added.version == self.counted[name]
        self.kept[added.reference] = added

    @rule(name=names)
    def fail_to_register(self, name: str) -> None:
        def fail(_version: int) -> ModelManifest:
            raise RuntimeError("killed")

        with pytest.raises(RuntimeError):
            self.catalog().add(name, fail)

    def any_kept(self, data: st.DataObject) -> ModelReference:
        return data.draw(st.sampled_from(sorted(self.kept)))

    def change(self, reference: ModelReference, **changes: object) -> None:
        self.kept[reference] = msgspec.structs.replace(self.kept[reference], **changes)

    @precondition(lambda self: self.kept)
    @rule(data=st.data())
    def delete_one_that_is_there(self, data: st.DataObject) -> None:
        reference = self.any_kept(data)
        if self.kept[reference].aliases:
            with pytest.raises(ConflictError, match=r"is what .* stands for and was not deleted"):
                self.catalog().remove(reference)
        else:
            assert self.catalog().remove(reference)
            del self.kept[reference]

    @rule(name=names, version=st.integers(7, 9))
    def delete_one_that_is_not_there(self, name: str, version: int) -> None:
        if ModelReference(name, version) not in self.kept:
            assert not self.catalog().remove(ModelReference(name, version))

    @precondition(lambda self: self.kept)
    @rule(data=st.data(), changes=tag_maps, removed=st.lists(st.sampled_from(KEYS), max_size=2))
    def tag(self, data: st.DataObject, changes: dict[str, str], removed: list[str]) -> None:
        reference = self.any_kept(data)
        assert self.catalog().edit_tags(reference, lambda tags: edited_tags(tags, changes, removed))
        old = self.kept[reference].tags
        self.change(
            reference,
            tags=dict(sorted((key, value) for key, value in {**old, **changes}.items() if key not in removed)),
        )

    @precondition(lambda self: self.kept)
    @rule(data=st.data(), value=st.sampled_from(VALUES))
    def give_a_property(self, data: st.DataObject, value: str) -> None:
        reference = self.any_kept(data)
        assert self.catalog().add_properties(reference, lambda _: {"run": value})
        self.change(reference, properties={"run": value})

    @precondition(lambda self: self.kept)
    @rule(data=st.data(), archived=st.booleans())
    def put_away(self, data: st.DataObject, archived: bool) -> None:
        reference = self.any_kept(data)
        if archived and self.kept[reference].aliases:
            with pytest.raises(ConflictError, match="was not archived"):
                self.catalog().archive(reference, archived=True)
        else:
            assert self.catalog().archive(reference, archived=archived)
            self.change(reference, archived=archived)

    @rule(name=names, alias=st.sampled_from(ALIASES), version=st.one_of(st.none(), st.integers(1, 6)))
    def point(self, name: str, alias: str, version: int | None) -> None:
        seen: list[int | None] = []
        move = self.catalog().move_alias(name, alias, lambda before: seen.append(before) or version)
        before = self.aliases.get((name, alias))
        assert seen == [before]
        if version is not None and ModelReference(name, version) not in self.kept:
            assert move is None
            return
        assert move is not None
        assert (move.before, move.after) == (before, version)
        self.aliases.pop((name, alias), None)
        if version is not None:
            self.aliases[name, alias] = version
        for reference in [each for each in self.kept if each.name == name]:
            found = sorted(alias for (of, alias), to in self.aliases.items() if (of, to) == (name, reference.version))
            self.change(reference, aliases=tuple(found))

    @rule(condition=conditions, archived=st.sampled_from([None, False, True]))
    def ask(self, condition: str, archived: bool | None) -> None:
        query = ModelQuery(where=condition, archived=archived)
        expected = [self.kept[reference] for reference in sorted(self.kept) if matches(self.kept[reference], query)]
        note(f"{condition}: {len(expected)} of {len(self.kept)}")
        assert self.catalog().search(query) == expected
        assert self.catalog().search(replace(query, limit=1)) == expected[:1]

    @rule(query=queries)
    def search(self, query: ModelQuery) -> None:
        expected = [self.kept[reference] for reference in sorted(self.kept) if matches(self.kept[reference], query)]
        assert self.catalog().search(query) == expected

    @invariant()
    def everything_kept_is_found_and_nothing_else(self) -> None:
        if not hasattr(self, "catalogs"):
            return
        catalog = self.catalog()
        everything = [self.kept[reference] for reference in sorted(self.kept)]
        assert catalog.search(ModelQuery(archived=None)) == everything
        for pattern in PATTERNS:
            names_met = {name for name in NAMES if fnmatchcase(name, pattern.replace("?", "[?]"))}
            expected = [each for each in everything if each.name in names_met and not each.archived]
            assert catalog.search(ModelQuery(pattern)) == expected
        for name in NAMES:
            versions = [each.version for each in everything if each.name == name]
            unarchived = [each for each in everything if each.name == name and not each.archived]
            assert catalog.latest(name) == (unarchived[-1] if unarchived else None)
            assert catalog.last_version(name) == self.counted.get(name, 0)
            assert catalog.aliases(name) == {alias: to for (of, alias), to in self.aliases.items() if of == name}
            file = catalog.file(f"{name}/1/model.onnx")
            assert (file is not None) is (1 in versions)

    def teardown(self) -> None:
        for engine in getattr(self, "engines", []):
            engine.dispose()
        if hasattr(self, "folder"):
            self.folder.cleanup()


TestCatalogWorld = CatalogWorld.TestCase
TestCatalogWorld.settings = settings(max_examples=15, stateful_step_count=20)


@pytest.mark.postgresql
def test_the_world_on_postgresql(postgresql: PostgresqlServer):
    class PostgresqlWorld(CatalogWorld):
        def empty_database(self) -> str:
            return postgresql.empty_database()

    run_state_machine_as_test(PostgresqlWorld, settings=settings(max_examples=6, stateful_step_count=20))


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
