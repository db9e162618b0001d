"""python3 tools/tidy/test_tidy.py: each check finds its fault in a small tree, and nothing in the tree without it."""

import tempfile
import unittest
from pathlib import Path

import imports
import names
import sizes
from rust import Source
from tree import Tree


def tree(**files):
    """A tree of files, whose names have `__` for `/` and end in what follows the last `_`."""
    root = Path(tempfile.mkdtemp())
    paths = []
    for name, text in files.items():
        stem, _, suffix = name.replace("__", "/").rpartition("_")
        path = root / f"{stem}.{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        paths.append(str(path.relative_to(root)))
    return Tree(root, paths)


def found(check, **files):
    return [str(fault) for fault in check(tree(**files))]


class Rust(unittest.TestCase):
    def test_comments_strings_and_lifetimes(self):
        source = Source("fn a<'b>(x: &'b str) { let c = \"}{\"; /* } */ let d = '}'; r#\"}\"# }\nfn e() {\n}\n")
        self.assertEqual(source.functions, [("a", 1, 1), ("e", 2, 2)])

    def test_items_of_tests(self):
        source = Source("fn a() {}\n#[cfg(test)]\nmod tests {\n    fn b() {}\n}\nfn c() {}\n")
        self.assertEqual([source.is_test(line) for line in range(1, 7)], [False, True, True, True, True, False])


class Sizes(unittest.TestCase):
    def test_width(self):
        self.assertEqual(found(sizes.widths, a_rs="// " + "a " * 68 + "\n"), [])
        self.assertIn("a.rs:1: 143 characters", found(sizes.widths, a_rs="// " + "a " * 70 + "\n")[0])
        self.assertEqual(found(sizes.widths, a_md="| " + "a " * 80 + "|\n"), [])

    def test_functions(self):
        long = "fn a() {\n" + "    b();\n" * 59 + "}\n"
        self.assertIn("a.rs:1: `a` has 61 lines", found(sizes.sizes, a_rs=long)[0])
        self.assertEqual(found(sizes.sizes, crates__kernels__src__a_rs=long), [])
        self.assertEqual(found(sizes.sizes, crates__model__tests__a_rs=long), [])
        self.assertEqual(found(sizes.sizes, a_rs="#[cfg(test)]\nmod tests {\n" + long + "}\n"), [])
        self.assertIn("a.py:1: `a` has 61 lines", found(sizes.sizes, a_py="def a():\n" + "    b()\n" * 60)[0])

    def test_files(self):
        self.assertIn("a.rs:1: 601 lines", found(sizes.sizes, a_rs="// a\n" * 601)[0])
        tests = "#[cfg(test)]\nmod tests {\n" + "// a\n" * 600 + "}\n"
        self.assertEqual(found(sizes.sizes, a_rs=tests), [])


class Imports(unittest.TestCase):
    def files(self, a, b, **more):
        root = "mod a;\nmod b;\nmod c;\n"
        return {"crates__cpu__Cargo_toml": "", "crates__cpu__src__lib_rs": root} | {
            f"crates__cpu__src__{name}_rs": text for name, text in {"a": a, "b": b, **more}.items()
        }

    def test_circle(self):
        faults = found(imports.between_files, **self.files("use crate::b::B;\npub struct A;\n", "pub struct B(crate::a::A);\n"))
        self.assertEqual(len(faults), 1)
        self.assertRegex(
            faults[0], r"crates/cpu/src/(a.rs:1: uses crates/cpu/src/b|b.rs:1: uses crates/cpu/src/a).rs, which uses it"
        )

    def test_names_are_followed_through_exports(self):
        faults = found(imports.between_files, **self.files("pub use crate::b::B;\npub struct A;\n", "pub struct B(crate::a::A);\n"))
        self.assertEqual(faults, [])
        middle = self.files("use crate::c::B;\npub struct A;\n", "use super::a::A;\npub struct B;\n", c="pub use crate::b::*;\n")
        self.assertEqual(len(found(imports.between_files, **middle)), 1)

    def test_a_module_and_its_children_are_one(self):
        files = self.files("mod d;\nfn a() { d::d() }\npub struct A;\n", "", a__d="pub fn d(_: super::A) {}\n")
        self.assertEqual(found(imports.between_files, **files), [])

    def test_tests_may_use_anything(self):
        files = self.files("use crate::b::B;\npub struct A;\n", "pub struct B;\n#[cfg(test)]\nuse crate::a::A;\n")
        self.assertEqual(found(imports.between_files, **files), [])

    def test_crates(self):
        upwards = "[dependencies]\nsparamx-model.workspace = true\n"
        self.assertIn(
            "Cargo.toml:2: `format` may not use `model`", found(imports.between_crates, crates__format__Cargo_toml=upwards)[0]
        )
        self.assertEqual(found(imports.between_crates, crates__engine__Cargo_toml=upwards), [])

    def test_use_trees(self):
        leaves = imports.used("a::{self, b::{c, d as e}, f::*, g}")
        self.assertEqual([name for _, name in leaves], ["a", "c", "e", "*", "g"])
        self.assertEqual(leaves[2], (["a", "b", "d"], "e"))


class Names(unittest.TestCase):
    def names(self, text):
        return found(names.names, a_md=text, crates__cli__src__a_rs="struct Run {\n    kv_sparsity: f32,\n}\nenum Kind { One }\n")

    def test_names(self):
        self.assertEqual(
            self.names("`Kind::One` in `cli/src/a.rs` with `--kv-sparsity` or `cargo run --no-such -- --kv-sparsity`\n"), []
        )
        for gone in ("Kind::Two", "cli/src/b.rs", "--kv-density", "kv_density"):
            self.assertIn("a.md:1: `", self.names(f"`{gone}`\n")[0])

    def test_links(self):
        files = {"docs__a_md": "[b](b.md#one-two)\n", "docs__b_md": "# One, two\n"}
        self.assertEqual(found(names.links, **files), [])
        self.assertIn("docs/a.md:1: links to c.md", found(names.links, **files | {"docs__a_md": "[c](c.md)\n"})[0])
        self.assertIn("no heading", found(names.links, **files | {"docs__a_md": "[b](b.md#three)\n"})[0])


if __name__ == "__main__":
    unittest.main()
