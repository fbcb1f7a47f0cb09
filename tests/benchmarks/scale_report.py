"""Curves and extrapolations of `bench_scale.py`: curves.json, curves.png, and tables for the page."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

FAR = (100_000_000, 1_000_000_000)
# Times are fitted from here on: below, fixed costs of a call hide the growth.
FITTED_FROM = 30_000

Row = dict[str, Any]


def report(folders: Mapping[int, Path], kinds: Sequence[str], out: Path, about: Row) -> None:
    """Writes the curves as JSON and as a picture, and prints both tables as Markdown.

    Args:
        folders: Where each size's measurements are.
        kinds: Index types, as far as they were measured.
        out: Folder for the results.
        about: Command, versions and settings.
    """
    rows = [
        row
        for items, folder in folders.items()
        for kind in kinds
        for row in read(folder, kind, items, about["clock"])
    ]
    ahead = [row for name in dict.fromkeys(row["name"] for row in rows) for row in extrapolated(rows, name)]
    out.mkdir(parents=True, exist_ok=True)
    results = {**about, "measured": rows, "extrapolated": ahead}
    (out / "curves.json").write_text(json.dumps(results, indent=1) + "\n")
    draw(rows, ahead, about, out / "curves.png")
    print_measured(rows)
    print_extrapolated(ahead)
    print_machines(ahead)


def read(folder: Path, kind: str, items: int, clock: str) -> list[Row]:
    """What was measured of one index: a row for each way of searching it, its times by one of the clocks."""
    built, recall, timed = (folder / f"{kind}.{step}.json" for step in ("built", "recall", "timed"))
    if not timed.is_file():
        return []
    index = json.loads(built.read_text())
    tried = json.loads(recall.read_text())["tried"]
    rows = []
    for row in json.loads(timed.read_text())["rows"]:
        # Scoring hits anew takes the vectors in memory as well.
        vectors = 4 * int(folder.name.split("x")[1].split("-")[0]) if row["way"] == "rescored" else 0
        rows.append(
            {
                "name": kind + (" + rescored" if row["way"] == "rescored" else ""),
                "items": items,
                "factory": index["factory"],
                "build_cpu_s": index["build_cpu_s"],
                "bytes_per_vector": index["bytes"] / items + vectors,
                **row,
                **{figure: row[f"{clock}_{figure}"] for figure in ("p50_ms", "p99_ms", "batch_qps")},
                "recall_by_effort": {
                    str(e["effort"]): e["recall@10"] for e in tried if e["way"] == row["way"]
                },
            }
        )
    return rows


def slope(items: Sequence[int], values: Sequence[float]) -> float:
    """Exponent of values ~ items^exponent, by least squares."""
    return float(np.polyfit(np.log(items), np.log(values), 1)[0])


def extrapolated(rows: Sequence[Row], name: str) -> list[Row]:
    """Memory, latency and build time at 100M and 1B.

    Bytes a vector are taken from the largest size. The range of a time is that of two power laws from there
    on, with the exponent of all sizes from 30k and that of the two largest; a search grows at most linearly
    (steeper, where caches end, cannot last). They hold for one index over everything. Engines
    that index segments of a fixed size (Milvus) search every segment: `core_ms_in_segments` is the latency at
    the largest measured size times the number of such segments.
    """
    mine = [row for row in rows if row["name"] == name and row["items"] >= FITTED_FROM]
    if len(mine) < 3:
        return []
    sizes = [row["items"] for row in mine]
    found = []
    for items in FAR:
        row: Row = {"name": name, "items": items}
        row["gigabytes"] = mine[-1]["bytes_per_vector"] * items / 1e9
        row["core_ms_in_segments"] = mine[-1]["p50_ms"] * items / sizes[-1]
        for figure, steepest in (("p50_ms", 1.0), ("p99_ms", 1.0), ("build_cpu_s", 2.0)):
            values = [max(entry[figure], 1e-9) for entry in mine]
            exponents = [slope(sizes, values), slope(sizes[-2:], values[-2:])]
            row[f"{figure}_exponents"] = exponents
            row[figure] = sorted(values[-1] * (items / sizes[-1]) ** min(e, steepest) for e in exponents)
        found.append(row)
    return found


def draw(rows: Sequence[Row], ahead: Sequence[Row], about: Row, path: Path) -> None:
    """Four charts: memory, build time and latency by size with their extrapolation, and recall by effort."""
    names = list(dict.fromkeys(row["name"] for row in rows))
    colour = {name: plt.colormaps["tab10"](number % 10) for number, name in enumerate(names)}
    figure, axes = plt.subplots(2, 2, figsize=(13, 10), layout="constrained")
    memory, build, latency, recall = axes.flat
    for name in names:
        mine = [row for row in rows if row["name"] == name]
        sizes = [row["items"] for row in mine]
        style: Row = {"color": colour[name], "marker": "o", "markersize": 4, "label": name}
        dotted: Row = {"color": colour[name], "linestyle": ":", "linewidth": 1}
        far = [row for row in ahead if row["name"] == name]
        beyond = [sizes[-1], *(row["items"] for row in far)]
        gigabytes = [row["bytes_per_vector"] * row["items"] / 1e9 for row in mine]
        memory.plot(sizes, gigabytes, **style)
        memory.plot(beyond, [gigabytes[-1], *(row["gigabytes"] for row in far)], **dotted)
        latency.plot(sizes, [row["p50_ms"] for row in mine], **style)
        latency.plot(sizes, [row["p99_ms"] for row in mine], color=colour[name], alpha=0.35)
        if far:
            low, high = ([mine[-1]["p50_ms"], *(row["p50_ms"][end] for row in far)] for end in (0, 1))
            middle = [math.sqrt(a * b) for a, b in zip(low, high, strict=True)]
            latency.plot(beyond, middle, **dotted)
            latency.fill_between(beyond, low, high, color=colour[name], alpha=0.12, linewidth=0)
        if not name.endswith("rescored") and name != "Flat":
            build.plot(sizes, [row["build_cpu_s"] for row in mine], **style)
            middle = [math.sqrt(math.prod(row["build_cpu_s"])) for row in far]
            build.plot(beyond, [mine[-1]["build_cpu_s"], *middle], **dotted)
        efforts = mine[-1]["recall_by_effort"]
        if len(efforts) > 1:
            recall.plot([int(effort) for effort in efforts], list(efforts.values()), **style)
    for axis, title, unit in (
        (memory, "Memory of the index (dotted: extrapolated)", "GB"),
        (build, "Building it (dotted: extrapolated)", "seconds of one core"),
        (latency, "One query, one thread (pale: p99; shaded: extrapolated p50)", "ms"),
    ):
        axis.set(title=title, xlabel="vectors", ylabel=unit, xscale="log", yscale="log")
        axis.grid(alpha=0.3)
    recall.axhline(about["target_recall@10"], color="grey", linewidth=1, linestyle="--")
    title = "Recall@10 at the largest size by nprobe (IVF) or ef (HNSW)"
    recall.set(title=title, xlabel="nprobe or ef", ylabel="recall@10", xscale="log")
    recall.grid(alpha=0.3)
    memory.legend(fontsize=8)
    at = (
        f"{about['dim']} dimensions, clustered vectors, "
        f"at the least effort with recall@10 ≥ {about['target_recall@10']}"
    )
    figure.suptitle(
        f"{at}\n{about['cpu']}, one thread, {about['clock']} time, FAISS {about['versions']['faiss']}",
        fontsize=11,
    )
    figure.savefig(path, dpi=90)
    plt.close(figure)


def print_measured(rows: Sequence[Row]) -> None:
    """Each index at its largest size, and how its latency grew, as a Markdown table."""
    print(
        "| index | vectors | bytes each | build, core s | recall@10 | at | p50/p99 ms | batch QPS | p50 ~ |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for name in dict.fromkeys(row["name"] for row in rows):
        grown = [r for r in rows if r["name"] == name and r["items"] >= FITTED_FROM]
        if not grown:
            continue
        row = grown[-1]
        times = [r["p50_ms"] for r in grown]
        growth = f"N^{slope([r['items'] for r in grown], times):.2f}" if len(grown) > 2 else "–"
        effort = {0: "–"}.get(row["effort"], f"{'ef' if 'HNSW' in name else 'nprobe'} {row['effort']}")
        print(
            f"| {name} | {row['items']:,} | {row['bytes_per_vector']:.0f} | {row['build_cpu_s']:.0f} "
            f"| {row['recall@10']:.3f} | {effort} | {row['p50_ms']:.2f}/{row['p99_ms']:.2f} "
            f"| {row['batch_qps']:,.0f} | {growth} |"
        )


def print_extrapolated(ahead: Sequence[Row]) -> None:
    """What to expect beyond, as a Markdown table."""
    print(
        "| index | GB at 100M | at 1B | p50 ms at 100M | at 1B | in segments, core ms at 100M | at 1B "
        "| build 1B, core h |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for name in dict.fromkeys(row["name"] for row in ahead):
        near, far = (next(r for r in ahead if r["name"] == name and r["items"] == n) for n in FAR)
        hours = [seconds / 3600 for seconds in far["build_cpu_s"]]
        parts = " | ".join(f"{row['core_ms_in_segments']:,.3g}" for row in (near, far))
        print(
            f"| {name} | {near['gigabytes']:,.0f} | {far['gigabytes']:,.0f} | {_span(near['p50_ms'])} "
            f"| {_span(far['p50_ms'])} | {parts} "
            f"| {_span(hours) if hours[1] > 1e-3 else '–'} |"
        )


def print_machines(ahead: Sequence[Row]) -> None:
    """How many machines of 16 cores and 64 GB hold the index and answer so many queries a second.

    70% of the memory and half of the cores are planned with; vectors lie in segments of the largest measured
    size.
    """
    rates, every = (10, 1000), sorted({row["items"] for row in ahead})
    print("| index | " + " | ".join(f"{n // 10**6:,}M, {q:,}/s" for n in every for q in rates) + " |")
    print("| --- " * (1 + len(rates) * len(every)) + "|")
    for name in dict.fromkeys(row["name"] for row in ahead):
        mine = [row for row in ahead if row["name"] == name]
        sizes = [(row["gigabytes"], row["core_ms_in_segments"]) for row in mine]
        cells = [
            str(max(math.ceil(gigabytes / (0.7 * 64)), math.ceil(rate * latency / 1000 / 8)))
            for gigabytes, latency in sizes
            for rate in rates
        ]
        print(f"| {name} | " + " | ".join(cells) + " |")


def _span(ends: Sequence[float]) -> str:
    low, high = (f"{float(f'{end:.2g}'):,g}" for end in ends)
    return low if low == high else f"{low}–{high}"
