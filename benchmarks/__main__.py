"""Run every benchmark and print its rows, as ``make bench`` does. docs/performance.md records a run with its date."""

import argparse
import importlib
import inspect
import json
import pkgutil
import platform
import sys
from datetime import UTC, datetime

import benchmarks


def names() -> list[str]:
    found = (module.name for module in pkgutil.iter_modules(benchmarks.__path__))
    return sorted(name for name in found if not name.startswith("_"))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", help="which ones; all by default")
    parser.add_argument("--json", action="store_true", help="print rows as JSON")
    parser.add_argument("--full", action="store_true", help="the long form, of those that have one")
    arguments = parser.parse_args()
    unknown = set(arguments.names) - set(names())
    if unknown:
        parser.error(f"no benchmark named {', '.join(sorted(unknown))}; there are: {', '.join(names())}")
    machine = f"{platform.system()} {platform.machine()}, Python {platform.python_version()}"
    print(f"{datetime.now(UTC):%Y-%m-%d}, {machine}", file=sys.stderr)
    for name in arguments.names or names():
        run = importlib.import_module(f"benchmarks.{name}").run
        has_long_form = "is_full" in inspect.signature(run).parameters
        rows = run(is_full=arguments.full) if has_long_form else run()
        if arguments.json:
            print(json.dumps({"benchmark": name, "rows": rows}))
            continue
        print(f"\n## {name}\n")
        for row in rows:
            print("  " + "  ".join(f"{key}: {value}" for key, value in row.items()))


if __name__ == "__main__":
    main()
