"""What can be asked of a registry, wherever it is: protocols that the services here and the client of a server satisfy.

A verb is one method of a protocol and one row of `VERBS`. Types, API, its description and client follow from the two.
A parameter whose name begins with ``on_`` is a listener: it is called while the verb goes on, across the wire as well.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol

from cloud_registry.core.access import ListedKey, MadeKey
from cloud_registry.core.backup import Backup
from cloud_registry.core.catalog import Holder
from cloud_registry.core.family import Family
from cloud_registry.core.image_recipes import RecipeChanges
from cloud_registry.core.images.records import ImageRecord
from cloud_registry.core.rollout.documents import RolloutPlan
from cloud_registry.core.rollout.events import RecordedEvent
from cloud_registry.core.rollout.state import Rollout
from cloud_registry.core.rollout.view import event_as_json, plan_as_json, status_as_json
from cloud_registry.core.running import PeriodQuery, RunningPeriod
from cloud_registry.core.trust_answers import Outcome, Proposal, TrustStand, TrustState, outcome_as_json, state_as_json
from cloud_registry.core.trust_files import SignedFile
from cloud_registry.ports import AliasMove, ModelQuery, ProgressListener, Role, StoreCounts, StoredFile
from cloud_registry.service.clean_up import Removed
from cloud_registry.service.registration import Registered, Registration
from cloud_registry.service.rollout_driver import Tick
from cloud_registry.service.rollouts import Begun, RollbackRequest, RolloutRequest
from cloud_registry.service.upkeep import ORPHAN_AGE_MIN, BackedUp, Collected, Verification
from manifests.identity import ModelReference
from manifests.model import ModelManifest
from manifests.recipe import ImageRecipe
from manifests.telemetry import Envelope


class ModelVerbs(Protocol):
    """Model versions: register, find, tag, fetch, delete."""

    def register(self, registration: Registration, on_progress: ProgressListener | None = None) -> Registered:
        """Prove a model's files and store them as the next version of its name."""
        ...

    def resolve(self, text: str) -> ModelManifest:
        """The manifest of name:version, or of a name's latest version."""
        ...

    def search(self, query: ModelQuery) -> Sequence[ModelManifest]:
        """The manifests of the versions that meet a query, by name and version."""
        ...

    def tag(self, reference: ModelReference, changes: Mapping[str, str], removed: Iterable[str]) -> ModelManifest:
        """Set tags of a version and take others away."""
        ...

    def add_properties(self, reference: ModelReference, properties: Mapping[str, str]) -> ModelManifest:
        """Give a version properties, which are written once."""
        ...

    def archive(self, reference: ModelReference, *, archived: bool = True) -> ModelManifest:
        """Put a version away, or take it out again."""
        ...

    def aliases(self, name: str) -> Mapping[str, int]:
        """A model's aliases with the versions that they stand for."""
        ...

    def alias_moves(self, name: str) -> Sequence[tuple[str, AliasMove]]:
        """Every move of every alias of a model, oldest first."""
        ...

    def point_alias(self, reference: ModelReference, alias: str, *, expected: int | None = None) -> AliasMove:
        """Point an alias to a version; expected is where it must point until then, 0 for nowhere."""
        ...

    def drop_alias(self, name: str, alias: str) -> AliasMove:
        """Take an alias away."""
        ...

    def family_of(self, reference: ModelReference) -> Family:
        """Where a version comes from and what came of it."""
        ...

    def holders_of(self, reference: ModelReference, *, offline: bool = False) -> tuple[Holder, ...]:
        """Who needs a version: devices, rollouts, images and aliases."""
        ...

    def history(self, query: PeriodQuery) -> Sequence[RunningPeriod]:
        """Which versions ran where and when, newest first."""
        ...

    def delete_unneeded(self, reference: ModelReference, *, offline: bool = False) -> None:
        """Delete a version that no rollout names and, unless offline, no device needs."""
        ...

    def download(
        self, reference: ModelReference, folder: Path, *, force: bool, on_progress: ProgressListener | None = None
    ) -> tuple[Path, ...]:
        """Write a version's files and its manifest into a folder."""
        ...

    def file_of(self, digest: str) -> StoredFile:
        """Where a file with these bytes is: its target below /artifacts, of whichever version."""
        ...

    def remove_orphans(self) -> Removed:
        """Remove stored files that no version names."""
        ...


