"""`trainer.precision: auto`: the machine's choice for a new run, the run's own for a resumed one."""

from pathlib import Path

import pytest
import torch
import yaml

from app import precision
from app.cli import main
from app.fit import run_training

HALF, FULL = "bf16-mixed", "32-true"


@pytest.fixture
def processor(monkeypatch: pytest.MonkeyPatch):
    """Says what the processor can do."""

    def has(bfloat16: bool) -> None:
        monkeypatch.setattr(precision, "_processor_has_bfloat16", lambda: bfloat16)

    return has


@pytest.mark.parametrize(
    ("accelerator", "gpu", "bfloat16", "chosen"),
    [
        ("auto", (9, 0), False, HALF),
        ("gpu", (8, 0), False, HALF),
        ("cuda", (7, 5), True, FULL),
        ("auto", None, True, HALF),
        ("auto", None, False, FULL),
        ("cpu", (9, 0), True, HALF),
        ("cpu", (9, 0), False, FULL),
        ("tpu", None, True, FULL),
    ],
)
def test_the_device_that_trains_decides(
    monkeypatch, processor, accelerator: str, gpu: tuple[int, int] | None, bfloat16: bool, chosen: str
) -> None:
    processor(bfloat16)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu is not None)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Some GPU")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: gpu)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert precision.fastest(accelerator)[0] == chosen


@pytest.mark.parametrize(
    ("flags", "chosen"), [(("amx_bf16",), True), (("avx512_bf16",), True), (("avx512_f", "avx2"), False)]
)
def test_emulated_bfloat16_does_not_count(monkeypatch, flags: tuple[str, ...], chosen: bool) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: dict.fromkeys(flags, True))
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: True)
    assert precision._processor_has_bfloat16() is (chosen and torch._C._has_mkldnn)


def test_a_run_keeps_its_precision(fit_options: list[str], tmp_path: Path, processor, capsys) -> None:
    """Also where another machine resumes it, under the config that leaves it open."""
    processor(True)
    run = run_training([*fit_options, "--compare=false"])
    assert run.trainer.precision == HALF
    assert f"precision {HALF}: this processor has fast bfloat16" in capsys.readouterr().out
    saved = tmp_path / "run" / "config.yaml"
    assert yaml.safe_load(saved.read_text())["trainer"]["precision"] == HALF

    processor(False)
    measured = run_training(["validate", *fit_options[1:]])
    assert measured.trainer.precision == FULL
    again = [*fit_options, "--compare=false", "--ckpt_path=last", "--trainer.max_epochs=3"]
    assert run_training(again).trainer.precision == HALF
    assert f"precision {HALF}: as the run began, although" in capsys.readouterr().out
    assert yaml.safe_load(saved.read_text())["trainer"]["precision"] == HALF

    assert run_training([*again, "--trainer.precision=32-true"]).trainer.precision == FULL
    assert "precision 32" not in capsys.readouterr().out


@pytest.mark.parametrize(("written", "begun"), [("null", FULL), ("32", "32"), ("16-mixed", "16-mixed")])
def test_what_a_run_began_with(tmp_path: Path, written: str, begun: str) -> None:
    (tmp_path / "config.yaml").write_text(f"trainer:\n  precision: {written}\n")
    assert precision.begun_with(str(tmp_path / "checkpoints/last.ckpt")) == begun


def test_without_a_config_nothing_is_known(tmp_path: Path) -> None:
    assert precision.begun_with(str(tmp_path / "checkpoints/last.ckpt")) is None


@pytest.mark.parametrize("content", ["trainer: [", "just text", "trainer: 3"])
def test_a_broken_config_is_one_line(fit_options: list[str], tmp_path: Path, capsys, content: str) -> None:
    checkpoint = tmp_path / "run/checkpoints/last.ckpt"
    checkpoint.parent.mkdir(parents=True)
    torch.save({"pytorch-lightning_version": "2.5.0"}, checkpoint)
    (tmp_path / "run/config.yaml").write_text(content)
    assert main([*fit_options, "--ckpt_path=last"]) == 2
    assert capsys.readouterr().err.startswith(f"kindred: {tmp_path / 'run/config.yaml'}: cannot be read")


def test_a_precision_plugin_decides(fit_options: list[str], processor) -> None:
    processor(True)
    plugin = "--trainer.plugins=lightning.pytorch.plugins.precision.DoublePrecision"
    run = run_training([*fit_options, plugin, "--compare=false", "--trainer.max_steps=1"])
    assert run.trainer.precision == "64-true"


def test_a_run_without_a_summary_does_not_print_its_precision(fit_options, processor, capsys) -> None:
    """The demo times a few steps in such a run before the run that trains."""
    processor(True)
    run_training(
        [*fit_options, "--compare=false", "--trainer.enable_model_summary=false", "--trainer.max_steps=1"]
    )
    assert "precision" not in capsys.readouterr().out
