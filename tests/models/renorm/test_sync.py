"""Two gloo processes equal one process with the whole batch; plain layers average their statistics."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from models.renorm import BatchRenorm2d, SyncBatchRenorm, average_statistics_across_ranks

SIZES = (6, 2)  # uneven shares of a batch
CASES = [
    {},
    {"gradient_statistics": "moving", "gradient_momentum": 0.3},
    {"affine": False},
    {"empty": True},
    {"dtype": torch.bfloat16},
    {"mask": "random"},
    {"mask": "random", "gradient_statistics": "moving", "gradient_momentum": 0.3},
    {"mask": "one process has padding alone"},
]


def share(whole: Tensor, rank: int, sizes: tuple[int, ...]) -> Tensor:
    return whole.split(sizes)[rank]


def steps(
    layer: nn.Module, xs: Tensor, dys: Tensor, half: bool, masks: Tensor | None = None
) -> list[list[Tensor]]:
    results = []
    for i, (x, dy) in enumerate(zip(xs, dys, strict=True)):
        a = (x.bfloat16() if half else x).clone().requires_grad_()
        y = layer(a, None if masks is None else masks[i])
        y.backward(dy.to(y.dtype))
        gradients = [p.grad.clone() for p in layer.parameters()]
        layer.zero_grad()
        results.append([y.detach().float(), a.grad.float(), *gradients])
    return results


def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shape = (3, sum(SIZES), 3, 4, 4)
    return torch.randn(shape, generator=generator) * 2 + 1, torch.randn(shape, generator=generator)


def padding(case: dict[str, Any], xs: Tensor) -> Tensor | None:
    """Which positions of each step's whole batch are real."""
    if "mask" not in case:
        return None
    masks = torch.rand(xs[:, :, 0].shape, generator=torch.Generator().manual_seed(1)) < 0.6
    if case["mask"] != "random":
        masks[:, SIZES[0] :] = False
    return masks


def build(kind: type[BatchRenorm2d], case: dict[str, Any]) -> nn.Module:
    settings = {k: v for k, v in case.items() if k not in ("empty", "dtype", "mask")}
    return kind(3, momentum=0.3, rmax=1.2, dmax=0.4, **settings)


def work(rank: int, folder: str, expected: list[Any]) -> None:
    torch.set_num_threads(1)
    # They meet in a file: the thread of a TCP store may outlive the process that it belongs to, which aborts.
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    xs, dys = data()
    for case, (whole, buffers) in zip(CASES, expected, strict=True):
        sizes = (sum(SIZES), 0) if case.get("empty") else SIZES
        layer = build(SyncBatchRenorm, case)
        mine = (
            torch.stack([share(x, rank, sizes) for x in xs]),
            torch.stack([share(dy, rank, sizes) for dy in dys]),
        )
        masks = padding(case, xs)
        if masks is not None:
            masks = torch.stack([share(mask, rank, sizes) for mask in masks])
        for ours, theirs in zip(steps(layer, *mine, "dtype" in case, masks), whole, strict=True):
            loose = {"rtol": 2e-2, "atol": 2e-2} if "dtype" in case else {"rtol": 1e-4, "atol": 1e-5}
            for a, b in zip(ours[:2], theirs[:2], strict=True):  # of this process's share
                torch.testing.assert_close(a, share(b, rank, sizes), **loose)
            for a, b in zip(ours[2:], theirs[2:], strict=True):  # sums over the processes
                dist.all_reduce(a)
                torch.testing.assert_close(a, b, rtol=1e-3, atol=5e-2 if "dtype" in case else 1e-4)
        for a, b in zip(layer.buffers(), buffers, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    averages(rank, xs)
    shared(rank, xs, dys)
    dist.barrier()
    dist.destroy_process_group()


def averages(rank: int, xs: Tensor) -> None:
    """A plain layer under DDP, each process with other data, its buffers broadcast from rank 0."""
    torch.manual_seed(0)
    network = nn.Sequential(BatchRenorm2d(3, momentum=0.3), nn.Conv2d(3, 2, 1))
    alone = [copy.deepcopy(network[0]) for _ in range(2)]
    parallel = DistributedDataParallel(network)
    mean, deviation = torch.zeros(3), torch.ones(3)
    for x in xs:
        parallel(x * (1 + rank)).sum().backward()
        average_statistics_across_ranks(parallel)
        for other, layer in enumerate(alone):
            layer.running_mean.copy_(mean)
            layer.running_var.copy_(deviation.square() - layer.eps)
            layer(x * (1 + other))
        mean = torch.stack([layer.running_mean for layer in alone]).mean(0)
        deviation = torch.stack([(layer.running_var + layer.eps).sqrt() for layer in alone]).mean(0)
        torch.testing.assert_close(network[0].running_mean, mean, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close((network[0].running_var + 1e-5).sqrt(), deviation, rtol=1e-4, atol=1e-5)


def shared(rank: int, xs: Tensor, dys: Tensor) -> None:
    """A layer of each process's own batch whose gradient subtracts a fit over the batches of both."""
    settings = {"gradient_statistics": "shared", "gradient_momentum": 0.6, "momentum": 0.0, "affine": False}
    layer = BatchRenorm2d(3, rmax=1.5, dmax=0.8, dtype=torch.float64, **settings)
    running = (1 + layer.eps) ** 0.5
    moments = torch.zeros(4, 3, dtype=torch.float64)
    for weight, x, dy in zip((1, 0.6, 0.6), xs.double(), dys.double(), strict=True):
        of_both = []
        for scale, given in ((1, dy), (2, dy + 0.5)):
            values = x * scale
            std = (values.var((0, 2, 3), unbiased=False) + layer.eps).sqrt()
            r = (std / running).clamp(1 / 1.5, 1.5)
            d = (values.mean((0, 2, 3)) / running).clamp(-0.8, 0.8)
            centred = values - values.mean((0, 2, 3), keepdim=True)
            z = centred * (r / std)[:, None, None] + d[:, None, None]
            means = [given.mean((0, 2, 3)), (given * z).mean((0, 2, 3)), d, r.square() + d.square()]
            of_both.append((torch.stack(means), values, given, z, r / std))
        now = (of_both[0][0] + of_both[1][0]) / 2
        moments += weight * (now - moments)
        _, values, given, z, slope = of_both[rank]
        first, product, z_mean, square = moments[:, :, None, None]
        fitted = first + (z - z_mean) * (product - first * z_mean) / (square - z_mean.square())
        a = values.clone().requires_grad_()
        layer(a).backward(given)
        torch.testing.assert_close(a.grad, (given - fitted) * slope[:, None, None])


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path: Path) -> None:
    xs, dys = data()
    expected = []
    for case in CASES:
        layer = build(BatchRenorm2d, case)
        whole = steps(layer, xs, dys, "dtype" in case, padding(case, xs))
        expected.append((whole, [b.clone() for b in layer.buffers()]))
    mp.spawn(work, args=(str(tmp_path), expected), nprocs=2)


def test_alone_it_is_the_plain_layer() -> None:
    xs, _ = data()
    plain, sync = BatchRenorm2d(3), SyncBatchRenorm(3)
    for x in xs:
        assert torch.equal(sync(x), plain(x))
    average_statistics_across_ranks(plain)  # does nothing
    assert torch.equal(sync.running_var, plain.running_var)
    with pytest.raises(ValueError, match="one value"):
        sync(torch.randn(1, 3))
