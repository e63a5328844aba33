"""``python -m edge_module.health``: what the image's health check runs. Ends with 0 while the endpoint answers."""

import os
import sys
import urllib.error
import urllib.request

from manifests.recipe import PORT_DEFAULT

TIMEOUT_S = 5.0


def endpoint_port() -> int:
    return int(os.environ.get("SLIPWAY_PORT", str(PORT_DEFAULT)))


def main() -> int:
    """0 where the endpoint says that it is alive, else 1 with a sentence on stdout, which Docker keeps."""
    url = f"http://127.0.0.1:{endpoint_port()}/healthz"
    try:
        # Never through a proxy: it is this very container.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(url, timeout=TIMEOUT_S) as response:
            print(response.read().decode().strip())
    except (OSError, urllib.error.URLError) as err:
        print(f"The scoring endpoint does not answer: {err}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
