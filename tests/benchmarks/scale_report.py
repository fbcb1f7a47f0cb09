"""What `bench_scale.py` measured: curves.json, curves.png, and the table for the page."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

# Times are fitted from here on: below, fixed costs of a call hide the growth.
FITTED_FROM = 30_000

Row = dict[str, Any]


def report(folders: Mapping[int, Path], kinds: Sequence[str], out: Path, about: Row) -> None:
    """Writes the curves as JSON and as a picture, and prints the table as Markdown.

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
    out.mkdir(parents=True, exist_ok=True)
    (out / "curves.json").write_text(json.dumps({**about, "measured": rows}, indent=1) + "\n")
    draw(rows, about, out / "curves.png")
    print_measured(rows)


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


def draw(rows: Sequence[Row], about: Row, path: Path) -> None:
    """Four charts: memory, build time and latency by size, and recall by effort."""
    names = list(dict.fromkeys(row["name"] for row in rows))
    colour = {name: plt.colormaps["tab10"](number % 10) for number, name in enumerate(names)}
    figure, axes = plt.subplots(2, 2, figsize=(13, 10), layout="constrained")
    memory, build, latency, recall = axes.flat
    for name in names:
        mine = [row for row in rows if row["name"] == name]
        sizes = [row["items"] for row in mine]
        style: Row = {"color": colour[name], "marker": "o", "markersize": 4, "label": name}
        gigabytes = [row["bytes_per_vector"] * row["items"] / 1e9 for row in mine]
        memory.plot(sizes, gigabytes, **style)
        latency.plot(sizes, [row["p50_ms"] for row in mine], **style)
        latency.plot(sizes, [row["p99_ms"] for row in mine], color=colour[name], alpha=0.35)
        if not name.endswith("rescored") and name != "Flat":
            build.plot(sizes, [row["build_cpu_s"] for row in mine], **style)
        efforts = mine[-1]["recall_by_effort"]
        if len(efforts) > 1:
            recall.plot([int(effort) for effort in efforts], list(efforts.values()), **style)
    for axis, title, unit in (
        (memory, "Memory of the index", "GB"),
        (build, "Building it", "seconds of one core"),
        (latency, "One query, one thread (pale: p99)", "ms"),
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
