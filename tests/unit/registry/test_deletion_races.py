"""A deletion and whoever begins to name the version meanwhile: one of the two is told, whatever the order.

Both orders are played on purpose: the other side acts inside the deletion, between its look at the fleet and its last
look at the database; or it begins first, holds its transaction open, and the deletion waits for it.
"""

import threading
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

import pytest
from sqlalchemy import Engine, insert

from cloud_registry.adapters.database import open_database
from cloud_registry.adapters.sql_catalog import SqlCatalog, hold
from cloud_registry.adapters.sql_images import SqlImages
from cloud_registry.adapters.sql_images import images as image_table
from cloud_registry.adapters.sql_rollouts import SqlRollouts
from cloud_registry.adapters.transactions import writing
from cloud_registry.core.images.records import ImageRecord
from cloud_registry.core.rollout import events as ev
from cloud_registry.core.rollout.documents import DevicePlan, ReleaseContent, RolloutPlan
from cloud_registry.errors import ConflictError, NotFoundError
from cloud_registry.ports import AliasMove, ModuleTwin
from cloud_registry.service.models import LOOKS_MAX, ModelService
from manifests.identity import ModelReference
from manifests.model import Artifact, ModelManifest, Signature

NOW = datetime(2026, 11, 21, 9, 0, tzinfo=UTC)
V1, V2 = ModelReference("digits", 1), ModelReference("digits", 2)
TIMEOUT_S = 20.0


def manifest(version: int) -> ModelManifest:
    artifact = Artifact(
        format="onnx",
        digest=f"sha256:{version:064d}",
        size_bytes=1000,
        target=f"digits/{version}/model.onnx",
        signature=Signature(inputs=(), outputs=()),
    )
    return ModelManifest(name="digits", version=version, artifacts=(artifact,), created_at=NOW.isoformat())


def plan(offer: int | None = 2, restore: int | None = 1, device: str = "dev-01") -> RolloutPlan:
    kept = [version for version in (offer, restore) if version is not None]
    contents = [ReleaseContent.of_artifact(manifest(version), manifest(version).artifacts[0]) for version in kept]
    keys = {content.version: content.key for content in contents}
    return RolloutPlan(
        id="",
        kind="release",
        model="digits",
        version=offer,
        generation=1,
        module_id="slipway",
        target="*",
        waves=((device,),),
        devices={device: DevicePlan(wave=1, offer=keys.get(offer or 0), restore=keys.get(restore or 0))},
        contents={content.key: content for content in contents},
        created_at=NOW.isoformat(),
    )


RECORD = ImageRecord(
    name="slipway-digits:2",
    digest="sha256:" + "a" * 64,
    media_type="application/vnd.oci.image.index.v1+json",
    size_bytes=1,
    model="digits:2",
    created_at=NOW.isoformat(),
    platforms=(),
)


class Registry:
    """Services on one database. `elsewhere` is a second connection to it, as another process would have."""

    def __init__(self, url: str) -> None:
        self.engine, self.elsewhere = open_database(url), open_database(url)
        self.catalog = SqlCatalog(self.engine)
        for _ in range(2):
            self.catalog.add("digits", manifest)
        nothing: Any = None
        self.models = ModelService(self.catalog, nothing, nothing, nothing, lambda: NOW)


@pytest.fixture
def registry(database_url: str) -> Registry:
    return Registry(database_url)


class HubThatIsSlow:
    """A fleet without devices; while it is asked, something else happens."""

    def __init__(self, meanwhile: Callable[[], None]) -> None:
        self.meanwhile = meanwhile
        self.asked = 0

    def module_twins(self, _module_id: str) -> Sequence[ModuleTwin]:
        self.asked += 1
        self.meanwhile()
        return ()

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"a deletion has no business with {name}")


def move_alias(engine: Engine) -> AliasMove | None:
    return SqlCatalog(engine).move_alias("digits", "champion", lambda _before: 2)


# What begins to name digits:2, with the words that name it in a refused deletion, and what it says of a version
# that is gone.
BEGINNINGS: dict[str, tuple[Callable[[Engine], object], str, str]] = {
    "a rollout that carries it": (
        lambda engine: SqlRollouts(engine).create(plan(), 0, NOW),
        "r-0001 carries it to devices",
        "digits:2 was deleted meanwhile, and no rollout was started",
    ),
    "an image of it": (
        lambda engine: SqlImages(engine).put(RECORD),
        "slipway-digits:2 holds it (sha256:aaaaaaaaaaaa)",
        "digits:2 was deleted meanwhile, and image slipway-digits:2 was not recorded",
    ),
    "an alias": (move_alias, "digits@champion stands for it", ""),
}


@pytest.mark.parametrize("story", BEGINNINGS)
def test_whoever_names_it_after_devices_were_asked_keeps_it(story: str, registry: Registry):
    begin, words, _ = BEGINNINGS[story]
    hub = HubThatIsSlow(lambda: begin(registry.elsewhere))
    with pytest.raises(ConflictError) as refused:
        registry.models.delete(V2, hub)  # type: ignore[arg-type]
    assert refused.value.message.splitlines() == ["digits:2 is in use and was not deleted:", f"  {words}"]
    assert registry.catalog.find(V2) is not None


