"""Which file uses which: no circles between the files of a crate, no arrow upwards between crates.

A file uses another when it names something that the other defines; a name is followed through re-exports to the file of
its definition. What a module uses of the files it declares does not count: with these it is one thing.
"""

import re
from pathlib import Path

import tomllib

from tree import Fault

# Each may use those before it.
ORDER = ["cpu", "format", "testkit", "kernels", "model", "compress", "engine", "evaluate", "hub", "server", "cli"]

ITEM = re.compile(
    r"\b(?:fn|struct|enum|union|trait|type|const|static|macro_rules!)\s+(?:mut\s+|unsafe\s+|extern\s+|async\s+|fn\s+)*(\w+)"
    r"|\bmod\s+(\w+)\s*\{"
)
USE = re.compile(r"\buse\s+([^;]+);")
PATH = re.compile(r"(?<![\w:$.])\$?(\w+(?:\s*::\s*\w+)+)")


def used(tree_of_names):
    """(path, name it gets) for every leaf of a `use` tree: `a::{b, c as d}` gives `a::b` as `b`, `a::c` as `d`."""
    text = re.sub(r"\s+", " ", tree_of_names).strip()
    found, stack, path = [], [], []
    for part in re.findall(r"\w+ as \w+|[\w*]+|::|[{},]", text):
        if part == "{":
            stack.append(list(path))
        elif part in ",}":
            if path is not None and path != (stack[-1] if stack else []):
                found.append(path)
            path = list(stack[-1]) if stack else []
            if part == "}":
                stack.pop()
                path = None
        elif part != "::" and path is not None:
            path.append(part)
    if path:
        found.append(path)
    leaves = []
    for path in found:
        *head, last = path
        name, _, alias = last.partition(" as ")
        if name == "self" and head:
            leaves.append((head, alias or head[-1]))
        else:
            leaves.append((head + [name], alias or name))
    return leaves


class Crate:
    """The modules of one crate, by path from its root: `()` is `lib.rs` or `main.rs`."""

    def __init__(self, tree, root):
        self.tree = tree
        self.files = {}
        self._add((), root)
        self.items = {m: self._items(f) for m, f in self.files.items()}
        self.uses = {m: self._uses(f) for m, f in self.files.items()}

    def _add(self, module, path):
        self.files[module] = path
        for name, file in self.tree.modules(path).items():
            self._add((*module, name), file)

    def _outside_tests(self, path, pattern):
        source = self.tree.rust(path)
        for match in pattern.finditer(source.code):
            if not source.is_test(source.line(match.start())):
                yield match, source.line(match.start())

    def _items(self, path):
        return {m[1] or m[2] for m, _ in self._outside_tests(path, ITEM)}

    def _uses(self, path):
        return [(*leaf, line) for m, line in self._outside_tests(path, USE) for leaf in used(m[1])]

    def resolve(self, module, path, seen=frozenset()):
        """The module that defines what `path` names inside `module`.

        None for names of other crates, and for a path that stops at a module: a module by itself defines nothing.
        """
        module, path = self._descend(module, path)
        if not path or (module, tuple(path)) in seen:
            return None
        seen |= {(module, tuple(path))}
        first, *rest = path
        if first in self.items[module]:
            return module
        for target, name, _ in self.uses[module]:
            if name == first and target != path:
                return self.resolve(module, target + rest, seen)
        for target, name, _ in self.uses[module]:
            if name == "*":
                inside, left = self._descend(module, target[:-1])
                found = None if left else self.resolve(inside, path, seen)
                if found is not None:
                    return found
        return None

    def _descend(self, module, path):
        """Follows the modules that `path` begins with: the last of them, and what is left of the path."""
        for at, name in enumerate(path):
            if name == "crate":
                module = ()
            elif name == "super":
                module = module[:-1]
            elif (*module, name) in self.files:
                module = (*module, name)
            elif name != "self":
                return module, path[at:]
        return module, []

    def arrows(self):
        """For each file, the files it uses and the line where it first does."""
        found = {f: {} for f in self.files.values()}
        for module, path in self.files.items():
            source = self.tree.rust(path)
            named = [(p, line) for p, _, line in self.uses[module] if not self._exported(source, line)]
            code = USE.sub(lambda m: re.sub(r"[^\n]", " ", m[0]), source.code)
            for match in PATH.finditer(code):
                line = source.line(match.start())
                if not source.is_test(line):
                    named.append((re.split(r"\s*::\s*", match[1]), line))
            for target, line in named:
                defined = self.resolve(module, target)
                if defined is not None and defined[: len(module)] != module:
                    found[path].setdefault(self.files[defined], line)
        return found

    @staticmethod
    def _exported(source, line):
        return source.code.splitlines()[line - 1].lstrip().startswith("pub")


