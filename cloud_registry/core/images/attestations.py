"""What is attached to an image: its bill of materials (CycloneDX) and its provenance (in-toto, SLSA).

Both are functions of the image: neither holds an instant or a number drawn, so that the same build attaches the same.
"""

import uuid
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from urllib.parse import quote

from packaging.licenses import InvalidLicenseExpression, canonicalize_license_expression

from cloud_registry.core.images.base_facts import SystemPackage
from cloud_registry.core.images.bases import BaseImage
from cloud_registry.core.images.documents import SBOM, Descriptor
from cloud_registry.core.images.names import ImageName
from cloud_registry.core.images.platforms import Platform
from cloud_registry.core.images.wheels import Wheel
from manifests.canonical import canonical_json
from manifests.model import ModelManifest
from manifests.recipe import ImageRecipe, packed_files

SBOM_MEDIA_TYPE = SBOM
# https://slsa.dev/spec/v1.0/provenance: what the parameters mean is written there.
BUILD_TYPE = "https://github.com/slipway-edge/slipway/blob/main/docs/registry/images.md#provenance"
BUILDER = "https://github.com/slipway-edge/slipway"
# A fixed name space, so that a document's serial number is a function of the image's digest.
_SERIALS = uuid.UUID("7c7a5b8e-5f4f-5d0c-9f0e-0d5c2a6e5f11")


def bill_of_materials(
    name: ImageName,
    image: Descriptor,
    base: BaseImage,
    wheels: Sequence[Wheel],
    manifest: ModelManifest,
    recipe: ImageRecipe,
    slipway_version: str,
) -> bytes:
    """A CycloneDX 1.6 document: the base, its system packages, the Python packages, Slipway and the model's files."""
    components = [
        _base_component(base),
        *_system_components(base),
        *(_wheel_component(wheel) for wheel in wheels),
        {
            "type": "framework",
            "bom-ref": _slipway_ref(slipway_version),
            "name": "slipway",
            "version": slipway_version,
            "purl": _slipway_ref(slipway_version),
            "licenses": [{"expression": "Apache-2.0"}],
        },
        _model_component(manifest, recipe),
    ]
    document = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid5(_SERIALS, image.digest)}",
        "version": 1,
        "metadata": {
            "component": {
                "type": "container",
                "bom-ref": image.digest,
                "name": name.repository,
                "version": image.digest,
                "purl": _image_purl(name, image),
            },
            "tools": {"components": [{"type": "application", "name": "slipway", "version": slipway_version}]},
        },
        "components": components,
        "dependencies": _dependencies(image, components, wheels),
    }
    return canonical_json(document)


def _image_purl(name: ImageName, image: Descriptor) -> str:
    place = f"{name.registry}/{name.repository}" if name.registry else name.repository
    architecture = image.platform.architecture if image.platform else ""
    last = name.repository.rsplit("/", 1)[-1]
    return f"pkg:oci/{last}@{quote(image.digest, safe='')}?arch={architecture}&repository_url={quote(place, safe='')}"


def _base_component(base: BaseImage) -> dict[str, Any]:
    return {
        "type": "container",
        "bom-ref": f"base:{base.digest}",
        "name": base.name,
        "version": base.digest,
        "hashes": [{"alg": "SHA-256", "content": base.digest.removeprefix("sha256:")}],
    }


def _system_components(base: BaseImage) -> list[dict[str, Any]]:
    release = base.facts.release
    distribution, version = release.get("ID", ""), release.get("VERSION_ID", "")
    found: list[dict[str, Any]] = []
    if distribution:
        ref = f"os:{distribution}-{version}"
        found.append(
            {"type": "operating-system", "bom-ref": ref, "name": distribution, "version": version or "rolling"}
        )
    place = f"{distribution}-{version}".rstrip("-")

    def purl(package: SystemPackage) -> str:
        kind = base.facts.package_kind
        name, number = quote(package.name, safe="+"), quote(package.version, safe="")
        return f"pkg:{kind}/{distribution or 'debian'}/{name}@{number}?arch={package.architecture}&distro={place}"

    listed = (
        {
            "type": "library",
            "bom-ref": purl(package),
            "name": package.name,
            "version": package.version,
            "purl": purl(package),
        }
        for package in base.facts.packages
    )
    return [*found, *listed]


