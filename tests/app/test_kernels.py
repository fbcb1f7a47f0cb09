"""Training asks for Batch Renormalization's kernels, where it has a use for them."""

import pytest

from app.fit import run_training
from models.renorm import native


@pytest.mark.parametrize(
    ("options", "asked"),
    [
        ([], True),
        (["--model.normalization=batch"], False),
        (["--model.normalization_args={frozen: true}"], False),
    ],
)
def test_a_fit_asks_for_the_kernels(fit_options: list[str], monkeypatch, options, asked) -> None:
    calls: list[int] = []
    monkeypatch.setattr(native, "try_build", lambda: calls.append(1))
    run_training([*fit_options, *options, "--trainer.max_steps=1", "--compare=false"])
    assert bool(calls) is asked