class RolloutVerbs(Protocol):
    """Rollouts: plan, begin, look at, and command. Where `can_drive` is false somebody else drives them."""

    @property
    def can_drive(self) -> bool: ...

    def plan(self, request: RolloutRequest) -> RolloutPlan:
        """What a rollout would do, without storing it."""
        ...

    def conflicts(self, drafted: RolloutPlan) -> dict[str, list[str]]:
        """Unfinished rollouts with the devices of a plan that they hold."""
        ...

    def begin(self, request: RolloutRequest, on_progress: ProgressListener | None = None) -> Begun:
        """Plan a rollout, make its deltas and store it, unless every device runs the version already."""
        ...

    def status(self, rollout_id: str) -> Rollout:
        """Where a rollout stands."""
        ...

    def rollouts(self, *, active_only: bool = False) -> list[Rollout]:
        """All rollouts, oldest first."""
        ...

    def history(self, rollout_id: str, after: int = 0) -> list[RecordedEvent]:
        """A rollout's events in order, those numbered above `after`."""
        ...

    def controller(self, rollout_id: str) -> str | None:
        """Who drives a rollout now; null where nobody does."""
        ...

    def pause(self, rollout_id: str, reason: str = "") -> Rollout:
        """Offer nothing more until it is resumed."""
        ...

    def resume(self, rollout_id: str, override_reason: str = "") -> Rollout:
        """Go on in the same wave."""
        ...

    def abort(self, rollout_id: str, reason: str = "") -> Rollout:
        """Offer nothing more, ever."""
        ...

    def rollback(self, rollout_id: str, request: RollbackRequest) -> Rollout:
        """Take a rollout back; the rollout that does it, which may be a new one."""
        ...

    def tick(self, rollout_id: str) -> Tick: ...

    def release(self, rollout_id: str) -> None: ...


class TelemetryVerbs(Protocol):
    """What devices sent, and what of it is missing."""

    def source_name(self) -> str:
        """What the hub's stream is called; holds no secret."""
        ...

    def collect(self, *, follow: bool, on_batch: Callable[[StoreCounts], None] | None = None) -> StoreCounts:
        """Store what the hub's stream holds that was not stored yet."""
        ...

    def summary(self) -> dict[str, Any]:
        """What arrived by device, boot and model version, and what is missing."""
        ...

    def envelopes(self, device: str | None = None, limit: int | None = None) -> Iterator[Envelope]:
        """Stored readings in the order of their arrival; with a limit the newest of them."""
        ...


class DeviceVerbs(Protocol):
    """The devices of the fleet."""

    def devices(self, model: str | None = None) -> list[dict[str, Any]]:
        """Devices with their models, as their module twins show them."""
        ...


class TrustVerbs(Protocol):
    """The signed metadata, as whoever holds offline keys works with it: see service/trust.py. No key ever crosses."""

    def state(self) -> TrustState:
        """The roles, their versions and expiry, what waits for signatures, and what is due."""
        ...

    def stand(self, roles: Sequence[str] | None = None) -> TrustStand:
        """What stands of TUF's own roles, of these (or all) of models, and of what waits for signatures."""
        ...

    def unsigned(self, files: Sequence[SignedFile]) -> Sequence[SignedFile]:
        """Those of the files that devices would refuse."""
        ...

    def propose(
        self, references: Sequence[str], *, deltas: bool = True, on_progress: ProgressListener | None = None
    ) -> Proposal:
        """The files of model versions that there are to sign; missing deltas are made first."""
        ...

    def make_online_key(self, role: str) -> Mapping[str, Any]:
        """Make a new key of snapshot or timestamp, which stays there; its public part."""
        ...

    def begin(self, root: Mapping[str, Any], targets: Mapping[str, Any], lifetimes_d: Mapping[str, float]) -> Outcome:
        """Publish the first root and targets, signed by their keys."""
        ...

    def submit(self, roles: Mapping[str, Mapping[str, Any]], base: Mapping[str, str]) -> Outcome:
        """Hand in signed metadata of models' files; it is published when enough keys have signed, else it waits."""
        ...

    def submit_keys(self, roles: Mapping[str, Mapping[str, Any]], base: Mapping[str, str]) -> Outcome:
        """Hand in signed metadata that gives roles other keys."""
        ...

    def refresh(self, force: bool = False) -> Outcome:
        """Sign snapshot and timestamp again where that is due."""
        ...

    def discard(self) -> Sequence[str]:
        """Throw away what waits for signatures; the roles that did."""
        ...