@pytest.mark.parametrize("story", BEGINNINGS)
def test_whoever_comes_after_the_deletion_is_told_that_it_is_gone(story: str, registry: Registry):
    begin, _, words = BEGINNINGS[story]
    registry.models.delete(V2, None)
    if words:
        with pytest.raises(NotFoundError, match=words):
            begin(registry.elsewhere)
    else:
        assert begin(registry.elsewhere) is None
    names = registry.catalog.names(V2)
    assert (names.aliases, names.images, names.rollouts, names.rollouts_begun) == ((), (), (), 0)
    # Nothing of it is left: the next one gets the first number, and the device is free.
    assert SqlRollouts(registry.engine).create(plan(offer=1, restore=None), 0, NOW).id == "r-0001"


def test_what_a_rollout_would_go_back_to_is_kept_until_it_has_ended(registry: Registry):
    log = SqlRollouts(registry.elsewhere)
    started = log.create(plan(), 0, NOW)
    with pytest.raises(ConflictError, match="r-0001 would go back to it"):
        registry.models.delete(V1, None)
    log.append(started.id, [ev.AbortRequested(reason="x"), ev.RolloutAborted()], expected_sequence=1, at=NOW)
    registry.models.delete(V1, None)
    assert registry.catalog.find(V1) is None


def test_devices_are_asked_again_when_a_rollout_came_and_went_meanwhile(registry: Registry):
    def come_and_go() -> None:
        if hub.asked == 1:
            log = SqlRollouts(registry.elsewhere)
            ending = [ev.AbortRequested(reason="x"), ev.RolloutAborted()]
            log.append(log.create(plan(), 0, NOW).id, ending, expected_sequence=1, at=NOW)

    hub = HubThatIsSlow(come_and_go)
    registry.models.delete(V2, hub)  # type: ignore[arg-type]
    assert (hub.asked, registry.catalog.find(V2)) == (2, None)


def test_with_rollouts_coming_and_going_all_the_time_nothing_is_deleted(registry: Registry):
    def come_and_go() -> None:
        log = SqlRollouts(registry.elsewhere)
        ending = [ev.AbortRequested(reason="x"), ev.RolloutAborted()]
        log.append(log.create(plan(), 0, NOW).id, ending, expected_sequence=1, at=NOW)

    hub = HubThatIsSlow(come_and_go)
    with pytest.raises(ConflictError, match="began and ended while devices were asked"):
        registry.models.delete(V2, hub)  # type: ignore[arg-type]
    assert hub.asked == LOOKS_MAX
    assert registry.catalog.find(V2) is not None


def test_a_rollback_to_a_version_that_was_deleted_meanwhile_is_refused_whole(registry: Registry):
    log = SqlRollouts(registry.elsewhere)
    started = log.create(plan(offer=2, restore=None), 0, NOW)
    registry.models.delete(V1, None)
    content = ReleaseContent.of_artifact(manifest(1), manifest(1).artifacts[0])
    back = ev.RollbackStarted(
        cause="operator", reason="x", generation=2, epoch=1, targets={"dev-01": content.key},
        contents={content.key: content},
    )  # fmt: skip
    with pytest.raises(NotFoundError, match="digits:1 was deleted meanwhile, and nothing was taken back"):
        log.append(started.id, [back], expected_sequence=1, at=NOW)
    assert len(log.read(started.id)) == 1


def test_a_deletion_waits_for_a_transaction_that_is_about_to_name_the_version(registry: Registry):
    """The other order: an image build has begun its last transaction, and the deletion comes before it ends."""
    is_waiting = threading.Event()
    outcome: list[BaseException | None] = []

    def delete() -> None:
        is_waiting.set()
        try:
            registry.models.delete(V2, None)
            outcome.append(None)
        except ConflictError as err:
            outcome.append(err)

    thread = threading.Thread(target=delete)
    with writing(registry.elsewhere) as connection:
        assert hold(connection, V2)
        thread.start()
        assert is_waiting.wait(TIMEOUT_S)
        # It cannot come to an end before this transaction does.
        thread.join(0.2)
        assert thread.is_alive()
        assert not outcome
        row = {"name": RECORD.name, "digest": RECORD.digest, "model": "digits", "version": 2}
        connection.execute(
            insert(image_table).values(**row, created_at=RECORD.created_at, record=RECORD.to_json().decode())
        )
    thread.join(TIMEOUT_S)
    assert not thread.is_alive()
    assert isinstance(outcome[0], ConflictError)
    assert "slipway-digits:2 holds it" in outcome[0].message
    assert registry.catalog.find(V2) is not None


def test_a_beginning_waits_for_a_deletion_that_is_under_way(registry: Registry):
    """A rollout starts while the deletion has had its last look and has not committed: it finds the version gone."""
    outcome: list[BaseException | RolloutPlan] = []

    def start() -> None:
        try:
            outcome.append(SqlRollouts(registry.elsewhere).create(plan(), 0, NOW))
        except NotFoundError as err:
            outcome.append(err)

    thread = threading.Thread(target=start)

    def check(_names: object) -> None:
        thread.start()
        thread.join(0.2)
        assert thread.is_alive()
        assert not outcome

    assert registry.catalog.remove(V2, check)
    thread.join(TIMEOUT_S)
    assert not thread.is_alive()
    assert isinstance(outcome[0], NotFoundError)
    assert SqlRollouts(registry.engine).ids() == []
