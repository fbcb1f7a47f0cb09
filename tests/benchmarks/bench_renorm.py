"""Batch Renormalization against torch's BatchNorm: time and memory, a layer and a whole train step.

    python tests/benchmarks/bench_renorm.py [--device cuda] [--smoke] [--compile] [--save]

Ratios are paired (A B A B ..., medians): on a CPU one thread by process CPU time and two threads by wall
clock, forward and backward, on CUDA wall clock around synchronized batches of calls, in float32 and under
bfloat16 autocast. ``--save`` writes docs/results/bench_renorm/<device>.json with the command, versions
and device.
"""

import argparse
import json
import platform
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torchvision
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor, nn

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parent)]

from paired import clock, compare, peak_memory  # noqa: E402

from models.renorm import BatchRenorm1d, BatchRenorm2d, convert_to_batch_renorm  # noqa: E402

ROOT = Path(__file__).parents[2]
SHAPES = [(64, 64, 56, 56), (32, 256, 14, 14), (256, 512, 7, 7), (128, 2048)]
SMOKE = [(4, 8, 7, 7), (8, 16)]


class PlainFormula(nn.Module):
    """The paper's formulas in tensor operations, differentiated by autograd: what everybody writes
    first."""

    def __init__(self, channels: int, dimensions: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))
        self.register_buffer("mu", torch.zeros(channels))
        self.register_buffer("sigma", torch.ones(channels))
        self.shape = (1, -1, *[1] * (dimensions - 2))
        self.over = [i for i in range(dimensions) if i != 1]

    def forward(self, x: Tensor) -> Tensor:
        var, mean = torch.var_mean(x, self.over, correction=0)
        std = (var + 1e-5).sqrt()
        with torch.no_grad():
            r = (std / self.sigma).clamp(1 / 3, 3)
            d = ((mean - self.mu) / self.sigma).clamp(-5, 5)
            self.mu.lerp_(mean, 0.01)
            self.sigma.lerp_(std, 0.01)
        x_hat = (x - mean.view(self.shape)) / std.view(self.shape) * r.view(self.shape) + d.view(self.shape)
        return x_hat * self.weight.view(self.shape) + self.bias.view(self.shape)


def training(layer: nn.Module, x: Tensor, autocast: bool) -> Callable[[], None]:
    """One forward and backward pass."""
    x = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    device = x.device.type
    if autocast:
        x = x.detach().bfloat16().requires_grad_()
    gradient = torch.randn_like(x)

    def work() -> None:
        with torch.autocast(device, torch.bfloat16, enabled=autocast):
            y = layer(x)
        y.backward(gradient)
        x.grad = None
        layer.zero_grad(set_to_none=True)

    return work


def evaluation(layer: nn.Module, x: Tensor) -> Callable[[], None]:
    layer = layer.eval()

    def work() -> None:
        with torch.inference_mode():
            layer(x)

    return work


def train_step(network: nn.Module, x: Tensor, autocast: bool) -> Callable[[], None]:
    optimizer = torch.optim.SGD(network.parameters(), 0.01, momentum=0.9)
    label = torch.arange(len(x), device=x.device) % 10
    device = x.device.type

    def work() -> None:
        with torch.autocast(device, torch.bfloat16, enabled=autocast):
            loss = nn.functional.cross_entropy(network(x), label)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return work


class Runner:
    """Measures one pair after another and keeps the rows."""

    def __init__(self, device: str, seconds: float, rounds: int) -> None:
        self.device, self.seconds, self.rounds = device, seconds, rounds
        self.rows: list[dict[str, Any]] = []

    def threads(self) -> tuple[int, ...]:
        return (1, 2) if self.device == "cpu" else (1,)

    def measure(
        self,
        name: str,
        what: str,
        candidate: Callable[[], None],
        baseline: Callable[[], None],
        memory: bool = True,
    ) -> None:
        row: dict[str, Any] = {"case": name, "what": what}
        for threads in self.threads():
            torch.set_num_threads(threads)
            pair = compare(candidate, baseline, clock(self.device, threads), self.rounds, self.seconds)
            row |= {f"ratio_{threads}": pair.ratio, f"batch_norm_us_{threads}": pair.baseline * 1e6}
        if memory:
            row["memory"] = peak_memory(candidate, self.device) / max(peak_memory(baseline, self.device), 1)
        self.rows.append(row)