class RecipeVerbs(Protocol):
    """Recipes of images: what each version's images are made of, in revisions."""

    def show(self, reference: ModelReference, revision: int | None = None) -> ImageRecipe:
        """A revision of a version's recipe, by default the newest; one that nobody edited is as generated, 0."""
        ...

    def history(self, reference: ModelReference) -> Sequence[ImageRecipe]:
        """Every stored revision, oldest first."""
        ...

    def kept(self, reference: ModelReference) -> ImageRecipe:
        """The newest revision, for whoever builds an image of it; a generated recipe is stored as revision 1."""
        ...

    def edit(
        self, reference: ModelReference, changes: RecipeChanges, script: Path | None = None, *, is_dry_run: bool = False
    ) -> ImageRecipe:
        """Store the newest recipe with changes, and perhaps another scoring script, as the next revision."""
        ...

    def replace(self, reference: ModelReference, recipe: ImageRecipe, *, is_dry_run: bool = False) -> ImageRecipe:
        """Store a whole recipe as the next revision of the one that its `revision` names."""
        ...


class ImageVerbs(Protocol):
    """Images that were built, and the version that each holds. They are built where their parts are, and noted here."""

    def note(self, record: ImageRecord) -> ImageRecord:
        """Remember an image; the version that it holds cannot be deleted then."""
        ...

    def find(self, text: str) -> ImageRecord:
        """The image of a name, or of a digest or the beginning of one."""
        ...

    def images(self) -> Sequence[ImageRecord]:
        """Every image by name, the youngest of each first."""
        ...

    def forget(self, name: str, digest: str, *, is_pushed_allowed: bool = False) -> ImageRecord:
        """Forget an image; one that was pushed only where that is allowed, since a device may run it."""
        ...


class KeyVerbs(Protocol):
    """API keys of the server. The first one is made at its machine."""

    def create(
        self, name: str, roles: Sequence[Role], devices: Sequence[str] = (), valid_for: timedelta | None = None
    ) -> MadeKey:
        """Make a key. Its text is in this answer only; nobody hands out a role that he does not hold."""
        ...

    def keys(self) -> Sequence[ListedKey]:
        """Every key that was ever made, oldest first, without what it opens with."""
        ...

    def revoke(self, key_id: str) -> ListedKey:
        """Revoke a key, whatever its roles: from the next request on it is refused."""
        ...


class UpkeepVerbs(Protocol):
    """The registry itself: clean it up, verify it, back it up. Places of backups are URLs."""

    def garbage(self, age_min: timedelta = ORPHAN_AGE_MIN) -> Collected:
        """What a clean-up would remove."""
        ...

    def collect_garbage(
        self, age_min: timedelta = ORPHAN_AGE_MIN, on_progress: ProgressListener | None = None
    ) -> Collected:
        """Remove stored files that no version names, uploads that were cut, and folders of killed commands."""
        ...

    def verify(
        self, *, is_quick: bool = False, repair_url: str | None = None, on_progress: ProgressListener | None = None
    ) -> Verification:
        """Compare every file with its digest, and perhaps take what is damaged from a backup."""
        ...

    def backup(self, url: str, on_progress: ProgressListener | None = None) -> BackedUp:
        """Copy the database and every file to one of the places that the server was started with."""
        ...

    def backups(self, url: str) -> Sequence[Backup]:
        """The backups of a place, oldest first."""
        ...

    def restore(
        self, url: str, name: str | None = None, *, is_dry_run: bool = False,
        on_progress: ProgressListener | None = None,
    ) -> BackedUp:  # fmt: skip
        """Make an empty registry what a backup says. A registry that is served is never empty, and says so."""
        ...


