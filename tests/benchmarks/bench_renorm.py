"""Batch Renormalization against torch's BatchNorm: time and memory, a layer and a whole train step.

    python tests/benchmarks/bench_renorm.py [--device cuda] [--native] [--only TEXT ...] [--compile] [--save]
        [--out FILE] [--smoke]

Ratios are paired (A B A B ..., medians): on a CPU one thread by process CPU time and two threads by wall
clock, forward and backward, on CUDA wall clock around synchronized batches of calls, in float32 and under
bfloat16 autocast, and beside SyncBatchNorm as it works in a group of one process. ``--save`` writes
docs/results/bench_renorm/<device>.json with the commands, versions and device (``--out`` another file); rows
that are there already and were not measured this time stay, so that a long measurement can be made in parts.
``--native`` measures the fused CPU kernels instead of torch's, as rows of their own, and with them the ReLU
and the residual sum, in a layer and in whole networks.

On a CPU the C library's allocator is told to keep the memory that it has (``--default-allocator`` leaves it
alone). Otherwise it gives large buffers back to the system when they are freed, or not, as their neighbours
happen to lie, and the page faults on the next ones cost more than the arithmetic: ratios then move by a
fifth between runs.
"""

import argparse
import json
import os
import platform
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torchvision
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor, nn
from torch.nn.modules._functions import SyncBatchNorm

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parent)]

from paired import clock, compare, peak_memory  # noqa: E402
from renorm_work import PlainFormula, Residual, WithRelu, evaluation, train_step, training  # noqa: E402

from models.renorm import (  # noqa: E402
    BatchRenorm1d,
    BatchRenorm2d,
    convert_to_batch_renorm,
    fuse_batch_renorm,
    native,
)

ROOT = Path(__file__).parents[2]
SHAPES = [(64, 64, 56, 56), (32, 256, 14, 14), (256, 512, 7, 7), (128, 2048)]
SMOKE = [(4, 8, 7, 7), (8, 16)]
KEEP_MEMORY = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(1 << 36),
    "MALLOC_TOP_PAD_": str(1 << 26),
}


class LoneSyncBatchNorm(nn.BatchNorm2d):
    """SyncBatchNorm in a group of one process, where torch's own module falls back to BatchNorm."""

    def forward(self, x: Tensor) -> Tensor:
        running = (self.running_mean, self.running_var, self.eps, self.momentum)
        return SyncBatchNorm.apply(x, self.weight, self.bias, *running, dist.group.WORLD, 1)


class Runner:
    """Measures one pair after another and keeps the rows."""

    def __init__(self, device: str, seconds: float, rounds: int, only: list[str], skip: list[str]) -> None:
        self.device, self.seconds, self.rounds, self.only, self.skip = device, seconds, rounds, only, skip
        self.network_rounds = min(rounds, 9)
        self.rows: list[dict[str, Any]] = []

    def wants(self, name: str) -> bool:
        """Whether the case is among those asked for."""
        asked = not self.only or any(text in name for text in self.only)
        return asked and not any(text in name for text in self.skip)

    def threads(self) -> tuple[int, ...]:
        return (1, 2) if self.device == "cpu" else (1,)

    def measure(
        self,
        name: str,
        what: str,
        candidate: Callable[[], None],
        baseline: Callable[[], None],
        memory: bool = True,
        rounds: int | None = None,
    ) -> None:
        row: dict[str, Any] = {"case": name, "what": what}
        try:
            for threads in self.threads():
                torch.set_num_threads(threads)
                pair = compare(
                    candidate, baseline, clock(self.device, threads), rounds or self.rounds, self.seconds
                )
                row |= {f"ratio_{threads}": pair.ratio, f"batch_norm_us_{threads}": pair.baseline * 1e6}
            if memory:
                peaks = [peak_memory(work, self.device) for work in (candidate, baseline)]
                row["memory"] = peaks[0] / max(peaks[1], 1)
        except torch.OutOfMemoryError:
            print(f"{name}, {what}: out of memory", file=sys.stderr)
            return
        self.rows.append(row)


