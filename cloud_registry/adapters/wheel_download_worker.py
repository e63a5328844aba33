"""pip, told what environment markers say in the image: started by `oci_wheels` as a program of its own.

``pip download --platform`` picks wheels for another machine, and evaluates the markers of requirements (such as
``platform_machine == "aarch64"``) on this one. So the environment that markers see is put in its place before pip
starts. Arguments: the environment as JSON, then pip's.
"""

import json
import sys


def main() -> int:
    from pip._internal.cli.main import main as pip_main
    from pip._vendor.packaging import markers

    environment = json.loads(sys.argv[1])
    if not callable(getattr(markers, "default_environment", None)):
        print("ERROR: this version of pip keeps its markers elsewhere; use pip 23 to 26", file=sys.stderr)
        return 1
    markers.default_environment = lambda: dict(environment)
    return int(pip_main(sys.argv[2:]))


if __name__ == "__main__":
    sys.exit(main())
