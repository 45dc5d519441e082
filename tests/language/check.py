"""Find the old dialect in tracked text: `python -m tests.language.check [--count] [PATH ...]`.

Looks at docstrings, comments, test names and messages in Python files, at prose in Markdown and HTML, and at
comments in the other files. Prints each hit as path:line, then hits per 1,000 words by folder.
Exits with 1 if a limit is exceeded.
"""

from __future__ import annotations

import argparse
import ast
import fnmatch
import io
import re
import subprocess
import sys
import tokenize
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PROJECT = Path(__file__).parents[2]
LIMIT = 1.0
"""Hits allowed per 1,000 words over all tracked text."""
OPENINGS_LIMIT = 0
"""Docstrings that may open with "What" or "Whether"."""
PATTERNS = {
    "where (for if)": r"\bwhere there (?:is|are)\b|, where |(?<=[.:;] )Where |\AWhere ",
    "stand (for be)": r"\bstands?\b(?! for\b)(?! in for\b)",
    "lie (for be)": r"\blies?\b",
    "behind (for after)": r"\bbehind\b",
    "beside (for next to)": r"\bbeside\b",
    "tell (for report)": r"\btold\b|\btells?\b",
    "anew": r"\banew\b",
    "mend": r"\bmend(?:s|ed|ing)?\b",
    "shall": r"\bshall\b",
    "alone (for only)": r"\balone\b",
    "is no X": r"\b(?<![Tt]here )(?:is|are) no (?!longer\b|more\b|less\b|such\b|entailment\b)[a-z]+",
    "a person": r"\ba person\b",
    "one's own": r"\bone's own\b",
    "as far as": r"\bas far as\b",
    "so many": r"\bso (?:many|often)\b",
    "come of, come to": r"\b(?:comes?|came) (?:of it|of them|to it)\b|\bcame of\b|\bmust come of\b",
    "whosever": r"\bwhosever\b|\bwhoever\b",
    "of this process": r"\brank: of\b",
}
EXCEPTIONS = {
    "data/sample/*": "the sample's texts",
    "nlicot/teacher/prompts/*": "what the teacher is asked; its hash is in every thought",
    "nlicot/prompts.py": "what the student is asked; checkpoints depend on it",
    "tests/golden/*": "expected outputs",
    "tests/language/*": "names the words it looks for",
    "LICENSE": "a licence's text",
}
_OPENING = re.compile(r"(?:What|Whether)\b")
_WORD = re.compile(r"[A-Za-z][A-Za-z'-]*")
_HASH_COMMENTS = {".yaml", ".yml", ".toml", ".sh", ".txt", ".cfg", ""}


@dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    """A piece of prose in a file."""

    path: str
    line: int
    text: str
    is_docstring: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Hit:
    """One use of a word on the list."""

    path: str
    line: int
    rule: str
    excerpt: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.rule}: {self.excerpt}"


def tracked_paths() -> list[str]:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=True,
    )
    return [
        path
        for path in listed.stdout.splitlines()
        if not any(fnmatch.fnmatch(path, pattern) for pattern in EXCEPTIONS) and (PROJECT / path).is_file()
    ]


def texts_of(path: str, content: str) -> Iterator[Text]:
    """Yield a file's prose, piece by piece."""
    suffix = Path(path).suffix
    if suffix == ".py":
        yield from _python_texts(path, content)
    elif suffix == ".md":
        prose = re.sub(r"^```.*?^```", _blank, content, flags=re.DOTALL | re.MULTILINE)
        prose = re.sub(r"`[^`\n]*`", "`", prose)
        # A paragraph is one piece, so that a phrase may go over a line's end.
        for block in re.finditer(r"(?:^.*\S.*\n?)+", prose, flags=re.MULTILINE):
            yield Text(path=path, line=prose.count("\n", 0, block.start()) + 1, text=block[0])
    elif suffix == ".html":
        bare = re.sub(
            r"<(script|style)\b.*?</\1>|\{%.*?%\}|\{\{.*?\}\}|<[^>]*>", _blank, content, flags=re.DOTALL
        )
        for number, line in enumerate(bare.splitlines(), 1):
            yield Text(path=path, line=number, text=line)
    elif suffix in (".js", ".css"):
        for match in re.finditer(r"/\*.*?\*/|(?<!:)//[^\n]*", content, flags=re.DOTALL):
            yield Text(path=path, line=content.count("\n", 0, match.start()) + 1, text=match[0])
    elif suffix in _HASH_COMMENTS:
        for number, line in enumerate(content.splitlines(), 1):
            if match := re.search(r"(?:^|\s)#+ (.*)", line):
                yield Text(path=path, line=number, text=match[1])


