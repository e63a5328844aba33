"""Errors about documents: what a document says, not how it travelled."""


class ManifestError(ValueError):
    """A document of ours is malformed; the message names the document, what was seen and what is expected."""
