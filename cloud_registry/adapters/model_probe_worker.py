"""The process that loads a model on registration: ``python -m cloud_registry.adapters.model_probe_worker REPORT``.

Reads a request as JSON from stdin and writes its report as JSON to the file REPORT: what it saw, or why it refuses. It
is bounded before numpy or an engine is imported, since those start threads.
"""

import atexit
import gc
import json
import sys
from pathlib import Path
from typing import Any

from cloud_registry.adapters.model_confinement import Bounds, confine, reaches_a_network
from cloud_registry.errors import RefusedModelError


def main() -> None:
    request = json.loads(sys.stdin.read())
    try:
        report = _report(request)
    except RefusedModelError as err:
        report = {"refused": err.message, "hint": err.hint}
    path = Path(sys.argv[1])
    unfinished = path.with_suffix(".part")
    unfinished.write_text(json.dumps(report))
    unfinished.replace(path)


def _report(request: dict[str, Any]) -> dict[str, Any]:
    bounds = Bounds(request["parent"], request["durationMaxS"], request["memoryMaxBytes"], barriers=request["barriers"])
    limits = confine(bounds)
    is_walled = any(limit.startswith("no network") for limit in limits) and not reaches_a_network()
    if not is_walled and not request["isUnconfined"]:
        raise RefusedModelError(
            f"{request['name']} was not run: this system lets us keep no network from it",
            hint="Register it on a Linux machine with user namespaces or seccomp, or trust it and add --unconfined.",
        )
    from cloud_registry.adapters.model_probe_examination import examine, measure, merge_weights

    try:
        if "mergeTo" in request:
            report = merge_weights(request)
        else:
            report = measure(request) if request.get("measureS") else examine(request)
        return {**report, "limits": list(limits)}
    except MemoryError as err:
        raise RefusedModelError(
            f"{request['name']} needs more than the {request['memoryMaxBytes']:,} bytes of memory that it may take",
            hint="Give it more with --memory-limit, or register it on a larger machine.",
        ) from err


if __name__ == "__main__":
    # At its end Python looks for cycles among everything that was loaded, to free what ends anyway.
    atexit.register(gc.freeze)
    main()
