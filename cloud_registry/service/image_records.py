"""Which images were built, and which model version each holds."""

from collections.abc import Sequence
from dataclasses import dataclass

from cloud_registry.core.images.names import ImageName
from cloud_registry.core.images.ports import ImageTable
from cloud_registry.core.images.records import ImageRecord
from cloud_registry.errors import ConflictError, NotFoundError, UsageError

DIGEST_PREFIX_LENGTH_MIN = 12


@dataclass(frozen=True, slots=True)
class ImageRecords:
    """Satisfies ImageVerbs."""

    table: ImageTable

    def note(self, record: ImageRecord) -> ImageRecord:
        """Remember an image, so that the version it holds cannot be deleted; where it was pushed is never forgotten."""
        return self.table.put(record)

    def find(self, text: str) -> ImageRecord:
        """The image of a name, or of a digest or the beginning of one; raises NotFoundError."""
        if text.startswith("sha256:") and len(text) >= DIGEST_PREFIX_LENGTH_MIN:
            found = self.table.of_digest(text)
            digests = {record.digest for record in found}
            if len(digests) > 1:
                raise UsageError(f"{text} begins {len(digests)} digests", hint="Write more of it.")
            if found:
                return found[0]
        name = ImageName.parse(text)
        record = self.table.named(str(name)) or (None if name.tag else self.table.named(str(name.with_tag("latest"))))
        if record is None:
            raise NotFoundError(f"no image {text} was built here", hint="See those there are: slipway image list")
        return record

    def images(self) -> Sequence[ImageRecord]:
        """Every image by name, the youngest of each first."""
        return self.table.all()

    def forget(self, name: str, digest: str, *, is_pushed_allowed: bool = False) -> ImageRecord:
        """Forget an image, so that it holds its model version no more; the record that it had.

        Raises:
            ConflictError: it was pushed, so that a device may run it.
        """
        record = next((one for one in self.table.of_digest(digest) if (one.name, one.digest) == (name, digest)), None)
        if record is None:
            raise NotFoundError(f"there is no image {name} of digest {digest}", hint="See: slipway image list")
        if record.pushed and not is_pushed_allowed:
            raise ConflictError(
                f"{record.name} was pushed to {', '.join(record.pushed)}, so a device may run it",
                hint="Remove it there first, then say so with --force.",
            )
        self.table.remove(record)
        return record
