"""The digests of images that a manifest names by tag: of those pushed from this catalog, or as their registry says."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cloud_registry.core.deployment.pinning import digests_pushed_as, pushed_by_digest
from cloud_registry.core.images.names import ImageName
from cloud_registry.core.images.records import ImageRecord
from cloud_registry.errors import UsageError
from manifests.identity import ModelReference


@dataclass(frozen=True, slots=True)
class ImageDigests:
    """`records` are the images built here, `ask` gives the digest that a registry has for a name."""

    records: Callable[[], Sequence[ImageRecord]]
    ask: Callable[[ImageName], str]

    def pushed_as(self, image: str) -> str | None:
        """The digest of the image that was pushed under a name, None where none was.

        Raises:
            UsageError: several were, one after the other, and nobody here knows which the tag stands for now.
        """
        digests = digests_pushed_as(ImageName.parse(image), self.records())
        if len(digests) > 1:
            raise UsageError(
                f"{len(digests)} images were pushed as {image}, one after the other",
                hint="Ask the registry which it is now with --resolve, or say it with --digest.",
            )
        return next(iter(digests), None)

    def asked(self, image: str) -> str:
        """The digest that the registry has for a name; raises what asking it raises."""
        return self.ask(ImageName.parse(image))

    def pushed_of(self, reference: ModelReference) -> str | None:
        """The only image of a model version that was pushed, by digest; None where none was.

        Raises:
            UsageError: several were.
        """
        references = pushed_by_digest(record for record in self.records() if record.reference == reference)
        if len(references) > 1:
            raise UsageError(
                f"{len(references)} images of {reference} were pushed: {', '.join(references)}",
                hint="Say which one the module is to run with --image.",
            )
        return next(iter(references), None)
