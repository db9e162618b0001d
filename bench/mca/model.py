"""From costs of loops to the time of a tile, and the section of docs/performance.md that says it."""

import cost
from cost import Cost
from kernels import FORMATS, LINES, CatalogError

BANDWIDTH_GB_S = 300
CORES = 32
GHZ = 3
BYTES_A_CYCLE = BANDWIDTH_GB_S / CORES / GHZ
BATCHES = (1, 4, 8, 16, 32)
SPARSITIES = (0, 0.5, 0.7, 0.8)
PAPER = 1.42


def tile_bytes(fmt, sparsity):
    return fmt.side_bytes + fmt.elems * (1 if fmt.dense else 1 - sparsity) * fmt.value_bytes


def memory_cycles(fmt, sparsity):
    return tile_bytes(fmt, sparsity) / BYTES_A_CYCLE


class Catalog:
    """Which kernel a level takes."""

    def __init__(self, kernels):
        self.kernels = kernels
        self.amx_from = min(k.rows.start for k in kernels if k.isa == "amx")

    def of(self, fmt, isa, m):
        """With fewer rows than a level is chosen for, as if it began with them."""
        kernels = [k for k in self.kernels if k.format == fmt and k.isa == isa]
        first = min((k.rows.start for k in kernels), default=m)
        found = [k for k in kernels if max(m, first) in k.rows]
        if len(found) != 1:
            raise CatalogError(f"{len(found)} kernels for {fmt} on {isa} with {m} rows, expected 1: kernels.py")
        return found[0]

    def selected(self, fmt, m):
        """On a CPU that has AMX."""
        return self.of(fmt, "amx" if m >= self.amx_from else "avx512", m)


def work_cycles(kernel, costs, m):
    """Cycles of a tile: phases one after the other, and if they could overlap entirely (the busiest resource)."""
    phases = [[costs[loop].times(float(units)) for loop, units in phase] for phase in kernel.phases(m)]
    apart = sum(Cost.beside(phase).total if len(phase) > 1 else phase[0].total for phase in phases)
    return apart, Cost.beside([c for phase in phases for c in phase]).total


def tile_cycles(fmt, sparsity, kernel, costs, m):
    return max(memory_cycles(fmt, sparsity), work_cycles(kernel, costs, m)[0])


def speedup(catalog, fmt, sparsity, costs, m):
    """Over the dense bf16 kernel, for equal numbers of weights."""
    dense = FORMATS["dense bf16"]
    base = tile_cycles(dense, 0, catalog.selected("dense bf16", m), costs, m) / dense.elems
    return base / (tile_cycles(fmt, sparsity, catalog.selected(fmt.name, m), costs, m) / fmt.elems)


def variants():
    """Formats with the sparsities that make a difference to them."""
    return [(fmt, s) for fmt in FORMATS.values() for s in ([0] if fmt.dense else SPARSITIES)]


def label(fmt, sparsity):
    return fmt.name if fmt.dense else f"{fmt.name}, {sparsity:.0%}".replace("%", " %")


def hidden(catalog, costs):
    """Whether expansion hides behind memory at M = 1: (format, sparsity, isa, work, memory) of the cases that the project promises."""
    promised = [FORMATS[name] for name in ("sparse bf16", "sparse int8")]
    return [
        (fmt.name, 0.5, isa, work_cycles(catalog.of(fmt.name, isa, 1), costs, 1)[0], memory_cycles(fmt, 0.5))
        for fmt in promised
        for isa in ("avx512", "amx")
    ]


def _table(head, rows):
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def _hiding_table(catalog, costs):
    rows = []
    for fmt, sparsity in variants():
        memory = memory_cycles(fmt, sparsity)
        cells = []
        for isa in ("avx512", "amx"):
            apart, together = work_cycles(catalog.of(fmt.name, isa, 1), costs, 1)
            cells += [f"{apart:.0f} ({together:.0f})", "yes" if apart <= memory else "no"]
        rows.append([label(fmt, sparsity), f"{tile_bytes(fmt, sparsity):.0f}", f"{memory:.0f}", *cells])
    return _table(["weights", "bytes", "memory", "AVX-512", "hidden", "AMX", "hidden"], rows)


def _speedup_table(catalog, costs):
    rows = [
        [label(fmt, s), *(f"{speedup(catalog, fmt, s, costs, m):.2f}" for m in BATCHES)] for fmt, s in variants() if fmt.name != "dense bf16"
    ]
    rows.append(["the paper, bf16, 50 %, end to end, measured", f"{PAPER:.2f}", *[""] * (len(BATCHES) - 1)])
    return _table(["weights", *(f"M = {m}" for m in BATCHES)], rows)


def _work_table(catalog, costs):
    rows = []
    for name in FORMATS:
        cells = []
        for m in BATCHES:
            kernel = catalog.selected(name, m)
            cells.append(f"{work_cycles(kernel, costs, m)[0]:.0f} {'AMX' if kernel.isa == 'amx' else 'AVX-512'}")
        rows.append([name, *cells])
    return _table(["weights", *(f"M = {m}" for m in BATCHES)], rows)


