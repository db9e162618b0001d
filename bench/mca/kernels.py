"""Which loops the kernels consist of, and how often a tile of weights runs each.

A tile is 16 lines of a strip: 1 KiB in the form that is multiplied. Symbols are patterns for the end of a function's name.
"""

import sys
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Loop:
    """`per_unit`: how often a unit of work runs these instructions (see loops.find)."""

    name: str
    symbol: str
    per_unit: dict
    absent: tuple = ()
    avoid: str = None
    copies: int = 1
    # Taken out before the simulation: for the question what a loop would cost without them.
    without: str = ""


@dataclass(frozen=True)
class Format:
    name: str
    # Elements of a tile.
    elems: int
    # Bytes of a tile beside its values: masks, block offsets, group scales.
    side_bytes: float
    value_bytes: float
    dense: bool


@dataclass(frozen=True)
class Kernel:
    """A row of the catalog. `phases(m)`: what m rows need for a tile, as lists of (loop, units); a phase begins when the one
    before has ended. It is the best of its level for `rows`."""

    name: str
    isa: str
    format: str
    rows: range
    phases: object = field(compare=False)


LINES = 16
# Block offsets: 8 bytes for every 512 k of a strip. Scales: 16 of 2 bytes for a group of 128 k, which is two tiles of int4.
# One scale an output, as int8 has, is not worth counting.
OFFSETS_BF16 = 8 / (512 / 32)
OFFSETS_INT = 8 / (512 / 64)
GROUP_TILES = 2
SCALES_INT4 = 16 * 2 / GROUP_TILES
FORMATS = {
    f.name: f
    for f in (
        Format("dense bf16", 512, 0, 2, True),
        Format("sparse bf16", 512, LINES * 4 + OFFSETS_BF16, 2, False),
        Format("dense int8", 1024, 0, 1, True),
        Format("sparse int8", 1024, LINES * 8 + OFFSETS_INT, 1, False),
        Format("dense int4", 1024, SCALES_INT4, 0.5, True),
        Format("sparse int4", 1024, LINES * 8 + OFFSETS_INT + SCALES_INT4, 0.5, False),
    )
}

STORE = r"vmov\w+ %zmm\d+, .*\("
ROWS = (1, 4, 8)


def _avx512_bf16(form, source, expand):
    return [
        Loop(
            f"avx512 {form} {r}",
            rf"avx512::bf16::rows_bf16::<.*{source}, {r}>",
            {"vdpbf16ps": r, **expand},
            () if expand else ("vpexpandw",),
        )
        for r in ROWS
    ]


def _avx512_int(form, source, expand):
    return [
        Loop(f"avx512 {form} {r}", rf"avx512::int::rows::<.*{source}, {r}>", {"vpdpbusd": r, **expand}, () if expand else ("vpexpandb",))
        for r in ROWS
    ]


def _avx512_groups(form, source):
    """The end of a group of scales, and the begin of the next."""
    return [
        Loop(f"avx512 {form} group {r}", rf"avx512::int::rows::<.*{source}, {r}>", {"vcvtdq2ps": r}, absent=("vpdpbusd",)) for r in ROWS
    ]


def _expand(name, symbol):
    """The loop that expands lines, and what would be left of it if nothing had to be stored."""
    return [Loop(name, symbol, {STORE: 1}), Loop(f"{name}, no store", symbol, {STORE: 1}, without=STORE)]


def _amx_step(form, symbol, dot, **which):
    """A step is 32 or 64 k of two strips: two tiles of weights (6 and 7), and one of activations (4, 5) for each 16 rows."""
    return [
        Loop(f"amx {form} step 16", symbol, {dot: 2, "tileloadd": 3}, absent=("tileloadd .*%tmm5",), **which),
        Loop(f"amx {form} step 32", symbol, {dot: 4, "tileloadd": 4}, **which),
    ]


def _amx_groups(form, symbol):
    """The end of a group of scales: sums of two strips stored, scaled and added up in f32, tiles set to zero."""
    return [
        Loop(f"amx {form} group 16", symbol, {"tilezero": 4, "tilestored": 2}, absent=("tilestored %tmm2",)),
        Loop(f"amx {form} group 32", symbol, {"tilezero": 4, "tilestored": 4}),
    ]


