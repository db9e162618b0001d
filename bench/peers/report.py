"""Tables and plots of a `results.json`.

    report.py DIR
"""

import json
import math
import pathlib
import sys

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt  # noqa: E402  (the backend is chosen first)

from record import FILE  # noqa: E402

OURS = "sparamx"
NAMES = {
    OURS: "sparamx",
    "llama": "llama.cpp",
    "torch": "PyTorch",
    "openvino": "OpenVINO",
    "deepsparse": "DeepSparse",
}
PRECISIONS = ["32-bit", "16-bit", "8-bit", "4-bit"]
COLOURS = {OURS: "#d1495b", "llama": "#30638e", "torch": "#edae49", "openvino": "#66a182", "deepsparse": "#8d6a9f"}
# What reads its weights so many times faster than memory was seen to in the run has not read them from there. A bandwidth
# that is measured twice differs by less.
CACHED = 1.1
MARK = "†"
# Of the linear shape and the batches that the plot shows, the largest that were measured among these.
PLOT_SHAPES = [(14336, 4096), (4096, 4096)]


def write(folder):
    """Writes results.md, decode.svg and linear.svg beside results.json."""
    folder = pathlib.Path(folder)
    data = json.loads((folder / FILE).read_text())
    (folder / "results.md").write_text(markdown(data))
    plot_models(data, folder / "decode.svg")
    plot_linear(data, folder / "linear.svg")


def markdown(data):
    parts = [machine(data)]
    mark_cached(data)
    if data["model"]:
        parts += ["## TinyLlama-1.1B shape, random weights: tokens a second", model_table(data["model"])]
    if ratios := ratio_table(data["model"], ("test", "batch"), "tokens_per_s", max):
        parts += ["The fastest of sparamx over the fastest peer of the same precision:", ratios]
    for shape in dict.fromkeys((row["n"], row["k"]) for row in data["linear"]):
        rows = [row for row in data["linear"] if (row["n"], row["k"]) == shape]
        parts += [f"## Linear layer {shape[1]} → {shape[0]}: microseconds a call", linear_table(rows)]
        if ratios := ratio_table(rows, ("m",), "us", min):
            parts += ["The fastest peer's time over sparamx's, of the same precision:", ratios]
    if cached := [row for row in data["linear"] if row["cached"]]:
        parts += [f"## {MARK} Faster than memory", cached_list(cached)]
    if data["failed"]:
        lines = [
            f"- {NAMES[entry['peer']]} {entry['kind']}".rstrip() + f", {entry['what']}: {entry['reason']}"
            for entry in data["failed"]
        ]
        parts += ["## Failed or left out", "\n".join(lines)]
    return "\n\n".join(parts) + "\n"


def machine(data):
    cpu = data["cpu"]
    bandwidth = data["read_bandwidth_gb_s"]
    lines = [
        f"# sparamx and its peers, {data['date'][:10]}",
        "",
        f"- CPU: {cpu['name']} (family {cpu['family']}, model {cpu['model']}), {data['threads']} threads, "
        f"Linux {data['linux']}; {' '.join(cpu['flags'])}",
        f"- Instruction set: {'everything the CPU has' if data['isa'] == 'native' else data['isa'] + ' for everybody'}",
    ]
    if bandwidth["rounds"]:
        lines.append(f"- Read bandwidth in the same run: {spread(bandwidth)} GB/s")
    if data["load_average"]:
        lines.append(f"- Load average after the rounds: {min(data['load_average'])} to {max(data['load_average'])}")
    for peer, versions in data["versions"].items():
        lines.append(f"- {NAMES[peer]}: " + ", ".join(f"{name} {value}" for name, value in versions.items()))
    lines += ["", f"`{data['command']}`", ""]
    lines.append(
        "Cells are medians of the rounds (smallest – largest); a single figure is a single round. "
        "README.md in `bench/peers` says what is measured."
    )
    return "\n".join(lines)


def mark_cached(data):
    """Says in every linear row whether its weights came faster than the memory of this run ever gave anything."""
    limit = (data["read_bandwidth_gb_s"]["max"] or math.inf) * CACHED
    for row in data["linear"]:
        row["cached"] = implied_gb_s(row) > limit


def implied_gb_s(row):
    """The least bandwidth at which the weights were read; 0 if the row does not say how many bytes they have."""
    return row.get("read_bytes", 0) / row["us"]["median"] / 1e3


def cached_list(rows):
    lines = ["These weights cannot have come from memory, so the times are in no ratio:", ""]
    for row in rows:
        what = f"{NAMES[row['peer']]} {row['kind']}, {row['k']} → {row['n']}, M = {row['m']}"
        lines.append(f"- {what}: {number(implied_gb_s(row))} GB/s at least")
    return "\n".join(lines)


def spread(summary):
    if len(summary["rounds"]) == 1:
        return number(summary["median"])
    return f"{number(summary['median'])} ({number(summary['min'])} – {number(summary['max'])})"


def number(value):
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"


