"""Tests of loops.py, cost.py and model.py that need neither a compiler nor llvm-mca."""

import sys
import unittest

sys.dont_write_bytecode = True

import kernels
import loops
import model
from cost import Cost

TEXT = """
\t.type\tkernel,@function
kernel:
\ttestq\t%rax, %rax
\tje\t.LBB0_9
.LBB0_1:
\tvpexpandw\t%zmm0, %zmm1 {%k1} {z}
\tdecq\t%rax
\tcmpq\t%rbx, %rax
\tja\t.LBB0_8
\tvpexpandw\t%zmm0, %zmm2 {%k1} {z}
\tjne\t.LBB0_1
\ttestb\t%cl, %cl
\tje\t.LBB0_9
.LBB0_2:
\tvpexpandw\t%zmm0, %zmm1 {%k1} {z}
\tdecq\t%rcx
\tjne\t.LBB0_2
.LBB0_3:
\t#APP
\ttdpbf16ps\t%tmm6, %tmm4, %tmm0
\t#NO_APP
\ttestb\t%dl, %dl
\tje\t.LBB0_4
\ttdpbf16ps\t%tmm6, %tmm5, %tmm2
.LBB0_4:
\tcallq\thelper
.LBB0_5:
\tincq\t%rsi
\tcmpq\t%rsi, %rdi
\tjne\t.LBB0_5
\tdecq\t%r8
\tjne\t.LBB0_3
.LBB0_9:
\tretq
.LBB0_8:
\tcallq\t*core::panicking::panic@GOTPCREL(%rip)
.Lfunc_end0:
\t.type\thelper,@function
helper:
\ttestq\t%rax, %rax
\tje\t.LBB1_1
\timulq\t%rax, %rax
\timulq\t%rax, %rax
.LBB1_1:
\tnegq\t%rax
\tretq
.Lfunc_end1:
"""


def cost(**values):
    zero = dict(cycles=0, ports={}, uops=0, wide_loads=0, wide_stores=0, tdp=0, tile_loads=0, tile_stores=0)
    return Cost(**{**zero, **values})


class Loops(unittest.TestCase):
    def setUp(self):
        self.functions = loops.parse(TEXT, lambda names: names)

    def test_the_unrolled_loop_is_meant_and_not_its_rest(self):
        turn = loops.find(self.functions, "kernel", {"vpexpandw": 1})
        self.assertEqual(turn.units, 2)
        self.assertEqual(len(turn.instructions), 6)

    def test_the_way_has_the_counts_asked_for_and_the_call_but_no_inner_loop(self):
        short = loops.find(self.functions, "kernel", {"tdpbf16ps": 1})
        # The pattern fits 1 and 2 multiplications: as 2 units of the first.
        self.assertEqual((short.units, len(short.instructions)), (2, 9))
        one = loops.find(self.functions, "kernel", {"tdpbf16ps .*%tmm0": 1}, absent=("tdpbf16ps .*%tmm2",))
        self.assertEqual(one.units, 1)
        self.assertIn("negq %rax", one.instructions)
        self.assertNotIn("imulq %rax, %rax", one.instructions)
        self.assertNotIn("incq %rsi", one.instructions)
        self.assertFalse([i for i in one.instructions if i.startswith(("call", "ret"))])

    def test_what_is_not_there_is_an_error(self):
        for symbol, per_unit, copies in [
            ("kernel", {"vpdpbusd": 1}, 1),
            ("kernel", {"vpexpandw": 1, "decq": 1}, 2),
            ("missing", {"vpexpandw": 1}, 1),
            ("kernel|helper", {"vpexpandw": 1}, 1),
        ]:
            with self.assertRaises(loops.LoopError, msg=(symbol, per_unit)):
                loops.find(self.functions, symbol, per_unit, copies=copies)

    def test_a_loop_with_what_is_to_be_avoided_is_another_one(self):
        self.assertEqual(loops.find(self.functions, "kernel", {"vpexpandw": 1}, avoid="incq").units, 2)
        with self.assertRaises(loops.LoopError):
            loops.find(self.functions, "kernel", {"tdpbf16ps": 1}, avoid="incq")

    def test_a_call_out_of_the_crate_is_an_error(self):
        functions = loops.parse(TEXT.replace("callq\thelper", "callq\telsewhere"), lambda names: names)
        with self.assertRaises(loops.LoopError):
            loops.find(functions, "kernel", {"tdpbf16ps": 1})


class Costs(unittest.TestCase):
    def test_the_busiest_resource_decides(self):
        self.assertEqual(cost(cycles=9, tdp=1).total, 16)
        self.assertEqual(cost(cycles=20, tdp=1).total, 20)
        self.assertEqual(cost(tile_loads=3).total, 24)
        self.assertEqual(cost(tile_loads=1, wide_loads=4).total, 10)
        self.assertEqual(cost(wide_stores=5).total, 5)
        self.assertEqual(cost(ports={"2": 10}, tile_loads=1).total, 18)

    def test_beside_adds_resources_and_times_scales_them(self):
        both = Cost.beside([cost(ports={"5": 3}, cycles=7), cost(ports={"5": 4, "0": 1}, tdp=0.25)])
        self.assertEqual((both.ports, both.total), ({"5": 7, "0": 1}, 7))
        self.assertEqual(both.times(16).total, 112)


def inspected(best_m):
    """As `sparamx inspect --kernels --json` writes it, with these ranges."""
    rows = []
    for name in kernels.PHASES:
        weight = name.split("_")[2]
        form = "sparse" if weight.startswith("bm") else "dense"
        elements = weight.removeprefix("bm").replace("i", "int")
        isa = "amx" if name.endswith("amx") else "avx512"
        rows.append({"name": name, "isa": isa, "weight": f"{form} {elements}", "best_m": best_m(name)})
    return {"kernels": rows}


class Catalog(unittest.TestCase):
    def test_ranges_are_those_of_the_program(self):
        def best_m(name):
            return "5-32" if "amx" in name else "9+" if "panel" in name else "1-8" if "_bm" in name else "1+"

        catalog = model.Catalog(kernels.catalog(inspected(best_m)))
        self.assertEqual(catalog.amx_from, 5)
        for m, name in [(1, "8x16_avx512vnni"), (8, "8x16_avx512vnni"), (9, "8x16_panel_avx512vnni")]:
            self.assertEqual(catalog.of("sparse int8", "avx512", m).name, f"linear_i8_bmi8_i32_{name}")
        # Below what AMX is chosen for, as if it began there.
        self.assertEqual(catalog.of("sparse int8", "amx", 1).name, "linear_i8_bmi8_i32_32x32_amx")
        self.assertEqual(catalog.selected("dense bf16", 4).isa, "avx512")

    def test_a_kernel_that_is_gone_and_ranges_that_overlap_are_errors(self):
        with self.assertRaises(kernels.CatalogError):
            kernels.catalog({"kernels": inspected(lambda _: "1+")["kernels"][1:]})
        with self.assertRaises(kernels.CatalogError):
            model.Catalog(kernels.catalog(inspected(lambda _: "1+"))).of("sparse bf16", "avx512", 1)


if __name__ == "__main__":
    unittest.main()