def circles(arrows):
    """Groups of files that use each other in a circle (strongly connected, by Tarjan)."""
    index, low, stack, found = {}, {}, [], []

    def visit(file):
        index[file] = low[file] = len(index)
        stack.append(file)
        for target in arrows[file]:
            if target not in index:
                visit(target)
                low[file] = min(low[file], low[target])
            elif target in stack:
                low[file] = min(low[file], index[target])
        if low[file] == index[file]:
            group = stack[stack.index(file) :]
            del stack[stack.index(file) :]
            if len(group) > 1:
                found.append(sorted(group))

    for file in arrows:
        if file not in index:
            visit(file)
    return found


def upwards(group, arrows):
    """The arrows of a circle that point against the order in which few do (Eades, Lin and Smyth's)."""
    out = {f: {t for t in arrows[f] if t in group} for f in group}
    into = {f: {g for g in group if f in out[g]} for f in group}
    left, first, last = set(group), [], []
    while left:
        lowest = [f for f in sorted(left) if not out[f] & left]
        highest = [f for f in sorted(left) if not into[f] & left]
        if lowest:
            last.append(lowest[0])
        elif highest:
            first.append(highest[0])
        else:
            first.append(max(sorted(left), key=lambda f: len(out[f] & left) - len(into[f] & left)))
        left -= {*first, *last}
    place = {f: at for at, f in enumerate(first + last[::-1])}
    return [(f, t) for f in group for t in sorted(out[f]) if place[t] < place[f]]


def between_files(tree):
    roots = [str(m.parent / "src" / name) for m in crates(tree) for name in ("lib.rs", "main.rs")]
    for root in roots:
        if root not in tree.files:
            continue
        arrows = Crate(tree, root).arrows()
        for group in circles(arrows):
            what = f"which uses it, too: a circle of {len(group)} files; move what both need below both"
            for file, target in upwards(group, arrows):
                yield Fault(file, arrows[file][target], f"uses {target}, {what}")


def crates(tree):
    """The manifests of the crates of the workspace."""
    return [p for p in map(Path, tree.files) if p.name == "Cargo.toml" and p.parent.parent == Path("crates")]


def between_crates(tree):
    """Tests of a crate may use what stands above it; the crate itself may not."""
    for manifest in crates(tree):
        here = manifest.parent.name
        if here not in ORDER:
            yield Fault(str(manifest), 1, f"crate `{here}` has no place in ORDER of tools/tidy/imports.py")
            continue
        text = tree.text(str(manifest))
        parsed = tomllib.loads(text)
        tables = [parsed.get(kind, {}) for kind in ("dependencies", "build-dependencies")]
        tables += [t.get("dependencies", {}) for t in parsed.get("target", {}).values()]
        for name in {n for table in tables for n in table if n.startswith("sparamx-")}:
            used_crate = name.removeprefix("sparamx-")
            if used_crate not in ORDER or ORDER.index(used_crate) >= ORDER.index(here):
                line = next(n for n, t in enumerate(text.splitlines(), 1) if t.startswith(name))
                yield Fault(str(manifest), line, f"`{here}` may not use `{used_crate}`, which stands above it")
