"""Wrap an archive of a root file system as an image of one layer, the way `docker save` writes it.

Usage: image_tar.py ROOTFS.tar OUTPUT.tar ARCHITECTURE NAME. `docker import` would do it too, but before version 23 it
calls every image one of its own machine.
"""

import hashlib
import io
import json
import sys
import tarfile
from pathlib import Path

# Debian's name for a machine, where OCI has another.
PLATFORMS = {"armhf": {"architecture": "arm", "variant": "v7"}}
PATHS = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def write_image(root_file_system: Path, output: Path, architecture: str, name: str) -> None:
    with root_file_system.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    configuration = json.dumps(
        {
            "os": "linux",
            **PLATFORMS.get(architecture, {"architecture": architecture}),
            "created": "1970-01-01T00:00:00Z",
            "config": {"Env": [f"PATH={PATHS}", "LANG=C.UTF-8"], "Cmd": ["python3"]},
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}"]},
            "history": [{"created": "1970-01-01T00:00:00Z", "created_by": "mmdebstrap"}],
        }
    ).encode()
    configuration_name = hashlib.sha256(configuration).hexdigest() + ".json"
    manifest = json.dumps([{"Config": configuration_name, "RepoTags": [name], "Layers": [f"{digest}/layer.tar"]}])
    with tarfile.open(output, "w") as archive:
        for member_name, content in ((configuration_name, configuration), ("manifest.json", manifest.encode())):
            member = tarfile.TarInfo(member_name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        member = tarfile.TarInfo(f"{digest}/layer.tar")
        member.size = root_file_system.stat().st_size
        with root_file_system.open("rb") as file:
            archive.addfile(member, file)


if __name__ == "__main__":
    write_image(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], sys.argv[4])
