"""What the fused kernels do beyond the other routes, and how they are turned on."""

import copy
import hashlib
import importlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from models.renorm import BatchRenorm1d, BatchRenorm2d, batch_renorm, native

LAYOUTS = [torch.contiguous_format, torch.channels_last]


def close(a: Tensor, b: Tensor) -> None:
    largest = float(b.detach().abs().max()) if b.numel() else 0.0
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5 * max(largest, 1.0))


def both(layer: nn.Module, shape: tuple[int, ...], layout: torch.memory_format, **settings: object):
    """Outputs and gradients of one input, by the fused kernels and by the others."""
    torch.manual_seed(7)
    with torch.no_grad():
        layer.weight.normal_()
        layer.bias.normal_()
    x = (torch.randn(shape) * 2 + 3).contiguous(memory_format=layout)
    residual, dy = torch.randn(shape), torch.randn(shape)
    results = []
    for fuse in (True, False):
        (native.build if fuse else native.disable)()
        twin = copy.deepcopy(layer)
        a, b = x.clone().requires_grad_(), residual.clone().requires_grad_()
        y = twin(a, residual=b if "residual" in settings else None, relu="relu" in settings)
        y.backward(dy)
        results.append([y, a.grad, b.grad, twin.weight.grad, twin.bias.grad, *twin.buffers()])
    return results


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("settings", [["relu"], ["residual"], ["relu", "residual"]], ids="+".join)
@pytest.mark.parametrize("kind", ["batch", "moving"])
def test_relu_and_residual_equal_the_operations_apart(fused, layout, settings, kind) -> None:
    layer = BatchRenorm2d(21, rmax=1.1, dmax=0.2, gradient_statistics=kind)
    for a, b in zip(*both(layer, (6, 21, 5, 7), layout, **dict.fromkeys(settings)), strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            close(a, b)


@pytest.mark.parametrize(
    ("shape", "layout"),
    [
        ((2, 3, 90, 95), torch.contiguous_format),  # planes larger than a piece
        ((300, 2, 3, 5), torch.contiguous_format),  # several pieces of many planes
        ((40, 300, 5, 5), torch.channels_last),  # several chunks of rows, wider than a tile
        ((37, 40, 13, 13), torch.channels_last),
        ((4, 1, 9, 9), torch.channels_last),
        ((7, 5, 1, 1), torch.contiguous_format),
    ],
)
def test_every_way_of_cutting_the_input(fused, shape, layout) -> None:
    for a, b in zip(*both(BatchRenorm2d(shape[1]), shape, layout, relu=None), strict=True):
        if a is not None:
            close(a, b)


def test_wide_rows(fused) -> None:
    for a, b in zip(*both(BatchRenorm1d(600), (130, 600), torch.contiguous_format), strict=True):
        if a is not None:
            close(a, b)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_results_do_not_depend_on_the_number_of_threads(fused, layout) -> None:
    x = torch.randn(16, 64, 12, 12).contiguous(memory_format=layout)
    results = []
    before = torch.get_num_threads()
    for threads in (1, 2):
        torch.set_num_threads(threads)
        a = x.clone().requires_grad_()
        y = BatchRenorm2d(64)(a, relu=True)
        y.backward(x.cos())
        results.append((y, a.grad))
    torch.set_num_threads(before)
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_statistics_are_exact_far_from_zero(fused, layout) -> None:
    x = (torch.randn(64, 3, 20, 20, dtype=torch.float64) + 1e3).float().contiguous(memory_format=layout)
    layer = BatchRenorm2d(3, momentum=1.0, eps=0.0)
    layer(x)
    torch.testing.assert_close(layer.running_mean.double(), x.double().mean((0, 2, 3)), rtol=1e-7, atol=0)
    variance = x.double().var((0, 2, 3), correction=0)
    torch.testing.assert_close(layer.running_var.double(), variance, rtol=1e-5, atol=0)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("adds", [False, True])
def test_gradcheck(fused, layout, relu, adds) -> None:
    """With limits at which r and d are 1 and 0, so that finite differences do not move them."""
    torch.manual_seed(3)
    layer = BatchRenorm2d(3, momentum=0.0, rmax=1.0, dmax=0.0, dtype=torch.float64)
    x, residual = (
        torch.randn(4, 3, 2, 2, dtype=torch.float64).contiguous(memory_format=layout).requires_grad_()
        for _ in range(2)
    )

    def run(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        added = residual if adds else None
        y = torch.func.functional_call(
            layer, {"weight": weight, "bias": bias}, (x,), {"residual": added, "relu": relu}
        )
        return y if adds else y + residual

    weight = torch.randn(3, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(run, (x, residual, weight, bias))
    assert torch.autograd.gradgradcheck(run, (x, residual, weight, bias))


def test_nothing_is_hidden_from_what_follows(fused) -> None:
    """Values that are not numbers pass a ReLU, forwards and backwards, as they do torch's."""
    x = torch.randn(8, 3, 4, 4)
    x[0, 1, 0, 0] = torch.nan
    layer = BatchRenorm2d(3)
    a = x.requires_grad_()
    y = layer(a, relu=True)
    y.sum().backward()
    assert y[:, 1].isnan().all()
    assert y[:, [0, 2]].isfinite().all()
    assert layer.weight.grad[1].isnan()


def test_monitor_counts_the_same(fused) -> None:
    x, shares = torch.randn(32, 8) * torch.linspace(0.1, 9, 8) + 2, []
    for turn_on in (native.build, native.disable):
        turn_on()
        layer = BatchRenorm1d(8, rmax=2.0, dmax=1.5)
        layer.monitor = True
        layer(x)
        shares.append(layer.clipped.tolist())
    assert shares[0] == shares[1]
    assert 0 < shares[0][0] < 1


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing(fused, reentrant) -> None:
    torch.manual_seed(5)
    # Without a bias: its gradient before a normalization is rounding alone.
    plain = nn.Sequential(nn.Conv2d(3, 3, 1, bias=False), BatchRenorm2d(3, momentum=0.5), nn.Sigmoid())
    again = copy.deepcopy(plain)
    x = torch.randn(8, 3, 6, 6)
    for _ in range(2):
        plain(x.requires_grad_()).square().sum().backward()
        checkpoint(again, x, use_reentrant=reentrant).square().sum().backward()
    for p, q in zip(plain.parameters(), again.parameters(), strict=True):
        close(p.grad, q.grad)
    for p, q in zip(plain.buffers(), again.buffers(), strict=True):
        close(p, q)


def test_autograd_hears_of_changed_statistics(fused) -> None:
    layer = BatchRenorm2d(3)
    layer.frozen = True
    x = torch.randn(4, 3, 2, 2, requires_grad=True)
    y = layer(x)
    layer.frozen = False
    layer(x)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compiled_code_takes_its_own_way(fused) -> None:
    graphs = []

    def backend(graph: torch.fx.GraphModule, _: list[Tensor]):
        graphs.append(graph.graph)
        return graph.forward

    torch._dynamo.reset()
    torch.compile(BatchRenorm2d(3), backend=backend, fullgraph=True)(torch.randn(2, 3, 4, 4), relu=True)
    assert len(graphs) == 1
    assert not [n for n in graphs[0].nodes if "batch_renorm_native" in str(n.target)]


def test_vectors_of_another_length_are_refused(fused) -> None:
    x, three, four = torch.randn(5, 4), torch.zeros(3), torch.zeros(4)
    with pytest.raises(RuntimeError, match="vector of 4"):
        batch_renorm(x, three, three, training=True)
    with pytest.raises(RuntimeError, match="vector of 4"):
        batch_renorm(x, four, four + 1, weight=three, bias=three, training=True)


def test_importing_compiles_and_turns_on_nothing_unasked(compiled, monkeypatch) -> None:
    for asked in ("1", "0", None):
        monkeypatch.delenv("KINDRED_RENORM_NATIVE", raising=False)
        if asked:
            monkeypatch.setenv("KINDRED_RENORM_NATIVE", asked)
        assert importlib.reload(native).enabled() is (asked == "1")


def test_training_turns_on_what_nobody_has_turned_off(compiled, monkeypatch) -> None:
    native.disable()
    native.try_build()
    assert not native.enabled()
    importlib.reload(native)
    monkeypatch.setenv("KINDRED_RENORM_NATIVE", "0")
    native.try_build()
    assert not native.enabled()
    monkeypatch.delenv("KINDRED_RENORM_NATIVE")
    native.try_build()
    assert native.enabled()


def test_no_compiler_is_one_line(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    with pytest.raises(RuntimeError, match=r"no C\+\+ compiler found[^\n]*$"):
        native.compile_library()
    assert not list(tmp_path.iterdir())


def test_a_compiler_that_fails_is_one_line(monkeypatch, tmp_path) -> None:
    compiler = tmp_path / "bad++"
    compiler.write_text("#!/bin/sh\necho 'renorm.cpp:1: error: no' >&2\necho more >&2\nexit 1\n")
    compiler.chmod(0o700)
    monkeypatch.setenv("CXX", str(compiler))
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "cache"))
    with pytest.raises(RuntimeError, match=r"could not compile[^\n]*error: no$"):
        native.compile_library()


@pytest.fixture
def copier(compiled, tmp_path: Path) -> Path:
    """A compiler that is fast: it copies the library that the cache has, and notes that it was called."""
    compiler = tmp_path / "copy++"
    compiler.write_text(
        f"#!/bin/sh\necho called >> {tmp_path}/calls\nsleep 1\n"
        f'while [ "$1" != -o ]; do shift; done\ncp {native.compile_library()} "$2"\n'
    )
    compiler.chmod(0o700)
    return compiler


def calls(copier: Path) -> int:
    noted = copier.parent / "calls"
    return len(noted.read_text().split()) if noted.exists() else 0


def train_in_a_process(**environment: object) -> subprocess.Popen[str]:
    """A process that asks for the kernels as training does, takes a step, and prints whether they are on."""
    code = """if True:
        import torch
        from models.renorm import BatchRenorm1d, native
        native.try_build()
        BatchRenorm1d(3)(torch.randn(4, 3, requires_grad=True)).sum().backward()
        print("enabled" if native.enabled() else "disabled")
    """
    unset = {key: value for key, value in os.environ.items() if key != "KINDRED_RENORM_NATIVE"}
    return subprocess.Popen(
        [sys.executable, "-c", code],
        env={**unset, "PYTHONPATH": os.pathsep.join(sys.path), **{k: str(v) for k, v in environment.items()}},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def outcome(process: subprocess.Popen[str]) -> tuple[str, list[str]]:
    printed, said = process.communicate(timeout=200)
    assert process.returncode == 0, said
    return printed.strip(), said.splitlines()


def whole(content: bytes) -> str:
    """The name in the cache of a file that is what was once written."""
    key = native.compile_library().stem.split("-")[0]
    return f"{key}-{hashlib.sha256(content).hexdigest()[:16]}.so"


def truncated(library: Path) -> tuple[str, bytes]:
    return library.name, library.read_bytes()[:200_000]


def of_other_bytes(library: Path) -> tuple[str, bytes]:
    content = bytearray(library.read_bytes())
    content[-300_000:-200_000] = bytes(100_000)
    return library.name, bytes(content)


def unloadable(library: Path) -> tuple[str, bytes]:
    """As of another kind of processor: whole, but not for here."""
    content = bytearray(library.read_bytes())
    content[18:20] = b"\xf3\x00"  # RISC-V
    return whole(bytes(content)), bytes(content)


@pytest.mark.parametrize("damage", [truncated, of_other_bytes, unloadable])
def test_a_library_that_does_not_fit_is_made_anew(
    copier, tmp_path, damage: Callable[[Path], tuple[str, bytes]]
) -> None:
    folder = tmp_path / "cache" / "batch_renorm"
    folder.mkdir(parents=True)
    name, content = damage(native.compile_library())
    (folder / name).write_bytes(content)
    enabled, said = outcome(train_in_a_process(CXX=copier, TORCH_EXTENSIONS_DIR=folder.parent))
    assert enabled == "enabled"
    assert len(said) == 1
    assert said[0].startswith("compiling the Batch Renorm kernels")
    assert calls(copier) == 1


def test_a_cache_that_cannot_be_written_costs_no_more_than_time(copier, tmp_path) -> None:
    (tmp_path / "file").touch()
    enabled, said = outcome(train_in_a_process(CXX=copier, TORCH_EXTENSIONS_DIR=tmp_path / "file"))
    assert enabled == "enabled"
    assert len(said) == 1
    assert "for this process alone" in said[0]
    assert calls(copier) == 1


def test_without_a_compiler_torch_does_the_work(tmp_path) -> None:
    enabled, said = outcome(train_in_a_process(PATH="", CXX="", TORCH_EXTENSIONS_DIR=tmp_path))
    assert enabled == "disabled"
    assert len(said) == 1
    assert said[0].startswith("Batch Renorm goes without its fused kernels: no C++ compiler found")


def test_of_processes_that_ask_at_once_one_compiles(copier, tmp_path) -> None:
    both_of_them = [train_in_a_process(CXX=copier, TORCH_EXTENSIONS_DIR=tmp_path / "cache") for _ in range(2)]
    assert [outcome(process)[0] for process in both_of_them] == ["enabled"] * 2
    assert calls(copier) == 1
