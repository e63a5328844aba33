"""Whether a scoring script is one: parsed, and never run. Pure.

A script has ``init()``, called once, and ``run(data)``, called for each request, as in Azure ML.
"""

import ast
from collections.abc import Iterator

from cloud_registry.errors import RefusedModelError

SCRIPT_NAME = "score.py"
SCRIPT_BYTES_MAX = 1024 * 1024
_HINT = "Write init() and run(data) at the top level of score.py."

_Function = ast.FunctionDef | ast.AsyncFunctionDef


def check_script(content: bytes, name: str) -> ast.Module:
    """The parsed script; raises RefusedModelError where it is no Python, or lacks ``init`` or ``run``."""
    if len(content) > SCRIPT_BYTES_MAX:
        raise RefusedModelError(f"{name} has {len(content):,} bytes; a script has at most {SCRIPT_BYTES_MAX:,}")
    try:
        tree = ast.parse(content, name)
    except SyntaxError as err:
        line = f" in line {err.lineno}" if err.lineno else ""
        raise RefusedModelError(f"{name} is no Python that can be read: {err.msg}{line}", hint=_HINT) from err
    except (ValueError, RecursionError, MemoryError) as err:
        raise RefusedModelError(f"{name} is no Python that can be read: {err or 'it is nested too deeply'}") from err
    functions = {node.name: node for node in _defined(tree.body)}
    imported = set(_imported(tree.body))
    for wanted, arguments in (("init", 0), ("run", 1)):
        if wanted in imported and wanted not in functions:
            continue
        if wanted not in functions:
            raise RefusedModelError(f"{name} has no function {wanted}()", hint=_HINT)
        _check_arguments(functions[wanted], arguments, name)
    return tree


def texts_in(tree: ast.Module) -> frozenset[str]:
    """Every text that the script spells out."""
    return frozenset(
        node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)
    )


def _defined(body: list[ast.stmt]) -> Iterator[_Function]:
    """Functions of the module itself, also those under an `if` or a `try`."""
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node
        elif isinstance(node, ast.If | ast.Try):
            yield from _defined([*node.body, *node.orelse])


def _imported(body: list[ast.stmt]) -> Iterator[str]:
    for node in body:
        if isinstance(node, ast.ImportFrom):
            yield from (alias.asname or alias.name for alias in node.names)


def _check_arguments(function: _Function, given: int, name: str) -> None:
    signature = function.args
    positional = len(signature.posonlyargs) + len(signature.args)
    required = positional - len(signature.defaults)
    required_by_name = [
        argument.arg
        for argument, default in zip(signature.kwonlyargs, signature.kw_defaults, strict=True)
        if default is None
    ]
    # Decorators of inference-schema hand a request's parts over by name, so that run() may take several.
    is_decorated = bool(function.decorator_list)
    if required_by_name and not is_decorated:
        raise RefusedModelError(f"{name} has {function.name}() with the required argument {required_by_name[0]!r}")
    if given == 0 and required > 0:
        raise RefusedModelError(
            f"{name} has {function.name}() with {required} required arguments; it is called with none"
        )
    if given == 1 and ((required > 1 and not is_decorated) or (positional == 0 and signature.vararg is None)):
        raise RefusedModelError(
            f"{name} has {function.name}() with {required} required arguments; it is called with the request's data",
            hint=_HINT,
        )
