"""What a server does for people elsewhere where it does less for them than for whoever sits at its machine."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cloud_registry.core.images.names import ImageName
from cloud_registry.core.images.records import ImageRecord
from cloud_registry.core.storage_urls import is_one_of, shown_url
from cloud_registry.errors import AccessDeniedError, ConflictError, UsageError
from cloud_registry.ports import BackupPlace, ProgressListener, ProofTerms
from cloud_registry.service.image_records import ImageRecords
from cloud_registry.service.local import LocalModels, LocalUpkeep
from cloud_registry.service.models import ModelService
from cloud_registry.service.registration import Registered, Registration
from cloud_registry.service.upkeep import BackedUp
from manifests.canonical import is_digest

# A registration keeps one of a few threads for so long at most, for each file.
PROOF_DURATION_S_MAX = 900.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedModels(LocalModels):
    """Satisfies ModelVerbs for strangers: their models run confined, and within bounds that they cannot lift."""

    proof_memory_bytes_max: int

    def register(self, registration: Registration, on_progress: ProgressListener | None = None) -> Registered:
        self._check_terms(registration.terms)
        # By name, since a class with slots is made anew by its decorator and `super()` looks for the first one.
        return LocalModels.register(self, registration, on_progress)

    def _check_terms(self, terms: ProofTerms) -> None:
        if terms.is_unconfined:
            raise UsageError(
                "a server runs no model with the network in reach",
                hint="Leave --unconfined out, or register it at the server's machine.",
            )
        if terms.duration_max_s > PROOF_DURATION_S_MAX:
            raise UsageError(
                f"a server gives a model at most {PROOF_DURATION_S_MAX:g} s, and {terms.duration_max_s:g} s were asked",
                hint="Give fewer samples, or register it at the server's machine.",
            )
        if (terms.memory_max_bytes or 0) > self.proof_memory_bytes_max:
            raise UsageError(
                f"this server gives a model at most {self.proof_memory_bytes_max:,} bytes of memory, and "
                f"{terms.memory_max_bytes:,} were asked",
                hint="Register it on a larger machine.",
            )


@dataclass(frozen=True, slots=True)
class ServedImages(ImageRecords):
    """Satisfies ImageVerbs for people elsewhere: what they say of an image is looked at before it is kept."""

    models: ModelService

    def note(self, record: ImageRecord) -> ImageRecord:
        for name in (record.name, *record.pushed):
            ImageName.parse(name)
        odd = next((digest for digest in sorted(record.blobs()) if not is_digest(digest)), None)
        if odd is not None:
            raise UsageError(f"{odd[:80]!r} is no digest, and the image {record.name} names it")
        # Held by an image is what there is: a version that was deleted while its image was built is told of.
        self.models.manifest(record.reference)
        return ImageRecords.note(self, record)


@dataclass(frozen=True, slots=True)
class ServedUpkeep(LocalUpkeep):
    """Satisfies UpkeepVerbs for people elsewhere: backups are where the server was told, and nothing is restored."""

    def restore(self, *_given: object, **_named: object) -> BackedUp:
        raise ConflictError(
            "a registry that is served is not restored: it is not empty, since it holds the key that asks, "
            "and others may write to it meanwhile",
            hint="Restore into a new one at the server's machine, while nothing serves it: slipway registry restore",
        )


def allowed_place(open_place: Callable[[str], BackupPlace], places: Sequence[str]) -> Callable[[str], BackupPlace]:
    """Opens the places that a server was started with, and no other: a URL could name any file of its machine."""

    def opened(url: str) -> BackupPlace:
        if not is_one_of(url, places):
            raise AccessDeniedError(
                f"this server keeps no backups at {shown_url(url)}",
                hint="It uses the places that it was started with: slipway serve --backup-url URL",
            )
        return open_place(url)

    return opened