def direct_moves(costs, fmt, expand, port):
    """Cycles of a tile for M = 16 if expanded lines went from a register straight to a row of a tile, 16 moves at one a cycle.

    Nothing is stored and the weight tile is not loaded; nothing has to wait, so phases overlap: the busiest resource decides.
    """
    moves = Cost(0, {"5": LINES} if port == "5" else {}, LINES, 0, 0, LINES / cost.TDP_CYCLES if port == "TMUL" else 0, 0, 0)
    step = costs[f"amx {fmt} step 16"].times(1 / 2)
    step.tile_loads -= 1
    lines = costs[f"{expand}, no store"].times(LINES)
    together = Cost.beside([lines, moves, step]).total
    # The pointer to the values still goes from line to line.
    return max(together, lines.cycles)


DIRECT = [("sparse bf16", "expand bf16"), ("sparse int8", "expand int8"), ("sparse int4", "expand int4")]


def _direct_table(catalog, costs):
    rows = []
    for name, expand in DIRECT:
        fmt, m = FORMATS[name], 16
        apart, together = work_cycles(catalog.of(name, "amx", m), costs, m)
        now_bytes = tile_bytes(fmt, 0.5)
        moved = [direct_moves(costs, name, expand, port) for port in ("5", "TMUL")]
        for what, cycles in (
            ("as it is, phases one after the other", apart),
            ("as it is, if phases overlapped entirely", together),
            ("direct moves by port 5", moved[0]),
            ("direct moves by the AMX unit", moved[1]),
        ):
            rows.append([name, what, f"{cycles:.0f}", f"{1 - cycles / apart:.0%}".replace("%", " %"), f"{now_bytes / cycles:.1f}"])
    return _table(["weights", "loop", "cycles a tile", "saved", "packed bytes a cycle, 50 %"], rows)


def section(catalog, costs):
    """The text between the markers in docs/performance.md."""
    memory_bytes = f"{BYTES_A_CYCLE:.3f}".rstrip("0")
    return f"""\
**A model, not a measurement.** [AMX](#amx) has measured figures. `bench/mca/check` computes every figure of this section from the
compiled loops, and fails when a loop gets slower. `bench/mca/check --update` writes the section.

The loops of the kernels, as rustc compiles them, are timed by llvm-mca 19 for Sapphire Rapids. **LLVM does not model AMX**: its tile
instructions carry placeholder latencies of 100 cycles and no load. They are taken out of the loops and added by Intel's figures
(Optimization Reference Manual, chapter on Intel AMX, table of throughput and latency): {cost.TDP_CYCLES} cycles of the multiplier a `tdp*`,
8 cycles of both 64-byte load ports a `tileloadd` ({cost.TILE_ROWS} rows), {cost.TILE_ROWS} cycles of the store port a `tilestored`. Within a
phase (expand; load and multiply) the busiest port or the simulation decides, whichever is longer; phases are added up, since the
reorder buffer is shorter than a phase. In brackets: the busiest port if phases overlapped entirely.

A tile is {LINES} lines, 1 KiB in the form that is multiplied. Data come from memory at {BANDWIDTH_GB_S} GB/s for {CORES} cores at {GHZ} GHz, {memory_bytes} bytes
a cycle and core, and are taken to be in the L1 cache when a loop reads them: a tile takes the longer of its memory time and its
work. What surrounds the loops (sums written out, activations rounded, attention, sampling) is left out.

### One row of activations: is expansion hidden behind memory?

Cycles a tile. A CPU with AMX still takes the AVX-512 kernel below {catalog.amx_from} rows.

{_hiding_table(catalog, costs)}

### Cycles of work a tile, by batch

Of the kernel that a CPU with AMX takes; expansion does not depend on the sparsity.

{_work_table(catalog, costs)}

### Expected speed-up over dense bf16, by batch

Of the linear layers, for equal numbers of weights.

{_speedup_table(catalog, costs)}

### What a move from a vector register to a row of a tile would save

The paper's first open question. Today an expanded line goes through the L1 cache: {LINES} stores, then a `tileloadd` of 8 cycles that has to
wait until they have left the store buffer, so that expansion and multiplication take turns. With a direct move ({LINES} moves, one a
cycle, by port 5, which also expands, or by the AMX unit) nothing is stored or loaded again and all overlap. No CPU has such an
instruction: `tilemovrow` of AMX-AVX512 goes the other way. Up to 16 rows:

{_direct_table(catalog, costs)}

{_direct_words(catalog, costs)}"""


def _direct_words(catalog, costs):
    fmt = FORMATS["sparse bf16"]
    apart = work_cycles(catalog.of(fmt.name, "amx", 16), costs, 16)[0]
    best = min(direct_moves(costs, "sparse bf16", "expand bf16", port) for port in ("5", "TMUL"))
    memory = memory_cycles(fmt, 0.5)
    need = [tile_bytes(fmt, 0.5) / cycles * CORES * GHZ for cycles in (apart, best)]
    there = f"at {BANDWIDTH_GB_S} GB/s"
    if apart <= memory:
        verdict = f"gains nothing from it {there}: {apart:.0f} cycles already hide behind {memory:.0f} of memory"
    else:
        verdict = f"would take {max(best, memory):.0f} cycles a tile and not {apart:.0f} {there} ({memory:.0f} of memory)"
    return f"""\
Sparse bf16 at 50 % {verdict}. As it is, the loop keeps up with
memory of {need[0]:.0f} GB/s for {CORES} cores, with direct moves it would with {need[1]:.0f} GB/s: the difference shows with faster memory, with
sparser weights and with weights that lie in a cache."""