def _wheel_component(wheel: Wheel) -> dict[str, Any]:
    component: dict[str, Any] = {
        "type": "library",
        "bom-ref": _wheel_ref(wheel),
        "name": wheel.name,
        "version": wheel.version,
        "purl": _wheel_ref(wheel),
        "hashes": [{"alg": "SHA-256", "content": wheel.digest.removeprefix("sha256:")}],
        "properties": [{"name": "slipway:wheel", "value": wheel.filename}],
    }
    if wheel.license:
        component["licenses"] = [_license(wheel.license)]
    return component


def _license(text: str) -> dict[str, Any]:
    try:
        return {"expression": canonicalize_license_expression(text)}
    except InvalidLicenseExpression:
        return {"license": {"name": text}}


def _model_component(manifest: ModelManifest, recipe: ImageRecipe) -> dict[str, Any]:
    ref = f"model:{manifest.reference}"
    return {
        "type": "machine-learning-model",
        "bom-ref": ref,
        "name": manifest.name,
        "version": str(manifest.version),
        "components": [
            {
                "type": "file",
                "bom-ref": f"{ref}/{file.path}",
                "name": file.path,
                "hashes": [{"alg": "SHA-256", "content": file.digest.removeprefix("sha256:")}],
            }
            for file in packed_files(recipe, manifest)
        ],
    }


def _wheel_ref(wheel: Wheel) -> str:
    return f"pkg:pypi/{wheel.name}@{quote(wheel.version, safe='')}"


def _slipway_ref(version: str) -> str:
    return f"pkg:pypi/slipway@{quote(version, safe='')}"


def _dependencies(
    image: Descriptor, components: Iterable[Mapping[str, Any]], wheels: Sequence[Wheel]
) -> list[dict[str, Any]]:
    refs = {wheel.name: _wheel_ref(wheel) for wheel in wheels}
    return [
        {"ref": image.digest, "dependsOn": [one["bom-ref"] for one in components]},
        # What a package needs only elsewhere, or the base has, is not among the wheels.
        *(
            {"ref": refs[wheel.name], "dependsOn": [refs[name] for name in wheel.requires if name in refs]}
            for wheel in wheels
        ),
    ]


def provenance(
    name: ImageName,
    image: Descriptor,
    platform: Platform,
    base: BaseImage,
    wheels: Sequence[Wheel],
    manifest: ModelManifest,
    recipe: ImageRecipe,
    builder: Mapping[str, str],
) -> bytes:
    """An in-toto statement with SLSA provenance: from what, by whom and with which recipe the image was made."""
    dependencies = [
        {"name": "base", "uri": str(base.name), "digest": _sha256(base.digest)},
        *({"name": wheel.filename, "uri": _wheel_ref(wheel), "digest": _sha256(wheel.digest)} for wheel in wheels),
        *(
            {"name": file.path, "uri": f"slipway:{manifest.reference}/{file.path}", "digest": _sha256(file.digest)}
            for file in packed_files(recipe, manifest)
        ),
    ]
    written = recipe.to_wire()
    # When the recipe was written is not what the image is made of.
    written.pop("createdAt", None)
    return canonical_json(
        {
            "_type": "https://in-toto.io/Statement/v1",
            "subject": [{"name": str(name), "digest": _sha256(image.digest)}],
            "predicateType": "https://slsa.dev/provenance/v1",
            "predicate": {
                "buildDefinition": {
                    "buildType": BUILD_TYPE,
                    "externalParameters": {"recipe": written, "platform": str(platform)},
                    "resolvedDependencies": dependencies,
                },
                "runDetails": {"builder": {"id": BUILDER, "version": dict(builder)}},
            },
        }
    )


def _sha256(digest: str) -> dict[str, str]:
    return {"sha256": digest.removeprefix("sha256:")}
