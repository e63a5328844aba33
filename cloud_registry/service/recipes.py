"""The recipe of a version's images: generated, kept in revisions, changed."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

import msgspec

from cloud_registry.core.dependencies import CONDA_NAMES, REQUIREMENT_NAMES, conda_requirements, requirements_in
from cloud_registry.core.image_recipes import RecipeChanges, checked_recipe, edited_recipe, recipe_for
from cloud_registry.errors import NotFoundError, UsageError
from cloud_registry.ports import ArtifactStore, RecipeStore
from cloud_registry.service.models import ModelService
from manifests.canonical import digest_of
from manifests.identity import ModelReference
from manifests.model import ModelManifest, SourceFile
from manifests.recipe import ImageRecipe


@dataclass(frozen=True, slots=True)
class RecipeService:
    """Satisfies RecipeVerbs. `module_requirements` tells what Slipway's own module needs."""

    models: ModelService
    artifacts: ArtifactStore
    recipes: RecipeStore
    module_requirements: Callable[[], Sequence[str]]
    now: Callable[[], datetime]

    def show(self, reference: ModelReference, revision: int | None = None) -> ImageRecipe:
        """A stored revision, by default the newest; the generated recipe, with revision 0, where none is stored."""
        kept = self.recipes.history(reference)
        if revision is None:
            return kept[-1] if kept else self.generated(self.models.manifest(reference))
        found = next((recipe for recipe in kept if recipe.revision == revision), None)
        if found is None:
            self.models.manifest(reference)
            raise NotFoundError(
                f"the recipe of {reference} has no revision {revision}; it has {len(kept)}",
                hint=f"See them with: slipway model manifest show {reference} --history",
            )
        return found

    def history(self, reference: ModelReference) -> Sequence[ImageRecipe]:
        return self.recipes.history(self.models.manifest(reference).reference)

    def generated(self, manifest: ModelManifest) -> ImageRecipe:
        """The recipe that follows from the version alone."""
        return recipe_for(manifest, self.module_requirements(), self._model_requirements(manifest))

    def kept(self, reference: ModelReference) -> ImageRecipe:
        """The newest revision, for whoever builds an image of it; the generated recipe becomes revision 1."""
        recipe = self.show(reference)
        if recipe.revision:
            return recipe
        first = self._revision(recipe, 1)
        self.recipes.append(reference, [first])
        return first

    def edit(
        self,
        reference: ModelReference,
        changes: RecipeChanges,
        script: Path | None = None,
        *,
        is_dry_run: bool = False,
    ) -> ImageRecipe:
        """Store the newest recipe with these changes, and perhaps another scoring script, as the next revision."""
        before = self.show(reference)
        if script is not None:
            changes = replace(changes, script=self._stored_script(script, is_dry_run=is_dry_run))
        after = edited_recipe(before, changes)
        if script is None:
            self._check_script(after, before)
        return self._succeed(reference, before, after, is_dry_run=is_dry_run)

    def replace(self, reference: ModelReference, recipe: ImageRecipe, *, is_dry_run: bool = False) -> ImageRecipe:
        """Store a whole recipe as the next revision of the one it was made from, which its `revision` names.

        Raises:
            ConflictError: there is a newer revision.
        """
        before = self.show(reference, recipe.revision or None)
        after = checked_recipe(recipe, before)
        self._check_script(after, before)
        return self._succeed(reference, before, after, is_dry_run=is_dry_run)

    # --- parts ---------------------------------------------------------------

    def _stored_script(self, path: Path, *, is_dry_run: bool) -> SourceFile:
        """Take a scoring script into the artifact store; it goes with the next clean-up if no recipe names it."""
        if not path.is_file():
            raise NotFoundError(f"there is no file {path}")
        if path.suffix != ".py":
            raise UsageError(f"{path.name} is no Python file", hint="A scoring script has init() and run().")
        if is_dry_run:
            content = path.read_bytes()
            return SourceFile(path=path.name, digest=digest_of(content), size_bytes=len(content))
        stored = self.artifacts.put(path)
        return SourceFile(path=path.name, digest=stored.digest, size_bytes=stored.size_bytes)

    def _check_script(self, after: ImageRecipe, before: ImageRecipe) -> None:
        """A script that is named by its digest, and not given as a file, must be stored already."""
        script = after.script
        if script is None or script == before.script:
            return
        if self.artifacts.size_bytes(script.digest) != script.size_bytes:
            raise UsageError(
                f"the recipe's script {script.path} ({script.digest}) is not stored here",
                hint="Give the file itself: slipway model manifest edit REF --script FILE",
            )

    def _succeed(
        self, reference: ModelReference, before: ImageRecipe, after: ImageRecipe, *, is_dry_run: bool
    ) -> ImageRecipe:
        if after == before:
            return before
        # What was changed is kept as well: the generated recipe becomes revision 1.
        first = [] if before.revision else [self._revision(before, 1)]
        changed = self._revision(after, (before.revision or 1) + 1)
        if not is_dry_run:
            self.recipes.append(reference, [*first, changed])
        return changed

    def _revision(self, recipe: ImageRecipe, number: int) -> ImageRecipe:
        return msgspec.structs.replace(recipe, revision=number, created_at=self.now().isoformat())

    def _model_requirements(self, manifest: ModelManifest) -> tuple[str, ...]:
        by_path = {file.path: file for file in manifest.source}
        for names, read in ((REQUIREMENT_NAMES, requirements_in), (CONDA_NAMES, conda_requirements)):
            for name in names:
                if name in by_path:
                    content = b"".join(self.artifacts.read(by_path[name].digest))
                    return read(content.decode(errors="replace"), name)
        return ()