def table(header, rows):
    lines = ["| " + " | ".join(header) + " |", "|---|---|" + "---:|" * (len(header) - 2)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def by_kind(rows):
    """Rows of each (precision, peer, kind), in the order of the reports."""
    kinds = {}
    for row in rows:
        kinds.setdefault((row["precision"], row["peer"], row["kind"]), []).append(row)
    peers = list(NAMES)
    return sorted(kinds.items(), key=lambda item: (PRECISIONS.index(item[0][0]), peers.index(item[0][1])))


def model_table(rows):
    columns = sorted({(row["test"] == "decode", row["batch"]) for row in rows})
    header = ["weights", "engine"]
    header += [f"decode, batch {batch}" if decode else "prefill" for decode, batch in columns]
    lines = []
    for (precision, peer, kind), of_kind in by_kind(rows):
        cells = {(row["test"] == "decode", row["batch"]): row for row in of_kind}
        line = [precision, f"{NAMES[peer]} {kind}"]
        for column in columns:
            row = cells.get(column)
            line.append(f"{spread(row['tokens_per_s'])}{prompt(row, rows)}" if row else "–")
        lines.append(line)
    return table(header, lines)


def prompt(row, rows):
    """Says so where a slow peer had a shorter prompt than the others."""
    usual = max(other["tokens"] for other in rows if other["test"] == row["test"])
    return f", {row['tokens']} tokens" if row["test"] == "prefill" and row["tokens"] < usual else ""


def linear_table(rows):
    batches = sorted({row["m"] for row in rows})
    lines = []
    for (precision, peer, kind), of_kind in by_kind(rows):
        cells = {row["m"]: spread(row["us"]) + MARK * row["cached"] for row in of_kind}
        lines.append([precision, f"{NAMES[peer]} {kind}", *(cells.get(m, "–") for m in batches)])
    return table(["weights", "engine", *(f"M = {m}" for m in batches)], lines)


def ratio_table(rows, names, unit, best):
    """Our best over the peers' best, or the other way round for times, for every precision that both have."""
    columns = list(dict.fromkeys(tuple(row[name] for name in names) for row in rows))
    columns.sort(key=lambda column: (column[0] == "decode", *column[1:]) if len(column) > 1 else column)
    lines = []
    for precision in PRECISIONS:
        cells = []
        for column in columns:
            of_column = [
                row
                for row in rows
                if row["precision"] == precision
                and tuple(row[name] for name in names) == column
                and not row.get("cached")
            ]
            ours = [row[unit]["median"] for row in of_column if row["peer"] == OURS]
            peers = {row[unit]["median"]: row for row in of_column if row["peer"] != OURS}
            if not ours or not peers:
                cells.append("–")
                continue
            theirs = best(peers)
            ratio = best(ours) / theirs if best is max else theirs / best(ours)
            cells.append(f"{ratio:.2f} ({NAMES[peers[theirs]['peer']]} {peers[theirs]['kind']})")
        if any(cell != "–" for cell in cells):
            lines.append([precision, *cells])
    if not lines:
        return ""
    heads = [f"{column[0]}, batch {column[1]}" if len(column) > 1 else f"M = {column[0]}" for column in columns]
    return table(["weights", *heads], lines).replace("|---|---|", "|---|---:|", 1)


def plot_models(data, path):
    """Bars of decode at every batch and of prefill."""
    rows = data["model"]
    tests = sorted({(row["test"] != "decode", row["batch"]) for row in rows})
    panels = [
        (
            f"decode, batch {batch}" if not prefill else "prefill",
            [row for row in rows if (row["test"] != "decode") == prefill and row["batch"] == batch],
        )
        for prefill, batch in tests
    ]
    _bars(panels, "tokens_per_s", "TinyLlama-1.1B shape, random weights", "tokens a second (more is better)", path)


def plot_linear(data, path):
    """Bars of a linear layer at every batch."""
    shapes = {(row["n"], row["k"]) for row in data["linear"]}
    shape = next((shape for shape in PLOT_SHAPES if shape in shapes), next(iter(shapes), None))
    rows = [row for row in data["linear"] if (row["n"], row["k"]) == shape]
    panels = [
        (f"M = {m}" + (" rows" if m > 1 else " row"), [row for row in rows if row["m"] == m])
        for m in sorted({row["m"] for row in rows})
    ]
    title = f"Linear layer {shape[1]} → {shape[0]}, M rows at a time" if shape else ""
    _bars(panels, "us", title, "microseconds a call (less is better)", path)


def _bars(panels, unit, title, label, path):
    """One panel a test: a bar for each kind of weights, of all panels in the same order, with the spread as a line."""
    if not panels:
        return
    kinds = [key for key, _ in by_kind([row for _, rows in panels for row in rows])]
    # Text stays text, and no date or random name goes into the file.
    plt.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "peers", "font.size": 9})
    width, height = 3 + 2.6 * len(panels), 1.6 + 0.24 * len(kinds)
    figure, axes = plt.subplots(1, len(panels), sharey=True, figsize=(width, height), layout="constrained", squeeze=False)
    several = any(len(row[unit]["rounds"]) > 1 for _, rows in panels for row in rows)
    for axis, (name, rows) in zip(axes[0], panels):
        values = {(row["precision"], row["peer"], row["kind"]): row[unit] for row in rows}
        for at, key in enumerate(kinds):
            if key not in values:
                continue
            value = values[key]
            axis.barh(at, value["median"], color=COLOURS[key[1]])
            if value["min"] < value["max"]:
                axis.hlines(at, value["min"], value["max"], color="#222222", linewidth=1)
                axis.vlines([value["min"], value["max"]], at - 0.2, at + 0.2, color="#222222", linewidth=1)
            # Points of the page, so that a figure stays clear of the line whatever the axis.
            place = {"xytext": (4, 0), "textcoords": "offset points", "va": "center", "fontsize": 8}
            axis.annotate(number(value["median"]), (value["max"], at), **place)
        axis.set_title(name)
        axis.margins(x=0.25)
        axis.set_xlim(left=0)
        axis.locator_params(axis="x", nbins=4)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0][0].set_yticks(range(len(kinds)), [f"{NAMES[peer]} {kind}" for _, peer, kind in kinds])
    axes[0][0].invert_yaxis()
    spread_line = "; lines: the slowest and the fastest round" if several else ""
    figure.suptitle(f"{title}\nbars: median of the rounds{spread_line}", fontsize=10)
    figure.supxlabel(label)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


if __name__ == "__main__":
    write(sys.argv[1])
