"""How wide lines are, how long functions and files."""

import ast
import re
from pathlib import Path

from tree import Fault

WIDTH = 140
FUNCTION = 60
MICROKERNEL = 120
FILE = 600


def widths(tree):
    for path in tree.files:
        # Results of programs are kept as they were printed; the linter of Python knows its widths.
        if not tree.is_text(path) or path.endswith(".py") or path.startswith("bench/results/"):
            continue
        for number, line in enumerate(tree.text(path).splitlines(), 1):
            if len(line) > WIDTH and not unbreakable(path, line):
                yield Fault(path, number, f"{len(line)} characters: break the line, {WIDTH} is the limit")


def unbreakable(path, line):
    """A row of a table is one line, and so are a raw string and an address."""
    if re.match(r"\s*\|" if path.endswith(".md") else r'\s*r#*"', line):
        return True
    return max(map(len, line.split())) > WIDTH - 20


def sizes(tree):
    for path in tree.files:
        if path.endswith(".rs") and path not in tree.test_files:
            yield from rust_sizes(tree, path)
        elif path.endswith(".py") and not is_python_test(path):
            yield from python_sizes(tree, path)


def is_python_test(path):
    return "tests" in Path(path).parts or Path(path).name.startswith("test_")


def rust_sizes(tree, path):
    source = tree.rust(path)
    lines = source.text.count("\n") - sum(last - first + 1 for first, last in source.tests)
    yield from file_size(path, lines)
    limit = MICROKERNEL if path.startswith("crates/kernels/src/") else FUNCTION
    for name, first, length in source.functions:
        if length > limit and not source.is_test(first):
            yield function_size(path, first, name, length, limit)


def python_sizes(tree, path):
    text = tree.text(path)
    yield from file_size(path, text.count("\n"))
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            doc = node.body[0] if ast.get_docstring(node) is not None else None
            length = node.end_lineno - node.lineno + 1 - (doc.end_lineno - doc.lineno + 1 if doc else 0)
            if length > FUNCTION:
                yield function_size(path, node.lineno, node.name, length, FUNCTION)


def file_size(path, lines):
    if lines > FILE:
        yield Fault(path, 1, f"{lines} lines without tests: split the file, {FILE} is the limit")


def function_size(path, line, name, length, limit):
    return Fault(path, line, f"`{name}` has {length} lines: split it, {limit} is the limit")
