"""Names and links in the documents: each must exist."""

import re
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath

from tree import Fault

LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)|^\[[^\]]+\]:\s+(\S+)")
SPAN = re.compile(r"(`+)(.+?)\1")
PATH = re.compile(r"(?:\.?[\w<>*-][\w.<>*-]*/)+[\w.<>*-]*|[\w<>*-]+\.(?:rs|py|md)")
WORD = re.compile(r"\b(?!0x)[A-Za-z_]\w+")
FIELD = re.compile(r"^ *(?:pub(?:\([a-z]+\))? )?(\w+):", re.MULTILINE)
FLAG = re.compile(r"(?<![\w-])--[a-z][a-z0-9-]+")

# Words in code spans that belong to others: commands, instructions, headers, calls of the system, data sets, files of models.
FOREIGN = {"zcat", "bz2", "vpmaddubsw", "Retry", "prctl", "PR_SET_THP_DISABLE", "TinyStories", "configuration_<family>.py"}


def documents(tree):
    return [f for f in tree.files if f.endswith(".md") and not f.startswith(("bench/results/", "CHANGELOG"))]


def prose(text):
    """Number, line and whether it stands in a fenced block, for every line of a document."""
    fenced = False
    for number, line in enumerate(text.splitlines(), 1):
        if line.lstrip().startswith("```"):
            fenced = not fenced
            continue
        yield number, line, fenced


def anchors(text):
    """What GitHub names the headings of a document."""
    found = set()
    for _, line, fenced in prose(text):
        if not fenced and line.startswith("#"):
            title = re.sub(r"[^\w\- ]", "", line.lstrip("#").strip().lower())
            found.add(title.replace(" ", "-"))
    return found


def links(tree):
    for path in documents(tree):
        for number, line, fenced in prose(tree.text(path)):
            for match in [] if fenced else LINK.finditer(SPAN.sub("", line)):
                target, _, anchor = (match[1] or match[2]).partition("#")
                if re.match(r"[a-z]+:", target):
                    continue
                file = path if not target else normal(Path(path).parent / target)
                if file not in tree.files and not any(f.startswith(file.rstrip("/") + "/") for f in tree.files):
                    yield Fault(path, number, f"links to {target}, which does not exist: name the place it moved to")
                elif anchor and file.endswith(".md") and anchor not in anchors(tree.text(file)):
                    yield Fault(path, number, f"{file} has no heading `#{anchor}`: name the one it has")


def normal(path):
    parts = []
    for part in PurePosixPath(path).parts:
        if part == "..":
            parts = parts[:-1]
        elif part != ".":
            parts.append(part)
    return "/".join(parts)


class Known:
    """Every word, flag and path that exists outside of the documents."""

    def __init__(self, tree):
        self.files = tree.files
        self.flags = set()
        self.words_of = {}
        for path in tree.files:
            if path.endswith(".md") or not (tree.is_text(path) or path.endswith((".json", ".lock"))):
                continue
            text = tree.rust(path).words if path.endswith(".rs") else tree.text(path)
            self.words_of[path] = set(re.findall(r"\w+", text))
            self.flags.update(FLAG.findall(text))
            if path.startswith("crates/cli/src/"):
                # clap makes `--kv-sparsity` of a field `kv_sparsity`.
                self.flags.update("--" + name.replace("_", "-") for name in FIELD.findall(text))
        for path in tree.files:
            self.words_of.setdefault(path, set()).update(re.findall(r"\w+", path))
        self.words = FOREIGN.union(*self.words_of.values())

    def path(self, name):
        """Whether a file or folder ends with the whole parts of `name`; `*`, `<name>` and `NAME` stand for anything but `/`."""
        wanted = re.sub(r"<\w+>|(?<=/)[A-Z-]+(?=/)", "*", name).strip("/").split("/")
        return any(
            all(fnmatch(p, w) for p, w in zip(parts[at:], wanted, strict=False))
            for parts in (f.split("/") for f in self.files)
            for at in range(len(parts) - len(wanted) + 1)
        )

    def word(self, word):
        """Whether the sources have the word; `_bytes` is the end of one and `lora_` the beginning."""
        if word.startswith("_"):
            return any(w.endswith(word) for w in self.words)
        if word.endswith("_"):
            return any(w.startswith(word) for w in self.words)
        return word in self.words

    def together(self, path):
        """Whether one file has, or is called by, the last two names of a Rust path."""
        last = set(path.split("::")[-2:])
        return any(last <= words for words in self.words_of.values())

    def missing(self, span):
        """What of a code span does not exist."""
        if PATH.fullmatch(span):
            first = span.split("/")[0]
            ours = span.endswith((".rs", ".py", ".md")) or any(f.startswith(first + "/") for f in self.files)
            return [span] if ours and span not in FOREIGN and not self.path(span) else []
        found = [f for f in FLAG.findall(span) if f not in self.flags]
        found += [w for w in WORD.findall(FLAG.sub("", span)) if not self.word(w)]
        found += [p for p in re.findall(r"\w+(?:::\w+)+", span) if not self.together(p)]
        return found


def names(tree):
    known = Known(tree)
    for path in documents(tree):
        for number, line, fenced in prose(tree.text(path)):
            # Cargo's own flags stand before a ` -- `.
            line = re.sub(r"\bcargo (?:(?! -- )[^`])*", "", line)
            spans = FLAG.findall(line) if fenced else [m[2].strip() for m in SPAN.finditer(line)]
            for span in spans:
                for name in known.missing(span):
                    yield Fault(path, number, f"`{name}` does not exist in the sources: write what it is called now")
