"""Which loops the kernels consist of, and how often a tile of weights runs each.

A tile is 16 lines of a strip: 1 KiB in the form that is multiplied. Symbols are patterns for the end of a function's name.
"""

from dataclasses import dataclass, field
from fractions import Fraction


@dataclass(frozen=True)
class Loop:
    """`per_unit`: how often a unit of work runs these instructions (see loops.find)."""

    name: str
    symbol: str
    per_unit: dict
    absent: tuple = ()
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
    """`phases(m)`: what m rows need for a tile, as lists of (loop, units); a phase begins when the one before has ended."""

    name: str
    isa: str
    format: str
    rows: range
    phases: object = field(compare=False)


LINES = 16
# Block offsets: 8 bytes for every 512 k of a strip.
OFFSETS_BF16 = 8 / (512 / 32)
FORMATS = {
    f.name: f
    for f in (
        Format("dense bf16", 512, 0, 2, True),
        Format("sparse bf16", 512, LINES * 4 + OFFSETS_BF16, 2, False),
    )
}


def _avx512_bf16(source, name, expand):
    return [
        Loop(f"avx512 bf16 {name} {r}", rf"avx512::rows_bf16::<.*{source}, {r}>", {"vdpbf16ps": r, **expand}, () if expand else ("vpexpandw",))
        for r in (1, 4, 8)
    ]


def _amx_step(name, symbol, dot):
    """A step is 32 or 64 k of two strips: two tiles of weights (6 and 7), and one of activations (4, 5) for each 16 rows."""
    one = Loop(f"amx {name} step 16", symbol, {dot: 2, "tileloadd": 3}, absent=("tileloadd .*%tmm5",))
    two = Loop(f"amx {name} step 32", symbol, {dot: 4, "tileloadd": 4})
    return [one, two]


LOOPS = [
    *_avx512_bf16("DenseLines", "dense", {}),
    *_avx512_bf16("SparseLines", "sparse", {"vpexpandw": 1}),
    Loop("avx512 bf16 expand", r"avx512::expand", {"vpexpandw": 1}),
    Loop("avx512 bf16 expand, no store", r"avx512::expand", {"vpexpandw": 1}, without=r"vmov.*%zmm\d+, .*\("),
    *_amx_step("dense bf16", r"amx::multiply", "tdpbf16ps"),
    *_amx_step("sparse bf16", r"amx::sparse_32x32", "tdpbf16ps"),
    # 4 masks a unit; one loop for each of the two strips.
    Loop("amx bf16 count of values", r"amx::sparse_32x32", {"psadbw": 2}, copies=2),
]


def _direct(name):
    """AVX-512 from registers, up to 8 rows a pass over the weights."""

    def phases(m):
        passes = [8] * (m // 8) + ([m % 8] if m % 8 else [])
        return [[(f"{name} {rows}", LINES)] for rows in passes]

    return phases


def _panel(expand, name):
    return lambda m: [[(expand, LINES)], *_direct(name)(m)]


def _amx(name, *expand):
    """Expansion into the L1 cache, if any, then steps of two tiles of weights."""

    def phases(m):
        return [[(loop, units)] for loop, units in expand] + [[(f"amx {name} step {16 if m <= 16 else 32}", Fraction(1, 2))]]

    return phases


EVERY = range(1, 33)
KERNELS = [
    Kernel("linear_bf16_bf16_f32_8x16_avx512bf16", "avx512", "dense bf16", EVERY, _direct("avx512 bf16 dense")),
    Kernel("linear_bf16_bmbf16_f32_8x16_avx512bf16", "avx512", "sparse bf16", range(1, 17), _direct("avx512 bf16 sparse")),
    Kernel("linear_bf16_bmbf16_f32_8x16_panel_avx512bf16", "avx512", "sparse bf16", range(17, 33), _panel("avx512 bf16 expand", "avx512 bf16 dense")),
    Kernel("linear_bf16_bf16_f32_32x32_amx", "amx", "dense bf16", EVERY, _amx("dense bf16")),
    Kernel(
        "linear_bf16_bmbf16_f32_32x32_amx",
        "amx",
        "sparse bf16",
        EVERY,
        _amx("sparse bf16", ("avx512 bf16 expand", LINES), ("amx bf16 count of values", LINES // 4)),
    ),
]
# Rows from which a CPU with AMX uses it (catalog.rs, AMX_MANY).
AMX_FROM = 5
