"""Setting and removing nodes of a tree by their paths, and the merge patch that leads from one tree to another."""

from typing import Any

from simulators.iothub.core.query.expressions import Path

Tree = dict[str, Any]


def with_node(tree: Tree, path: Path, value: Any) -> Tree:
    """The tree with `value` in the place of the node at `path`, which is made where it is missing."""
    if not path:
        return dict(value)
    below = tree.get(path[0])
    inner = with_node(below if isinstance(below, dict) else {}, path[1:], value) if len(path) > 1 else value
    return {**tree, path[0]: inner}


def without_node(tree: Tree, path: Path) -> Tree:
    """The tree without the node at `path`, and without parents that are empty since; as it is where there is none."""
    if not path:
        return {}
    if path[0] not in tree:
        return tree
    rest = {key: value for key, value in tree.items() if key != path[0]}
    if len(path) == 1:
        return rest
    below = tree[path[0]]
    if not isinstance(below, dict):
        return tree
    inner = without_node(below, path[1:])
    return {**tree, path[0]: inner} if inner or not below else rest


def patch_between(before: Tree, after: Tree) -> Tree:
    """The smallest merge patch that makes `after` of `before`: null deletes, an object merges into an object."""
    patch: Tree = dict.fromkeys((key for key in before if key not in after), None)
    for key, value in after.items():
        if key not in before:
            patch[key] = value
            continue
        old = before[key]
        if isinstance(old, dict) and isinstance(value, dict):
            inner = patch_between(old, value)
            if inner:
                patch[key] = inner
        elif not _is_same(old, value):
            patch[key] = value
    return patch


def _is_same(old: Any, new: Any) -> bool:
    # To Python 1, 1.0 and True are equal; to JSON they are not.
    if isinstance(old, list) and isinstance(new, list):
        return len(old) == len(new) and all(_is_same(*pair) for pair in zip(old, new, strict=True))
    if isinstance(old, dict) and isinstance(new, dict):
        return old.keys() == new.keys() and all(_is_same(old[key], new[key]) for key in old)
    return type(old) is type(new) and bool(old == new)
