"""Print the message templates of all refusals in a package, to show which ones a change of words touched.

    python tests/golden/messages.py nlicot > messages_after.txt
    diff tests/golden/messages_before.txt messages_after.txt

A refusal is a call of one of the classes in `nlicot/errors.py`, of an argument error of `argparse`, or of the
method `error` in a `raise` (a row of a file makes its own errors). The output names no files, so that moving
code changes nothing.
"""

from __future__ import annotations

import argparse
import ast
from collections.abc import Iterator
from pathlib import Path

ARGPARSE_ERRORS = frozenset({"ArgumentTypeError", "ArgumentError"})


def error_classes(package: Path) -> frozenset[str]:
    """Return the names of the classes in a package's `errors.py`, and of argparse's errors."""
    tree = ast.parse((package / "errors.py").read_text(encoding="utf-8"))
    return ARGPARSE_ERRORS | {node.name for node in tree.body if isinstance(node, ast.ClassDef)}


def messages(package: Path) -> list[str]:
    """Return `ErrorClass: text` for each refusal in a package, sorted."""
    classes = error_classes(package)
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in package.rglob("*.py")]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    calls = [node for node in nodes if isinstance(node, ast.Call) and _name(node.func) in classes]
    raised = [node.exc for node in nodes if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call)]
    calls += [call for call in raised if _name(call.func) == "error"]
    return sorted(f"{_name(call.func)}: {' | '.join(_arguments(call))}" for call in calls)


def _name(function: ast.expr) -> str:
    if isinstance(function, ast.Attribute):
        return function.attr
    return function.id if isinstance(function, ast.Name) else ""


def _arguments(call: ast.Call) -> Iterator[str]:
    yield from (template(argument) for argument in call.args)
    for keyword in call.keywords:
        if keyword.arg not in ("path", "line"):
            yield f"{keyword.arg}={template(keyword.value)}"


def template(node: ast.expr) -> str:
    """Return the text of an expression, with `{...}` for each part that is not a literal.

    >>> template(ast.parse('f"found {value!r}, " "expected 1" + hint', mode="eval").body)
    'found {...}, expected 1{...}'
    """
    if isinstance(node, ast.Constant):
        return str(node.value).replace("\n", "\\n")
    if isinstance(node, ast.JoinedStr):
        return "".join(template(part) for part in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return template(node.left) + template(node.right)
    if isinstance(node, ast.IfExp):
        return f"{{{template(node.body)} or {template(node.orelse)}}}"
    return "{...}"


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