@dataclass(frozen=True, slots=True)
class Verb:
    """One row of the API.

    Attributes:
        method, path: as HTTP has them; ``{parameter}`` in the path is a parameter of the method of that name. Of the
            other parameters those of a GET are in the query, those of any other method in the JSON body, in camelCase.
        view: makes the result's documented JSON from it. Without one the result is spelled as its type says.
        noted: what the audit log tells of the result, beside what was asked.
    """

    protocol: type
    name: str
    method: str
    path: str
    role: Role
    view: Callable[[Any], Any] | None = None
    noted: Callable[[Any], Mapping[str, str]] | None = None

    @property
    def id(self) -> str:
        """How the audit log, the metrics and the API's description call it: ``models.tag``."""
        return f"{GROUPS[self.protocol]}.{self.name}"

    @property
    def changes(self) -> bool:
        return self.role in (Role.PUBLISHER, Role.OPERATOR)


GROUPS: Mapping[type, str] = {
    ModelVerbs: "models",
    RolloutVerbs: "rollouts",
    TelemetryVerbs: "telemetry",
    DeviceVerbs: "devices",
    TrustVerbs: "trust",
    RecipeVerbs: "recipes",
    ImageVerbs: "images",
    KeyVerbs: "keys",
    UpkeepVerbs: "registry",
}


def _registered(found: Registered) -> Any:
    return {
        "manifest": found.manifest.to_wire(),
        "sameBytes": [str(reference) for reference in found.same_bytes],
        "dryRun": found.is_dry_run,
    }


def _stored_file(found: StoredFile) -> Any:
    return {
        "model": str(found.reference),
        "target": found.target,
        "digest": found.digest,
        "size": found.size_bytes,
    }


def _removed(found: Removed) -> Any:
    return {"files": found.blobs, "size": found.size_bytes, "unfinished": found.unfinished}


def _begun(found: Begun) -> Any:
    return {
        "plan": plan_as_json(found.plan),
        "rollout": status_as_json(found.rollout) if found.rollout is not None else None,
    }


