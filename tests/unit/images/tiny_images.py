"""Bases and wheels of a few kilobytes, made here: real archives that real tools read."""

import base64
import gzip
import hashlib
import io
import json
import tarfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

PATH = "PATH=/usr/local/bin:/usr/bin:/bin"
GLIBC = b"\0GNU C Library (Debian GLIBC 2.36-9) stable release version 2.36.\n\0"
DPKG = (
    b"Package: libc6\nStatus: install ok installed\nArchitecture: amd64\nVersion: 2.36-9+deb12u10\n\n"
    b"Package: gone\nStatus: deinstall ok config-files\nArchitecture: amd64\nVersion: 1\n\n"
    b"Package: python3.11-minimal\nStatus: install ok installed\nArchitecture: amd64\nVersion: 3.11.2-6+deb12u5\n"
)
BASE_FILES: dict[str, bytes] = {
    "usr/bin/python3.11": b"\x7fELF",
    "usr/lib/x86_64-linux-gnu/libc.so.6": GLIBC,
    "var/lib/dpkg/status": DPKG,
    "usr/lib/os-release": b'ID=debian\nVERSION_ID="12"\nPRETTY_NAME="Debian GNU/Linux 12"\n',
    "usr/lib/python3/dist-packages/numpy-1.24.2.dist-info/METADATA": b"Name: numpy\n",
}


def tar_of(files: Mapping[str, bytes]) -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        for path, data in files.items():
            member = tarfile.TarInfo(path)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return content.getvalue()


def digest(content: bytes) -> str:
    return "sha256:" + hashlib.sha256(content).hexdigest()


def config_of(layers: Sequence[bytes], architecture: str, **config: Any) -> dict[str, Any]:
    return {
        "architecture": architecture,
        "os": "linux",
        "config": {"Env": [PATH], "Cmd": ["python3"], **config},
        "rootfs": {"type": "layers", "diff_ids": [digest(layer) for layer in layers]},
    }


def save_base(
    path: Path, architecture: str = "amd64", files: Mapping[str, bytes] = BASE_FILES, more: Sequence[bytes] = ()
) -> Path:
    """What `docker save` writes, of one bare layer and perhaps more."""
    layers = [tar_of(files), *more]
    members = {f"{number}/layer.tar": layer for number, layer in enumerate(layers)}
    members["config.json"] = json.dumps(config_of(layers, architecture)).encode()
    images = [
        {"Config": "config.json", "RepoTags": ["base:1"], "Layers": [f"{n}/layer.tar" for n in range(len(layers))]}
    ]
    members["manifest.json"] = json.dumps(images).encode()
    path.write_bytes(tar_of(members))
    return path


def registry_base(architecture: str = "amd64") -> dict[str, bytes]:
    """The blobs of a base in a registry by their digest, the manifest under ``manifest``."""
    layer = tar_of(BASE_FILES)
    packed = gzip.compress(layer, mtime=0)
    config = json.dumps(config_of([layer], architecture)).encode()
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.docker.distribution.manifest.v2+json",
        "config": {
            "mediaType": "application/vnd.docker.container.image.v1+json",
            "digest": digest(config),
            "size": len(config),
        },
        "layers": [
            {
                "mediaType": "application/vnd.docker.image.rootfs.diff.tar.gzip",
                "digest": digest(packed),
                "size": len(packed),
            }
        ],
    }
    return {digest(packed): packed, digest(config): config, "manifest": json.dumps(manifest).encode()}


def save_wheel(
    folder: Path,
    name: str,
    version: str = "1.0",
    tag: str = "py3-none-any",
    files: Mapping[str, bytes] | None = None,
    requires: Sequence[str] = (),
    scripts: Mapping[str, str] | None = None,
) -> Path:
    """A wheel with a true record."""
    folder.mkdir(parents=True, exist_ok=True)
    info = f"{name}-{version}.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\nLicense-Expression: MIT\n"
    content = {
        f"{name}/__init__.py": f"version = {version!r}\n".encode(),
        **(files or {}),
        f"{info}/METADATA": (metadata + "".join(f"Requires-Dist: {text}\n" for text in requires)).encode(),
        f"{info}/WHEEL": f"Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: {tag}\n".encode(),
    }
    if scripts:
        lines = "".join(f"{script} = {target}\n" for script, target in scripts.items())
        content[f"{info}/entry_points.txt"] = f"[console_scripts]\n{lines}".encode()
    record = "".join(f"{path},{_record_hash(data)},{len(data)}\n" for path, data in content.items())
    path = folder / f"{name}-{version}-{tag}.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for member, data in content.items():
            archive.writestr(zipfile.ZipInfo(member), data)
        archive.writestr(zipfile.ZipInfo(f"{info}/RECORD"), f"{record}{info}/RECORD,,\n")
    return path


def _record_hash(data: bytes) -> str:
    return "sha256=" + base64.urlsafe_b64encode(hashlib.sha256(data).digest()).decode().rstrip("=")