LOOPS = [
    *_avx512_bf16("dense bf16", "DenseLines", {}),
    *_avx512_bf16("sparse bf16", "SparseLines", {"vpexpandw": 1}),
    *_avx512_int("dense int8", "DenseI8<128>", {}),
    *_avx512_int("sparse int8", "SparseI8<128>", {"vpexpandb": 1}),
    *_avx512_int("panel int8", "Bytes<128>", {}),
    *_avx512_int("dense int4", "DenseI4<8>", {}),
    *_avx512_groups("dense int4", "DenseI4<8>"),
    *_avx512_int("sparse int4", "SparseI4<8>", {"vpexpandb": 1}),
    *_avx512_groups("sparse int4", "SparseI4<8>"),
    *_avx512_int("panel int4", "Bytes<8>", {}),
    *_avx512_groups("panel int4", "Bytes<8>"),
    *_expand("expand bf16", "avx512::bf16::expand_lines"),
    *_expand("expand int8", "avx512::int::expand::<.*SparseI8<0>>"),
    *_expand("expand int4", "avx512::int::expand::<.*SparseI4<0>>"),
    Loop("expand int8, unsigned", "avx512::int::expand::<.*SparseI8<128>>", {STORE: 1}),
    Loop("expand int4, unsigned", "avx512::int::expand::<.*SparseI4<8>>", {STORE: 1}),
    Loop("unpack dense int4", "avx512::int::expand::<.*DenseI4<0>>", {STORE: 1}),
    *_amx_step("dense bf16", "amx::bf16::multiply", "tdpbf16ps"),
    *_amx_step("sparse bf16", "amx::bf16::sparse_32x32", "tdpbf16ps"),
    # Dense int8 with short groups is expanded, too, by loops of its own.
    *_amx_step("dense int8", "amx::int::dense::<.*dense_i8_32x32.*>", "tdpbssd", avoid="callq .*expand"),
    *_amx_step("sparse int8", "amx::int::by_batches::<.*SparseI8<0>>::new>", "tdpbssd"),
    *_amx_step("dense int4", "amx::int::by_batches::<.*DenseI4<0>>::new>", "tdpbssd"),
    *_amx_groups("dense int4", "amx::int::by_batches::<.*DenseI4<0>>::new>"),
    *_amx_step("sparse int4", "amx::int::by_batches::<.*SparseI4<0>>::new>", "tdpbssd"),
    *_amx_groups("sparse int4", "amx::int::by_batches::<.*SparseI4<0>>::new>"),
]


def _direct(form, groups=False):
    """AVX-512 from registers, up to 8 rows a pass over the weights."""

    def phases(m):
        passes = [8] * (m // 8) + ([m % 8] if m % 8 else [])
        ends = [[(f"avx512 {form} group {rows}", 1 / GROUP_TILES)] for rows in passes if groups]
        return [[(f"avx512 {form} {rows}", LINES)] for rows in passes] + ends

    return phases


def _panel(expand, form, groups=False):
    return lambda m: [[(expand, LINES)], *_direct(form, groups)(m)]


def _amx(form, *expand, groups=False):
    """Expansion into the L1 cache, if any, then steps of two tiles of weights; groups end for two strips at a time."""

    def phases(m):
        rows = 16 if m <= 16 else 32
        ends = [[(f"amx {form} group {rows}", 1 / GROUP_TILES / 2)]] if groups else []
        return [[(loop, units)] for loop, units in expand] + [[(f"amx {form} step {rows}", 1 / 2)]] + ends

    return phases


# What the kernels do that AVX-512 and AMX take for up to 32 rows.
PHASES = {
    "linear_bf16_bf16_f32_8x16_avx512bf16": _direct("dense bf16"),
    "linear_bf16_bmbf16_f32_8x16_avx512bf16": _direct("sparse bf16"),
    "linear_bf16_bmbf16_f32_8x16_panel_avx512bf16": _panel("expand bf16", "dense bf16"),
    "linear_i8_i8_i32_8x16_avx512vnni": _direct("dense int8"),
    "linear_i8_bmi8_i32_8x16_avx512vnni": _direct("sparse int8"),
    "linear_i8_bmi8_i32_8x16_panel_avx512vnni": _panel("expand int8, unsigned", "panel int8"),
    "linear_i8_i4_i32_8x16_avx512vnni": _direct("dense int4", True),
    "linear_i8_bmi4_i32_8x16_avx512vnni": _direct("sparse int4", True),
    "linear_i8_bmi4_i32_8x16_panel_avx512vnni": _panel("expand int4, unsigned", "panel int4", True),
    "linear_bf16_bf16_f32_32x32_amx": _amx("dense bf16"),
    "linear_bf16_bmbf16_f32_32x32_amx": _amx("sparse bf16", ("expand bf16", LINES)),
    "linear_i8_i8_i32_32x32_amx": _amx("dense int8"),
    "linear_i8_bmi8_i32_32x32_amx": _amx("sparse int8", ("expand int8", LINES)),
    "linear_i8_i4_i32_32x32_amx": _amx("dense int4", ("unpack dense int4", LINES), groups=True),
    "linear_i8_bmi4_i32_32x32_amx": _amx("sparse int4", ("expand int4", LINES), groups=True),
}


class CatalogError(Exception):
    """The catalog and this table do not agree."""


def _rows(best_m):
    """`1`, `3-16` or `17+`, as `inspect` writes it."""
    if best_m.endswith("+"):
        return range(int(best_m[:-1]), sys.maxsize)
    first, _, last = best_m.partition("-")
    return range(int(first), int(last or first) + 1)


def catalog(inspected):
    """The kernels of PHASES, by what `sparamx inspect --kernels --json` says of them."""
    rows = {row["name"]: row for row in inspected["kernels"]}
    unknown = sorted(PHASES.keys() - rows.keys())
    if unknown:
        raise CatalogError(f"in bench/mca/kernels.py, but not in the catalog: {', '.join(unknown)}")
    return [Kernel(name, rows[name]["isa"], rows[name]["weight"], _rows(rows[name]["best_m"]), phases) for name, phases in PHASES.items()]
