"""The tracked files of the repository and what was found wrong in them."""

import subprocess
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from rust import Source

TEXT = {".rs", ".py", ".pyi", ".md", ".toml", ".sh", ".yml", ".yaml", ".html", ".js", ".css"}


@dataclass(frozen=True, order=True)
class Fault:
    """One finding: where it is, what is wrong and what to do about it."""

    path: str
    line: int
    text: str

    def __str__(self):
        return f"{self.path}:{self.line}: {self.text}"


class Tree:
    """A work tree: `files` are paths relative to `root`, with `/`."""

    def __init__(self, root, files=None):
        self.root = Path(root)
        if files is None:
            listed = subprocess.run(
                ["git", "-C", root, "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
                check=True,
                capture_output=True,
            )
            files = listed.stdout.decode().split("\0")
        self.files = sorted({f for f in files if f and (self.root / f).is_file()})
        self._texts = {}
        self._sources = {}

    def text(self, path):
        if path not in self._texts:
            self._texts[path] = (self.root / path).read_text(encoding="utf-8")
        return self._texts[path]

    def is_text(self, path):
        """Whether people write the file: of a known kind, or a script without a suffix."""
        if Path(path).suffix:
            return Path(path).suffix in TEXT
        with open(self.root / path, "rb") as file:
            return file.read(2) == b"#!"

    def rust(self, path):
        if path not in self._sources:
            self._sources[path] = Source(self.text(path))
        return self._sources[path]

    @cached_property
    def rust_files(self):
        return [f for f in self.files if f.endswith(".rs")]

    @cached_property
    def test_files(self):
        """Rust files that only tests need: those of `tests/` and `emulator/`, and modules declared under `cfg(test)`."""
        found = {f for f in self.rust_files if {"tests", "emulator"} & set(Path(f).parts[:-1])}
        for path in self.rust_files:
            found.update(target for target in self.modules(path, tests=True).values() if target)
        return found

    def modules(self, path, tests=False):
        """The files of the modules that `path` declares with `mod name;`, by name."""
        here = Path(path)
        folder = here.parent if here.stem in ("lib", "main", "mod") else here.parent / here.stem
        found = {}
        for name, line, named in self.rust(path).declared:
            if self.rust(path).is_test(line) != tests:
                continue
            places = [here.parent / named] if named else [folder / f"{name}.rs", folder / name / "mod.rs"]
            known = [str(p) for p in places if str(p) in self.files]
            if known:
                found[name] = known[0]
        return found
