"""Just enough of Rust's grammar to find functions, modules, paths and tests."""

import re
from bisect import bisect_right
from functools import cached_property

TOKENS = re.compile(
    r"""
    (?P<comment> //[^\n]* | /\*.*?\*/ )
  | (?P<string> \b[bc]?r(?P<hashes>\#*)".*?"(?P=hashes) | [bc]?"(?:\\.|[^"\\])*" | b?'(?:\\(?:u\{[^}]*\}|x..|.)|[^\\'\n])' )
    """,
    re.VERBOSE | re.DOTALL,
)
CFG_TEST = re.compile(r"#!?\[cfg\((?:test\b|all\(test\b)")
DECLARED = re.compile(r'(?:#\[path = "([^"]+)"\]\s*)?(?:pub(?:\([^)]*\))?\s+)?\bmod\s+(\w+)\s*;')


def blank(text, kinds):
    """`text` with the tokens of `kinds` as spaces, so that places stay where they are."""

    def spaces(match):
        kind = "comment" if match["string"] is None else "string"
        return re.sub(r"[^\n]", " ", match[0]) if kind in kinds else match[0]

    return TOKENS.sub(spaces, text)


class Source:
    """A Rust file: `code` has neither comments nor strings, `words` no comments."""

    def __init__(self, text):
        self.text = text
        self.words = blank(text, {"comment"})
        self.code = blank(text, {"comment", "string"})
        self._starts = [0] + [m.end() for m in re.finditer("\n", text)]

    def line(self, at):
        """The number, from 1, of the line that the character `at` is on."""
        return bisect_right(self._starts, at)

    def end_of_block(self, at):
        """The place of the `}` that closes the `{` at `at`."""
        depth = 0
        for match in re.compile("[{}]").finditer(self.code, at):
            depth += 1 if match[0] == "{" else -1
            if depth == 0:
                return match.start()
        return len(self.code) - 1

    def end_of_item(self, at):
        """The place of the `;` or `}` that ends the item at `at`, and of its `{` if it has a body."""
        depth = 0
        for match in re.compile(r"[()\[\]{};]").finditer(self.code, at):
            if match[0] in "([":
                depth += 1
            elif match[0] in ")]":
                depth -= 1
            elif depth == 0 and match[0] == ";":
                return match.start(), None
            elif depth == 0 and match[0] == "{":
                return self.end_of_block(match.start()), match.start()
        return len(self.code) - 1, None

    @cached_property
    def tests(self):
        """Pairs of first and last line of what is compiled for tests only."""
        found = []
        for match in CFG_TEST.finditer(self.code):
            if match[0].startswith("#!"):
                return [(1, len(self._starts))]
            bracket = self.code.index("[", match.start())
            depth, end = 0, bracket
            for end in range(bracket, len(self.code)):
                depth += {"[": 1, "]": -1}.get(self.code[end], 0)
                if depth == 0:
                    break
            found.append((self.line(match.start()), self.line(self.end_of_item(end + 1)[0])))
        return found

    def is_test(self, line):
        return any(first <= line <= last for first, last in self.tests)

    @cached_property
    def functions(self):
        """Name, first line and number of lines of every function with a body."""
        found = []
        for match in re.finditer(r"\bfn\s+(\w+)", self.code):
            end, body = self.end_of_item(match.end())
            if body is not None:
                first = self.line(match.start())
                found.append((match[1], first, self.line(end) - first + 1))
        return found

    @cached_property
    def declared(self):
        """Name, line and file (if one is named) of every `mod name;`."""
        found = []
        for match in DECLARED.finditer(self.words):
            at = match.start(2)
            if self.code[at : at + len(match[2])] == match[2]:
                found.append((match[2], self.line(at), match[1]))
        return found
