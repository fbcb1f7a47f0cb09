"""torch.compile in training, torch.export and ONNX in evaluation."""

import copy
import io

import pytest
import torch
from torch import nn

from models.renorm import BatchRenorm1d, BatchRenorm2d, Ramp, RenormSchedule


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("moving", ["batch", "moving"])
@pytest.mark.slow
def test_compiled_training_equals_eager(moving) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), BatchRenorm2d(4, gradient_statistics=moving), nn.ReLU())
    twin = copy.deepcopy(network)
    schedules = [
        RenormSchedule(
            m,
            rmax=Ramp(1.0, 3.0, 0, 4),
            dmax=Ramp(0.0, 5.0, 0, 4),
            momentum=Ramp(0.5, 0.1, 0, 4),
            unit="steps",
        )
        for m in (network, twin)
    ]
    torch._dynamo.reset()
    compiled = torch.compile(network, fullgraph=True)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for _ in range(4):
            x = torch.randn(4, 3, 6, 6) * 2 + 1
            a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
            y, expected = compiled(a), twin(b)
            y.square().sum().backward()
            expected.square().sum().backward()
            torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-4)
            for p, q in zip(network.buffers(), twin.buffers(), strict=True):
                torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-5)
            for schedule in schedules:
                schedule.step()  # changes tensors: nothing is compiled again
    compiled.eval()
    torch.testing.assert_close(compiled(x), twin.eval()(x), rtol=1e-4, atol=1e-5)


def trained() -> nn.Module:
    torch.manual_seed(1)
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3), BatchRenorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 5), BatchRenorm1d(5)
    )
    for _ in range(3):
        network(torch.randn(8, 3, 6, 6))
    return network.eval()


def test_export_has_one_batch_norm_a_layer() -> None:
    network, x = trained(), torch.randn(2, 3, 6, 6)
    program = torch.export.export(network, (x,))
    assert torch.equal(program.module()(x), network(x))
    assert sum("batch_norm" in str(node.target) for node in program.graph.nodes) == 2
    saved = io.BytesIO()
    torch.export.save(program, saved)
    saved.seek(0)
    assert torch.equal(torch.export.load(saved).module()(x), network(x))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_onnx_runtime_agrees() -> None:
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    network, x = trained(), torch.randn(2, 3, 6, 6)
    program = torch.onnx.export(network, (x,), dynamo=True, verbose=False)
    assert program is not None
    session = runtime.InferenceSession(program.model_proto.SerializeToString())
    (y,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(y), network(x), rtol=1e-5, atol=1e-5)
