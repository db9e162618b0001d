"""What a turn of a loop costs on Sapphire Rapids: llvm-mca for all but the tile instructions, Intel's figures for those."""

import json
import re
import subprocess
from collections import Counter
from dataclasses import dataclass

from loops import mnemonic, operands

# Intel 64 and IA-32 Architectures Optimization Reference Manual, chapter on Intel AMX, table of throughput and latency: a `tdp*`
# every 16 cycles, a `tileloadd` every 8 (16 rows at two loads of 64 bytes a cycle), a `tilestored` every 16 (a row a cycle).
TDP_CYCLES = 16
TILE_ROWS = 16
# Same manual, Golden Cove: two loads of 64 bytes a cycle (three of up to 32), one store of 64 bytes. LLVM lets 64-byte loads use
# all three load ports and stores all of both pairs, so these two limits are counted here.
WIDE_LOADS_A_CYCLE = 2
WIDE_STORES_A_CYCLE = 1

TILE = re.compile(r"tdp|tileload|tilestore|tilezero")
FEW, MANY = 200, 1200


@dataclass
class Cost:
    """Of a unit of work."""

    cycles: float
    ports: dict
    uops: float
    wide_loads: float
    wide_stores: float
    tdp: float
    tile_loads: float
    tile_stores: float

    @property
    def limits(self):
        """Cycles that each resource is busy; the slowest decides."""
        rows = TILE_ROWS * self.tile_loads, TILE_ROWS * self.tile_stores
        limits = {f"port {port}": cycles for port, cycles in self.ports.items()}
        # Half of a tile's rows on each of the two ports that can load 64 bytes.
        for port in ("2", "3"):
            limits[f"port {port}"] = limits.get(f"port {port}", 0) + rows[0] / 2
        limits["64-byte loads"] = (self.wide_loads + rows[0]) / WIDE_LOADS_A_CYCLE
        limits["64-byte stores"] = (self.wide_stores + rows[1]) / WIDE_STORES_A_CYCLE
        limits["TMUL"] = TDP_CYCLES * self.tdp
        limits["dispatch"] = self.uops / 6
        return limits

    @property
    def total(self):
        """Cycles of one unit after the other: the simulation or what it does not know, whichever is longer."""
        return max(self.cycles, *self.limits.values())

    def times(self, factor):
        values = {k: v * factor for k, v in vars(self).items() if k != "ports"}
        return Cost(ports={p: c * factor for p, c in self.ports.items()}, **values)

    @staticmethod
    def beside(costs):
        """What several pieces of work need of each resource together."""
        ports = Counter()
        for cost in costs:
            ports.update(cost.ports)
        values = {k: sum(vars(cost)[k] for cost in costs) for k in vars(costs[0]) if k not in ("ports", "cycles")}
        return Cost(cycles=0, ports=dict(ports), **values)


def measure(turns, llvm_mca):
    """The cost of a unit of work of each turn, by name."""
    regions = {name: [i for i in turn.instructions if not TILE.match(mnemonic(i))] for name, turn in turns.items()}
    few, many = (_simulate(regions, llvm_mca, n) for n in (FEW, MANY))
    costs = {}
    for name, turn in turns.items():
        # The difference of two lengths leaves out how the simulation fills up and runs dry.
        cycles = (many[name][0] - few[name][0]) / (MANY - FEW)
        _, uops, ports, wide = many[name]
        tile = Counter(mnemonic(i)[:8] if mnemonic(i).startswith("tile") else "tdp" for i in turn.instructions if TILE.match(mnemonic(i)))
        whole = Cost(cycles, ports, uops, wide["load"], wide["store"], tile["tdp"], tile["tileload"], tile["tilestor"])
        costs[name] = whole.times(1 / turn.units)
    return costs


def _simulate(regions, llvm_mca, iterations):
    text = "".join(
        f"# LLVM-MCA-BEGIN {name}\n" + "".join(f"{i}\n" for i in region) + "# LLVM-MCA-END\n" for name, region in regions.items()
    )
    command = [llvm_mca, "-mtriple=x86_64-unknown-linux-gnu", "-mcpu=sapphirerapids", f"-iterations={iterations}", "-json"]
    done = subprocess.run(command, input=text, text=True, capture_output=True)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr}")
    answer = json.loads(done.stdout)
    names = [r.removeprefix("SPRPort").lstrip("0") or "0" for r in answer["TargetInfo"]["Resources"]]
    results = {}
    for region in answer["CodeRegions"]:
        pressure, count = Counter(), len(region["Instructions"])
        for use in region["ResourcePressureView"]["ResourcePressureInfo"]:
            # Behind the last instruction come the sums.
            if use["InstructionIndex"] < count:
                pressure[names[use["ResourceIndex"]]] += use["ResourceUsage"]
        info = region["InstructionInfoView"]["InstructionList"]
        kinds = (_wide(" ".join(i.split()), facts) for i, facts in zip(region["Instructions"], info))
        wide = Counter(kind for kind in kinds if kind)
        summary = region["SummaryView"]
        uops = summary["TotaluOps"] / summary["Iterations"]
        results[region["Name"]] = summary["TotalCycles"], uops, dict(pressure), wide
    return results


def _wide(instruction, facts):
    """Whether it loads or stores 64 bytes."""
    if "%zmm" not in instruction or "{1to" in instruction or mnemonic(instruction).startswith("vpbroadcast"):
        return None
    if facts["mayStore"]:
        return "store"
    return "load" if facts["mayLoad"] and "(" in operands(instruction) else None
