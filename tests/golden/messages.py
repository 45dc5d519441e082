"""Print the message templates of all refusals in a package, to show which ones a change of words touched.

    python tests/golden/messages.py nlicot

A refusal is a call of one of the classes in `nlicot/errors.py`, of an argument error of `argparse`, or of the
method `error` in a `raise` (a row of a file makes its own errors). The output names no files, so that moving
code changes nothing; a text that a variable of the same function or module holds is shown in its place.
"""

from __future__ import annotations

import argparse
import ast
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TypeAlias

ARGPARSE_ERRORS = frozenset({"ArgumentTypeError", "ArgumentError"})
PART = "{...}"
Values: TypeAlias = Mapping[str, list[ast.expr]]
"""The expressions that are assigned to each variable."""


def error_classes(package: Path) -> frozenset[str]:
    """Return the names of the classes in a package's `errors.py`, and of argparse's errors."""
    tree = ast.parse((package / "errors.py").read_text(encoding="utf-8"))
    return ARGPARSE_ERRORS | {node.name for node in tree.body if isinstance(node, ast.ClassDef)}


def messages(package: Path) -> list[str]:
    """Return `ErrorClass: text` for each refusal in a package, sorted."""
    classes = error_classes(package)
    found: list[str] = []
    for path in package.rglob("*.py"):
        found += _messages_in(ast.parse(path.read_text(encoding="utf-8")), {}, classes)
    return sorted(found)


def _messages_in(scope: ast.AST, outer: Values, classes: frozenset[str]) -> Iterator[str]:
    """Yield the messages of a module or function, and of the functions in it."""
    nodes = list(_nodes_of(scope))
    values = {**outer, **_assigned(nodes)}
    raised = {id(node.exc) for node in nodes if isinstance(node, ast.Raise)}
    for node in nodes:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield from _messages_in(node, values, classes)
        elif isinstance(node, ast.Call):
            name = _name(node.func)
            if name in classes or (name == "error" and id(node) in raised):
                yield f"{name}: {' | '.join(_arguments(node, values))}"


def _nodes_of(scope: ast.AST) -> Iterator[ast.AST]:
    """Yield all nodes below a scope; of a function inside it, only the function itself."""
    for node in ast.iter_child_nodes(scope):
        yield node
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield from _nodes_of(node)


def _assigned(nodes: Iterable[ast.AST]) -> dict[str, list[ast.expr]]:
    found: dict[str, list[ast.expr]] = {}
    for node in nodes:
        if not isinstance(node, ast.Assign):
            continue
        target, value = node.targets[0], node.value
        pairs = [(target, value)]
        if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
            pairs = list(zip(target.elts, value.elts, strict=False))
        for name, text in pairs:
            if isinstance(name, ast.Name):
                found.setdefault(name.id, []).append(text)
    return found


def _name(function: ast.expr) -> str:
    if isinstance(function, ast.Attribute):
        return function.attr
    return function.id if isinstance(function, ast.Name) else ""


def _arguments(call: ast.Call, values: Values) -> Iterator[str]:
    yield from (template(argument, values) for argument in call.args)
    for keyword in call.keywords:
        if keyword.arg not in ("path", "line", "index"):
            yield f"{keyword.arg}={template(keyword.value, values)}"


def template(node: ast.expr, values: Values | None = None) -> str:
    """Return the text of an expression, with `{...}` for each part that is not a literal.

    >>> template(ast.parse('f"found {value!r}, " "expected 1" + hint', mode="eval").body)
    'found {...}, expected 1{...}'
    """
    values = values or {}
    if isinstance(node, ast.Constant):
        return str(node.value).replace("\n", "\\n")
    if isinstance(node, ast.JoinedStr):
        return "".join(template(part, values) for part in node.values)
    if isinstance(node, ast.FormattedValue):
        return template(node.value, values) if isinstance(node.value, ast.Name) else PART
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return template(node.left, values) + template(node.right, values)
    if isinstance(node, ast.IfExp):
        return f"{{{template(node.body, values)} or {template(node.orelse, values)}}}"
    if isinstance(node, ast.Name) and node.id in values:
        others = {name: each for name, each in values.items() if name != node.id}
        texts = dict.fromkeys(template(value, others) for value in values[node.id])
        text = f"{{{' or '.join(texts)}}}" if len(texts) > 1 else next(iter(texts))
        return text if any(map(str.isalpha, text)) else PART
    return PART


def main() -> None:
    """Print the templates, or their number."""
    parser = argparse.ArgumentParser(description="Print the message templates of all refusals in a package.")
    parser.add_argument("package", type=Path, nargs="?", default=Path("nlicot"), help="default: nlicot")
    parser.add_argument("--count", action="store_true", help="print only their number")
    options = parser.parse_args()
    found = messages(options.package)
    print(len(found) if options.count else "\n".join(found))


if __name__ == "__main__":
    main()