def native_layers(runner: Runner, shape: tuple[int, ...], channels_last: bool) -> None:
    """The fused kernels, alone and with what follows a layer."""
    channels, flat = shape[1], len(shape) == 2
    name = "×".join(map(str, shape)) + (" channels_last" if channels_last else "")
    if not runner.wants(name):
        return
    x = torch.randn(shape)
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    norm, renorm = (nn.BatchNorm1d, BatchRenorm1d) if flat else (nn.BatchNorm2d, BatchRenorm2d)
    baseline = training(norm(channels), x, False)
    runner.measure(name, "native train", training(renorm(channels), x, False), baseline)
    moving = training(renorm(channels, gradient_statistics="moving"), x, False)
    runner.measure(name, "native train, moving", moving, baseline)
    theirs = training(nn.Sequential(norm(channels), nn.ReLU(inplace=True)), x, False)
    runner.measure(name, "native train, + ReLU", training(WithRelu(renorm(channels)), x, False), theirs)
    theirs = training(Residual(norm(channels), together=False), x, False)
    ours = training(Residual(renorm(channels), together=True), x, False)
    runner.measure(name, "native train, + sum + ReLU", ours, theirs)


def layers(
    runner: Runner, shape: tuple[int, ...], channels_last: bool, autocast: bool, compiled: bool
) -> None:
    channels, flat = shape[1], len(shape) == 2
    name = "×".join(map(str, shape)) + (" channels_last" if channels_last else "")
    name += " bf16" if autocast else ""
    if not runner.wants(name):
        return
    x = torch.randn(shape, device=runner.device)
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    norm, renorm = (nn.BatchNorm1d, BatchRenorm1d) if flat else (nn.BatchNorm2d, BatchRenorm2d)

    def place(layer: nn.Module) -> nn.Module:
        return layer.to(runner.device)

    baseline = training(place(norm(channels)), x, autocast)
    ours = training(place(renorm(channels)), x, autocast)
    runner.measure(name, "train", ours, baseline)
    moving = training(place(renorm(channels, gradient_statistics="moving")), x, autocast)
    runner.measure(name, "train, moving", moving, baseline)
    runner.measure(name, "train, moving / ours", moving, ours, memory=False)
    if runner.device == "cuda" and not flat:
        synchronized = training(place(LoneSyncBatchNorm(channels)), x, autocast)
        runner.measure(name, "train / SyncBatchNorm", ours, synchronized)
    if not autocast:
        plain = PlainFormula(channels, len(shape))
        runner.measure(name, "train, plain formula", training(place(plain), x, False), baseline, rounds=3)
        runner.measure(
            name, "eval", evaluation(place(renorm(channels)), x), evaluation(place(norm(channels)), x)
        )
    if compiled and not flat:
        torch._dynamo.reset()
        block, their_block = (nn.Sequential(place(layer(channels)), nn.ReLU()) for layer in (renorm, norm))
        eager = training(their_block, x, autocast)
        fused = training(torch.compile(block), x, autocast)
        runner.measure(name, "train, + ReLU", training(block, x, autocast), eager, memory=False)
        runner.measure(name, "train, + ReLU, ours compiled", fused, eager)
        both = training(torch.compile(their_block), x, autocast)
        runner.measure(name, "train, + ReLU, both compiled", fused, both, memory=False)


def networks(
    runner: Runner, smoke: bool, batch: int | None, autocast: bool, compiled: bool, fused: bool
) -> None:
    usual, size = (2, 32) if smoke else ((128, 224) if runner.device == "cuda" else (16, 128))
    batch = batch or usual
    for build in (torchvision.models.resnet18, torchvision.models.resnet50):
        if smoke and build is torchvision.models.resnet50:
            continue
        for channels_last in (False, True):
            name = f"{build.__name__} {batch}×3×{size}²" + (" channels_last" if channels_last else "")
            name += " bf16" if autocast else ""
            if not runner.wants(name):
                continue
            layout = torch.channels_last if channels_last else torch.contiguous_format
            x = torch.randn(batch, 3, size, size, device=runner.device).contiguous(memory_format=layout)
            theirs = build(num_classes=10).to(runner.device, memory_format=layout)
            ours = convert_to_batch_renorm(build(num_classes=10)).to(runner.device, memory_format=layout)
            steps = [train_step(network, x, autocast) for network in (ours, theirs)]
            runner.measure(name, "native step" if fused else "step", *steps, rounds=runner.network_rounds)
            if fused:
                together = fuse_batch_renorm(
                    convert_to_batch_renorm(build(num_classes=10)).to(memory_format=layout)
                )
                runner.measure(
                    name,
                    "native step, fused",
                    train_step(together, x, autocast),
                    steps[1],
                    rounds=runner.network_rounds,
                )
            if compiled:
                torch._dynamo.reset()
                steps = [train_step(torch.compile(network), x, autocast) for network in (ours, theirs)]
                runner.measure(
                    name, "step, both compiled", *steps, memory=False, rounds=runner.network_rounds
                )