def _python_texts(path: str, content: str) -> Iterator[Text]:
    tree = ast.parse(content)
    docstrings = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.name.startswith("test_"):
            yield Text(path=path, line=node.lineno, text=node.name.replace("_", " "))
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            for position, child in enumerate(node.body):
                # An attribute's docstring counts too: a bare string after an assignment.
                if isinstance(child, ast.Expr) and isinstance(child.value, ast.Constant):
                    docstrings.add(child.value)
                    yield from _docstring(path, child.lineno, str(child.value.value), is_first=position == 0)
    if not path.startswith("tests/"):  # tests hold texts of pairs and of files on purpose
        yield from _messages(path, tree, docstrings)
    block: list[str] = []
    start = 0
    for token in tokenize.generate_tokens(io.StringIO(content).readline):
        if token.type == tokenize.COMMENT:
            start = start or token.start[0]
            block.append(re.sub(r"`[^`\n]*`", "`", token.string.lstrip("#! ")))
        elif token.type != tokenize.NL and block:
            yield Text(path=path, line=start, text="\n".join(block))
            block, start = [], 0


def _docstring(path: str, line: int, text: str, *, is_first: bool) -> Iterator[Text]:
    without_examples = re.sub(r"^\s*>>>.*?(?:\n\s*\n|\Z)", _blank, text, flags=re.DOTALL | re.MULTILINE)
    prose = re.sub(r"`[^`\n]*`", "`", without_examples)
    yield Text(path=path, line=line, text=prose, is_docstring=is_first)


def _messages(path: str, tree: ast.Module, docstrings: set[ast.Constant]) -> Iterator[Text]:
    """Yield strings that are prose: three words or more, not a pattern or a query."""
    skipped: set[ast.AST] = set(docstrings)
    for node in ast.walk(tree):  # an f-string comes before its parts
        if node in skipped:
            continue
        if isinstance(node, ast.JoinedStr):
            skipped.update(ast.walk(node))
            parts = [part.value if isinstance(part, ast.Constant) else "{}" for part in node.values]
            text = "".join(map(str, parts))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            text = node.value
        else:
            continue
        if len(_WORD.findall(text)) >= 3 and not re.search(r"\\[bwsAd]|\(\?|SELECT|CREATE", text):
            yield Text(path=path, line=node.lineno, text=text)


def _blank(match: re.Match[str]) -> str:
    return "\n" * match[0].count("\n")


def hits_in(text: Text) -> Iterator[Hit]:
    """Yield the words of the list that a piece of prose has."""
    lines, prose = [], ""
    for number, line in enumerate(text.text.splitlines(), text.line):
        joined = " ".join(line.split()) + " "
        prose += joined
        lines += [number] * len(joined)
    for rule, pattern in PATTERNS.items():
        for match in re.finditer(pattern, prose):
            excerpt = prose[max(0, match.start() - 30) : match.end() + 30].strip()
            yield Hit(path=text.path, line=lines[match.start()], rule=rule, excerpt=excerpt)


def bad_openings(texts: list[Text]) -> list[Hit]:
    """Return the docstrings that open with "What" or "Whether"."""
    return [
        Hit(path=text.path, line=text.line, rule="a docstring's first word", excerpt=text.text.split("\n")[0])
        for text in texts
        if text.is_docstring and _OPENING.match(text.text.strip())
    ]


def all_texts(prefixes: list[str] | None = None) -> list[Text]:
    """Return the prose of all tracked files, or of those below some paths."""
    return [
        text
        for path in tracked_paths()
        if not prefixes
        or any(path == prefix or path.startswith(f"{prefix.rstrip('/')}/") for prefix in prefixes)
        if Path(path).suffix in _HASH_COMMENTS | {".py", ".md", ".html", ".js", ".css"}
        for text in texts_of(path, (PROJECT / path).read_text(encoding="utf-8"))
    ]


def count_words(texts: list[Text]) -> int:
    return sum(len(_WORD.findall(text.text)) for text in texts)


def _folder(path: str) -> str:
    parts = path.split("/")[:-1]
    return "/".join(parts[: 2 if parts[:1] in (["nlicot"], ["tests"]) else 1]) or "."


def main(args: list[str] | None = None) -> int:
    """Print the hits, then the rates by folder."""
    parser = argparse.ArgumentParser(prog="python -m tests.language.check", description=__doc__)
    parser.add_argument("--count", action="store_true", help="only the rates")
    parser.add_argument("paths", nargs="*", help="files or folders (default: everything)")
    options = parser.parse_args(args)
    texts = all_texts(options.paths)
    hits = [hit for text in texts for hit in hits_in(text)]
    openings = bad_openings(texts)
    if not options.count:
        print("\n".join(map(str, sorted([*hits, *openings], key=lambda hit: (hit.path, hit.line)))))
    counts, words = Counter(_folder(hit.path) for hit in hits), Counter[str]()
    for text in texts:
        words[_folder(text.path)] += len(_WORD.findall(text.text))
    print(f"{'folder':<22}{'words':>8}{'hits':>6}{'per 1,000':>11}")
    for folder in sorted(words):
        rate = 1000 * counts[folder] / max(1, words[folder])
        print(f"{folder:<22}{words[folder]:>8,}{counts[folder]:>6}{rate:>11.1f}")
    rate = 1000 * len(hits) / max(1, sum(words.values()))
    print(f"{'all':<22}{sum(words.values()):>8,}{len(hits):>6}{rate:>11.1f}   (limit {LIMIT})")
    print(f"docstrings that open with What or Whether: {len(openings)} (limit {OPENINGS_LIMIT})")
    return int(rate > LIMIT or len(openings) > OPENINGS_LIMIT)


if __name__ == "__main__":
    sys.exit(main())