def layers(
    runner: Runner, shape: tuple[int, ...], channels_last: bool, autocast: bool, compiled: bool
) -> None:
    channels, flat = shape[1], len(shape) == 2
    x = torch.randn(shape, device=runner.device)
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    name = "×".join(map(str, shape)) + (" channels_last" if channels_last else "")
    name += " bf16" if autocast else ""
    norm, renorm = (nn.BatchNorm1d, BatchRenorm1d) if flat else (nn.BatchNorm2d, BatchRenorm2d)

    def place(layer: nn.Module) -> nn.Module:
        return layer.to(runner.device)

    baseline = training(place(norm(channels)), x, autocast)
    runner.measure(name, "train", training(place(renorm(channels)), x, autocast), baseline)
    moving = renorm(channels, gradient_statistics="moving")
    runner.measure(name, "train, moving", training(place(moving), x, autocast), baseline)
    if not autocast:
        plain = PlainFormula(channels, len(shape))
        runner.measure(name, "train, plain formula", training(place(plain), x, False), baseline)
        runner.measure(
            name, "eval", evaluation(place(renorm(channels)), x), evaluation(place(norm(channels)), x)
        )
    if compiled and not flat:
        ours, theirs = (nn.Sequential(place(layer(channels)), nn.ReLU()) for layer in (renorm, norm))
        torch._dynamo.reset()
        fused = training(torch.compile(ours), x, autocast)
        runner.measure(name, "train, + ReLU, compiled", fused, training(theirs, x, autocast), memory=False)
        both = training(torch.compile(theirs), x, autocast)
        runner.measure(name, "the same, both compiled", fused, both, memory=False)


def networks(runner: Runner, smoke: bool, autocast: bool) -> None:
    batch, size = (2, 32) if smoke else ((128, 224) if runner.device == "cuda" else (16, 128))
    for build in (torchvision.models.resnet18, torchvision.models.resnet50):
        if smoke and build is torchvision.models.resnet50:
            continue
        for channels_last in (False, True):
            layout = torch.channels_last if channels_last else torch.contiguous_format
            x = torch.randn(batch, 3, size, size, device=runner.device).contiguous(memory_format=layout)
            theirs = build(num_classes=10).to(runner.device, memory_format=layout)
            ours = convert_to_batch_renorm(build(num_classes=10)).to(runner.device, memory_format=layout)
            name = f"{build.__name__} {batch}×3×{size}²" + (" channels_last" if channels_last else "")
            name += " bf16" if autocast else ""
            runner.measure(name, "step", train_step(ours, x, autocast), train_step(theirs, x, autocast))


def show(rows: list[dict[str, Any]], device: str) -> None:
    table = Table(title=f"Ratio to torch's BatchNorm ({device})")
    names = ["case", "what", *[k for k in rows[0] if k.startswith("ratio")]]
    for name in (*names, "memory"):
        table.add_column(name, no_wrap=True)
    for row in rows:
        figures = [row.get(k) for k in (*names[2:], "memory")]
        table.add_row(row["case"], row["what"], *["" if f is None else f"{f:.3f}" for f in figures])
    Console(width=140).print(table)
    train = [row["ratio_1"] for row in rows if row["what"] == "train"]
    print(f"layers, train: median {statistics.median(train):.3f}, largest {max(train):.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--smoke", action="store_true", help="tiny shapes: does it run?")
    parser.add_argument("--compile", action="store_true", help="torch.compile rows, too")
    parser.add_argument("--no-networks", action="store_true", help="layers alone")
    parser.add_argument("--save", action="store_true")
    options = parser.parse_args()
    runner = Runner(options.device, 0.001 if options.smoke else 0.1, 3 if options.smoke else 9)
    cases = [
        (shape, channels_last, autocast)
        for autocast in ((False, True) if options.device == "cuda" else (False,))
        for shape in (SMOKE if options.smoke else SHAPES)
        for channels_last in ((False, True) if len(shape) == 4 else (False,))
    ]
    for case in track(cases, description="layers"):
        layers(runner, *case, options.compile)
    if not options.no_networks:
        for autocast in (False, True) if options.device == "cuda" else (False,):
            networks(runner, options.smoke, autocast)
    name = torch.cuda.get_device_name() if options.device == "cuda" else platform.processor() or "cpu"
    show(runner.rows, name)
    if options.save:
        folder = ROOT / "docs" / "results" / "bench_renorm"
        folder.mkdir(parents=True, exist_ok=True)
        record = {
            "command": " ".join(["python", "tests/benchmarks/bench_renorm.py", *sys.argv[1:]]),
            "versions": {"torch": torch.__version__, "python": platform.python_version()},
            "device": name,
            "rows": runner.rows,
        }
        (folder / f"{options.device}.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
