"""Checks what the compiler does not: python3 tools/tidy [ROOT]

Widths of lines, sizes of functions and files, names and links in the documents, circles between files, the order of the crates.
Prints a line `file:line: what to do` for each fault and exits with 1 if there is any.
"""

import sys
from collections import Counter
from pathlib import Path

from imports import between_crates, between_files
from names import links, names
from sizes import sizes, widths
from tree import Tree

CHECKS = [widths, sizes, between_files, between_crates, links, names]


def main():
    tree = Tree(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).resolve().parents[2])
    counts = Counter()
    for check in CHECKS:
        for fault in sorted(set(check(tree))):
            print(fault)
            counts[check.__name__] += 1
    if counts:
        print("tidy: " + ", ".join(f"{n} of {name}" for name, n in counts.items()))
    else:
        print(f"tidy: {len(tree.files)} files are in order")
    return 1 if counts else 0


if __name__ == "__main__":
    sys.exit(main())