def _each(view: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda found: [view(each) for each in found]


READ, PUBLISH, OPERATE = Role.READER, Role.PUBLISHER, Role.OPERATOR
VERBS: tuple[Verb, ...] = (
    Verb(ModelVerbs, "register", "POST", "/models", PUBLISH, _registered),
    Verb(ModelVerbs, "search", "POST", "/models/search", READ),
    Verb(ModelVerbs, "history", "POST", "/models/history", READ),
    Verb(ModelVerbs, "remove_orphans", "POST", "/models/prune", PUBLISH, _removed),
    Verb(ModelVerbs, "file_of", "GET", "/files/{digest}", READ, _stored_file),
    Verb(ModelVerbs, "resolve", "GET", "/models/{text}", READ),
    Verb(ModelVerbs, "tag", "PATCH", "/models/{reference}/tags", PUBLISH),
    Verb(ModelVerbs, "add_properties", "PATCH", "/models/{reference}/properties", PUBLISH),
    Verb(ModelVerbs, "archive", "PATCH", "/models/{reference}/archive", PUBLISH),
    Verb(ModelVerbs, "family_of", "GET", "/models/{reference}/lineage", READ),
    Verb(ModelVerbs, "holders_of", "GET", "/models/{reference}/holders", READ),
    Verb(ModelVerbs, "aliases", "GET", "/models/{name}/aliases", READ),
    Verb(ModelVerbs, "alias_moves", "GET", "/models/{name}/aliases/moves", READ),
    Verb(ModelVerbs, "point_alias", "PUT", "/models/{reference}/aliases/{alias}", PUBLISH),
    Verb(ModelVerbs, "drop_alias", "DELETE", "/models/{name}/aliases/{alias}", PUBLISH),
    Verb(ModelVerbs, "delete_unneeded", "DELETE", "/models/{reference}", PUBLISH),
    Verb(RolloutVerbs, "plan", "POST", "/rollouts/plan", READ, plan_as_json),
    Verb(RolloutVerbs, "conflicts", "POST", "/rollouts/conflicts", READ),
    Verb(RolloutVerbs, "begin", "POST", "/rollouts", OPERATE, _begun),
    Verb(RolloutVerbs, "rollouts", "GET", "/rollouts", READ, _each(status_as_json)),
    Verb(RolloutVerbs, "status", "GET", "/rollouts/{rollout_id}", READ, status_as_json),
    Verb(RolloutVerbs, "history", "GET", "/rollouts/{rollout_id}/events", READ, _each(event_as_json)),
    Verb(RolloutVerbs, "controller", "GET", "/rollouts/{rollout_id}/controller", READ),
    Verb(RolloutVerbs, "pause", "POST", "/rollouts/{rollout_id}/pause", OPERATE, status_as_json),
    Verb(RolloutVerbs, "resume", "POST", "/rollouts/{rollout_id}/resume", OPERATE, status_as_json),
    Verb(RolloutVerbs, "abort", "POST", "/rollouts/{rollout_id}/abort", OPERATE, status_as_json),
    Verb(RolloutVerbs, "rollback", "POST", "/rollouts/{rollout_id}/rollback", OPERATE, status_as_json),
    Verb(TelemetryVerbs, "collect", "POST", "/telemetry/collect", OPERATE),
    Verb(TelemetryVerbs, "source_name", "GET", "/telemetry/source", READ),
    Verb(TelemetryVerbs, "summary", "GET", "/telemetry/summary", READ),
    Verb(TelemetryVerbs, "envelopes", "GET", "/telemetry/readings", READ),
    Verb(DeviceVerbs, "devices", "GET", "/devices", READ),
    Verb(TrustVerbs, "state", "GET", "/trust", READ, state_as_json),
    Verb(TrustVerbs, "stand", "POST", "/trust/stand", READ),
    Verb(TrustVerbs, "unsigned", "POST", "/trust/unsigned", READ),
    Verb(TrustVerbs, "propose", "POST", "/trust/propose", PUBLISH),
    Verb(TrustVerbs, "submit", "POST", "/trust/submit", PUBLISH, outcome_as_json),
    Verb(TrustVerbs, "discard", "DELETE", "/trust/staged", PUBLISH),
    # What devices believe at all is changed by those who answer for the fleet.
    Verb(TrustVerbs, "submit_keys", "POST", "/trust/keys", OPERATE, outcome_as_json),
    Verb(TrustVerbs, "make_online_key", "POST", "/trust/online-keys", OPERATE),
    Verb(TrustVerbs, "begin", "POST", "/trust", OPERATE, outcome_as_json),
    Verb(TrustVerbs, "refresh", "POST", "/trust/refresh", OPERATE, outcome_as_json),
    Verb(RecipeVerbs, "show", "GET", "/models/{reference}/recipe", READ),
    Verb(RecipeVerbs, "history", "GET", "/models/{reference}/recipe/revisions", READ),
    Verb(RecipeVerbs, "kept", "POST", "/models/{reference}/recipe", PUBLISH),
    Verb(RecipeVerbs, "edit", "PATCH", "/models/{reference}/recipe", PUBLISH),
    Verb(RecipeVerbs, "replace", "PUT", "/models/{reference}/recipe", PUBLISH),
    Verb(ImageVerbs, "note", "POST", "/images", PUBLISH, ImageRecord.as_json, ImageRecord.audit_words),
    Verb(ImageVerbs, "images", "GET", "/images", READ, _each(ImageRecord.as_json)),
    Verb(ImageVerbs, "find", "GET", "/images/one", READ, ImageRecord.as_json),
    Verb(ImageVerbs, "forget", "DELETE", "/images", PUBLISH, ImageRecord.as_json, ImageRecord.audit_words),
    Verb(KeyVerbs, "create", "POST", "/keys", OPERATE, MadeKey.as_json, lambda made: {"key": made.key.id}),
    Verb(KeyVerbs, "keys", "GET", "/keys", OPERATE, _each(ListedKey.as_json)),
    Verb(KeyVerbs, "revoke", "DELETE", "/keys/{key_id}", OPERATE, ListedKey.as_json),
    Verb(UpkeepVerbs, "garbage", "POST", "/registry/garbage", OPERATE, Collected.as_json),
    Verb(UpkeepVerbs, "collect_garbage", "POST", "/registry/gc", OPERATE, Collected.as_json),
    Verb(UpkeepVerbs, "verify", "POST", "/registry/verify", OPERATE, Verification.as_json),
    Verb(UpkeepVerbs, "backup", "POST", "/registry/backups", OPERATE, BackedUp.as_json),
    Verb(UpkeepVerbs, "backups", "GET", "/registry/backups", OPERATE),
    Verb(UpkeepVerbs, "restore", "POST", "/registry/restore", OPERATE, BackedUp.as_json),
)