def show(rows: list[dict[str, Any]], device: str) -> None:
    table = Table(title=f"Ratio to torch's BatchNorm ({device})")
    names = ["case", "what", *[k for k in rows[0] if k.startswith("ratio")]]
    for name in (*names, "memory"):
        table.add_column(name, no_wrap=True)
    for row in rows:
        figures = [row.get(k) for k in (*names[2:], "memory")]
        table.add_row(row["case"], row["what"], *["" if f is None else f"{f:.3f}" for f in figures])
    Console(width=140).print(table)
    for threads in (1, 2):
        train = [
            row[f"ratio_{threads}"]
            for row in rows
            if row["what"].removeprefix("native ") == "train" and f"ratio_{threads}" in row
        ]
        if train:
            middle, largest = statistics.median(train), max(train)
            print(f"layers, train, {threads} thread(s): median {middle:.3f}, largest {largest:.3f}")


def processor() -> str:
    """The CPU's name, as far as the system tells."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0]}, {len(names)} cores" if names else platform.processor() or "cpu"


def save(path: Path, rows: list[dict[str, Any]], device: str) -> None:
    """Into the file, over the rows of the same cases."""
    command = " ".join(["python", "tests/benchmarks/bench_renorm.py", *sys.argv[1:]])
    old = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    measured = {(row["case"], row["what"]) for row in rows}
    kept = [row for row in old.get("rows", []) if (row["case"], row["what"]) not in measured]
    record = {
        "versions": {"torch": torch.__version__, "python": platform.python_version()},
        "device": device,
        "rows": [*kept, *({**row, "command": command} for row in rows)],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--native", action="store_true", help="the fused CPU kernels, compiled if need be")
    parser.add_argument("--smoke", action="store_true", help="tiny shapes: does it run?")
    parser.add_argument("--compile", action="store_true", help="torch.compile rows, too")
    parser.add_argument(
        "--only", nargs="+", default=[], metavar="TEXT", help="cases whose name has one of these"
    )
    parser.add_argument("--skip", nargs="+", default=[], metavar="TEXT", help="cases to leave out, likewise")
    parser.add_argument(
        "--rounds", type=int, default=15, help="pairs a figure is the median of (networks: up to 9)"
    )
    parser.add_argument("--no-networks", action="store_true", help="layers alone")
    parser.add_argument("--batch", type=int, help="images in a network's batch")
    parser.add_argument("--default-allocator", action="store_true", help="with the page faults, on a CPU")
    parser.add_argument("--save", action="store_true")
    parser.add_argument("--out", type=Path, help="save to this file instead")
    options = parser.parse_args()
    if options.device == "cpu" and not options.default_allocator and "MALLOC_MMAP_MAX_" not in os.environ:
        # The allocator reads its settings when a process starts.
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **KEEP_MEMORY})
    if options.native:
        if options.device != "cpu":
            parser.error("--native is for CPUs")
        native.build()
    if options.device == "cuda":
        torch.backends.cudnn.benchmark = True
        dist.init_process_group("nccl", store=dist.HashStore(), rank=0, world_size=1)
    seconds, rounds = (0.001, 3) if options.smoke else (0.05, options.rounds)
    runner = Runner(options.device, seconds, rounds, options.only, options.skip)
    cases = [
        (shape, channels_last, autocast)
        for autocast in ((False, True) if options.device == "cuda" else (False,))
        for shape in (SMOKE if options.smoke else SHAPES)
        for channels_last in ((False, True) if len(shape) == 4 else (False,))
    ]
    for case in track(cases, description="layers"):
        if options.native:
            native_layers(runner, *case[:2])
        else:
            layers(runner, *case, options.compile)
    if not options.no_networks:
        for autocast in (False, True) if options.device == "cuda" else (False,):
            networks(runner, options.smoke, options.batch, autocast, options.compile, options.native)
    if not runner.rows:
        parser.error(f"no case has any of these in its name: {', '.join(options.only)}")
    name = torch.cuda.get_device_name() if options.device == "cuda" else processor()
    show(runner.rows, name)
    kind = options.device + ("_default_allocator" if options.default_allocator else "")
    if options.save or options.out:
        usual = ROOT / "docs" / "results" / "bench_renorm" / f"{kind}.json"
        save(options.out or usual, runner.rows, name)
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
