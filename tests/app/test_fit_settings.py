"""What people put into the config of `kindred fit`: callbacks, loggers, schedulers, own classes, typos."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from app.cli import main
from app.config_errors import decisive

ROOT = Path(__file__).parents[2]
CHECKPOINT = "lightning.pytorch.callbacks.ModelCheckpoint"
EVERY = f"{{class_path: {CHECKPOINT}, init_args: {{every_n_train_steps: 2, save_top_k: -1}}}}"
LAST = f"{{class_path: {CHECKPOINT}, init_args: {{save_last: true}}}}"
STOP = "{class_path: EarlyStopping, init_args: {monitor: val/recall@1, mode: max, patience: 9}}"
AVERAGE = "{class_path: models.callbacks.averaging.MovingAverage, init_args: {decay: 3}}"
FIGURES = "val/map@r, val/queries, val/r_precision, val/recall@1"


def refused(capsys: pytest.CaptureFixture[str], options: list[str]) -> str:
    capsys.readouterr()
    assert main(options) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    return line.removeprefix("kindred: ")


@pytest.mark.parametrize(
    "callbacks",
    [
        "models.callbacks.collapse.CollapseMonitor",
        "{class_path: models.callbacks.collapse.CollapseMonitor}",
        f"{{class_path: {CHECKPOINT}, init_args: {{monitor: val/recall@1, mode: max}}}}",
        f"[{CHECKPOINT}]",
        f"[{EVERY}, {LAST}, {STOP}]",
    ],
)
def test_callbacks_one_or_several(fit_options: list[str], tmp_path: Path, callbacks: str) -> None:
    assert main([*fit_options, "--compare=false", f"--trainer.callbacks={callbacks}"]) == 0
    checkpoint = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 6
    given = [key for key in checkpoint["callbacks"] if key.startswith(("ModelCheckpoint", "EarlyStopping"))]
    assert len(given) == callbacks.count("ModelCheckpoint") + callbacks.count("EarlyStopping")
    assert (tmp_path / "run" / "bundle").is_dir()


@pytest.mark.parametrize("kind", ["CSVLogger", "lightning.pytorch.loggers.TensorBoardLogger"])
def test_a_logger_of_ones_own(fit_options: list[str], tmp_path: Path, kind: str) -> None:
    logger = f"{{class_path: {kind}, init_args: {{save_dir: {tmp_path / 'mine'}}}}}"
    assert main([*fit_options, "--compare=false", f"--trainer.logger={logger}"]) == 0
    assert any(path.is_file() for path in (tmp_path / "mine").rglob("*"))
    assert (tmp_path / "run" / "bundle").is_dir()


@pytest.mark.parametrize(
    ("scheduler", "interval", "rate"),
    [
        ("{class_path: torch.optim.lr_scheduler.StepLR, init_args: {step_size: 1}}", None, 1e-5),
        ("{class_path: torch.optim.lr_scheduler.StepLR, init_args: {step_size: 3}}", "step", 1e-5),
        ("{class_path: torch.optim.lr_scheduler.ReduceLROnPlateau, init_args: {mode: max}}", None, 1e-3),
        (
            "{class_path: lightning.pytorch.cli.ReduceLROnPlateau, init_args: {monitor: val/recall@1}}",
            None,
            1e-3,
        ),
    ],
)
def test_schedulers_from_a_config(
    fit_options: list[str], tmp_path: Path, scheduler: str, interval: str | None, rate: float
) -> None:
    options = [f"--model.scheduler={scheduler}", "--compare=false"]
    if interval:
        options.append(f"--model.scheduler_interval={interval}")
    assert main([*fit_options, *options]) == 0
    checkpoint = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["optimizer_states"][0]["param_groups"][0]["lr"] == pytest.approx(rate)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--monitor=val/mpa@r"], FIGURES),
        (["--monitor=recall@1"], FIGURES),
        (
            ["--trainer.callbacks={class_path: EarlyStopping, init_args: {monitor: val/recall}}"],
            "monitor 'val/recall': no such validation metric; choose one of val/embedding_variance, val/ex",
        ),
        (
            [
                "--model.scheduler={class_path: torch.optim.lr_scheduler.ReduceLROnPlateau}",
                "--model.scheduler_monitor=val/recall",
            ],
            FIGURES,
        ),
    ],
)
def test_a_figure_that_there_is_none_of_is_told_before_the_first_step(
    fit_options: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    message: str,
) -> None:
    assert message in refused(capsys, [*fit_options, *options])
    assert not (tmp_path / "run" / "checkpoints" / "last.ckpt").exists()


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--trainer.logger=CometLogger", "pip install -U 'comet-ml"),
        ("--trainer.max_epochs=many", "trainer.max_epochs: expected int, found many"),
        ("--model.sise=3", "Option 'sise' is not accepted"),
        ("--data.imagesize=3", "Option 'imagesize' is not accepted; did you mean image_size?"),
        ("--trainr.max_steps=3", "unrecognized arguments: --trainr.max_steps=3; did you mean trainer?"),
        ("--trainer.max_steps=many", "trainer.max_steps: expected int, found many"),
        ("--data=my-images", "data: my-images is no class; did you mean --data.source=my-images?"),
        ("--model=resnet18", "model: resnet18 is no class; did you mean --model.backbone=resnet18?"),
        ("--data.cache=ram", "data.cache: expected 'none' or 'memory' or 'disk', found 'ram'"),
        ("--trainer.precision=8", "or 'bf16-mixed' or '32-true' or '64-true'"),
        ("--model.embedding_dim=x", "embedding_dim: expected int, found 'x'"),
        ("--model.optimizer=Adm", "Adm"),
        ("--model.scheduler=StepLR", "the following arguments are required: step_size"),
        ("--model.optimizer={class_path: torch.optim.SGD, init_args: {lr: -1}}", "learning rate"),
        ("--trainer.callbacks+=Nothing", "Nothing"),
        (f"--trainer.callbacks+={AVERAGE}", "decay 3.0 is outside [0, 1)"),
        ("--trainer.devices=0", "Trainer(devices='0')"),
        ("--trainer.strategy=ddpp", "ddpp"),
        ("--trainer.val_check_interval=100", "val_check_interval"),
        (f"--trainer.callbacks=[{CHECKPOINT}, {CHECKPOINT}]", "more than one stateful callback"),
    ],
)
def test_what_is_wrong_with_a_setting_is_one_short_line(
    fit_options: list[str], capsys: pytest.CaptureFixture[str], option: str, message: str
) -> None:
    line = refused(capsys, [*fit_options, option])
    assert message in line
    assert len(line) < 450
    assert "Subtypes" not in line
    assert "NestedArg" not in line


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "config: it holds no settings"),
        (b"# data: {source: x}\n", "config: it holds no settings"),
        (b"- a\n- b\n", "config: it holds no settings"),
        (b"some text\n" * 999, "config: it holds no settings"),
        (
            b"data:\n\tsource: x\n",
            "Problems parsing config: while scanning for the next token; found charact",
        ),
        (b"data: [1, 2\n", "Problems parsing config: while parsing a flow sequence"),
        (b"data:\n  source: im\xe9\n", "config: it is not UTF-8"),
        (b"\x89PNG\r\n", "config: it is not UTF-8"),
        (b"trainer:\n  max_epoochs: 1\n", "'trainer.max_epoochs'; did you mean max_epochs?"),
        (b"data:\n- source: x\n", "data: expected settings, found [{'source': 'x'}]"),
        (b"data: my-images\n", "did you mean --data.source=my-images?"),
        (b"model:\n  backbone: conv4\n", "give --data.source, or a --config with them"),
    ],
)
def test_what_is_wrong_with_a_config_is_one_short_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes, message: str
) -> None:
    (tmp_path / "mine.yaml").write_bytes(content)
    line = refused(capsys, ["fit", f"--config={tmp_path / 'mine.yaml'}"])
    assert message in line
    assert len(line) < 250


@pytest.mark.parametrize("name", ["[new", "{a", "@home", "%1", "`x`", '"a'])
def test_folders_whose_names_are_no_yaml(
    fit_options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    line = refused(capsys, [*fit_options, f"--data.source={name}"])
    assert line.startswith(f"{name}: no such folder")


def test_a_bug_keeps_its_traceback(fit_options: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ValueError("a bug")

    monkeypatch.setattr("models.module.MetricLearner.training_step", broken)
    with pytest.raises(ValueError, match="a bug"):
        main(fit_options)


def test_the_decisive_part_of_a_nested_message() -> None:
    message = """Parser key "model":
      Does not validate against any of the Union subtypes
      Subtypes: [<class 'models.module.MetricLearner'>, <class 'NoneType'>]
      Errors:
        - Problem with given class_path 'models.module.MetricLearner':
            Parser key "ks":
              Expected a <class 'list'>
        - Expected a <class 'NoneType'>
      Given value type: <class 'jsonargparse._util.NestedArg'>
      Given value: NestedArg(key='ks', val={'a': 1})"""
    assert decisive(message) == "model.ks: expected list, found {'a': 1}"
    assert decisive("unrecognized arguments: --x") == "unrecognized arguments: --x"


OWN_CLASSES = """
import lightning
from torch import nn

class Backbone(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Sequential(nn.Conv2d(3, 8, 5, 4), nn.BatchNorm2d(8))

    def forward(self, images):
        return self.layer(images).relu()

class Told(lightning.Callback):
    def on_train_end(self, trainer, module):
        print("told", type(module.network.backbone).__name__)
"""


@pytest.mark.slow
def test_classes_in_the_current_folder(fit_options: list[str], tmp_path: Path) -> None:
    """Beside folders whose names are those of our packages."""
    mine = tmp_path / "mine"
    for package in ("data", "models", "app"):
        (mine / package).mkdir(parents=True)
        (mine / package / "__init__.py").write_text("raise RuntimeError('hides the package')")
    (mine / "own.py").write_text(OWN_CLASSES)
    own = [
        "--model.backbone=own.Backbone",
        "--model.trust_code=true",
        "--trainer.callbacks=own.Told",
    ]
    options = [option.replace("configs/", f"{ROOT}/configs/") for option in fit_options]
    evaluate = ["evaluate", f"--bundle={tmp_path / 'run' / 'bundle'}", f"--data={tmp_path / 'images'}"]
    # The second command, too, has to find the folder and the class by itself.
    code = f"""
import os, sys
sys.path[0] = {str(ROOT)!r}
from app.cli import main
assert main({[*options, *own]!r}) == 0
sys.path.remove(os.getcwd())
del sys.modules["own"]
assert main({[*evaluate, "--trust-code", "--no-report"]!r}) == 0
"""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=mine, capture_output=True, text=True, check=False, timeout=200)
    assert done.returncode == 0, done.stderr
    assert "told Backbone" in done.stdout


def test_the_summary_and_the_bar_say_what_there_is(
    fit_options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    endless = ["--trainer.max_epochs=-1", "--trainer.max_steps=4", "--trainer.enable_progress_bar=true"]
    assert main([*fit_options, *endless, "--compare=false"]) == 0
    printed = capsys.readouterr().out
    assert "EmbeddingNetwork" in printed
    assert "parameters, of which" in printed
    assert "Epoch 1" in printed
    for word in ("/-2", "FLOPs", "eval mode"):
        assert word not in printed


def test_a_loss_with_parts_of_its_own_leaves_a_checkpoint_without_code(
    fit_options: list[str], tmp_path: Path
) -> None:
    parts = "{distance: {class_path: pytorch_metric_learning.distances.CosineSimilarity}}"
    loss = f"{{class_path: pytorch_metric_learning.losses.TripletMarginLoss, init_args: {parts}}}"
    assert main([*fit_options, f"--model.loss={loss}", "--compare=false"]) == 0
    checkpoint = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert "CosineSimilarity" in checkpoint["hyper_parameters"]["loss"]["init_args"]["distance"]["class_path"]
    assert (tmp_path / "run" / "bundle").is_dir()


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--trainer.check_val_every_n_epoch=0", "trainer.limit_val_batches: 0"),
        ("--trainer.val_check_interval=0", "trainer.limit_val_batches: 0"),
        ("--data.image_size=5", "too small for the backbone: raise data.image_size"),
        ("--data.source=", "the source is empty"),
        (
            "--trainer.precision=16-true",
            "the CPU cannot train this network in it; choose bf16-mixed or 32-tr",
        ),
        (
            "--trainer.precision=bf16-true",
            "trainer.precision bf16-true: the CPU cannot train this network in it",
        ),
        (
            "--trainer.callbacks={class_path: EarlyStopping, init_args: {monitor: val/recall@1}}",
            "EarlyStopping would take the lowest val/recall@1 for the best: set mode: max",
        ),
        (
            f"--trainer.callbacks={{class_path: {CHECKPOINT}, init_args: {{monitor: val/map@r}}}}",
            "ModelCheckpoint would take the lowest val/map@r for the best: set mode: max",
        ),
    ],
)
def test_settings_that_would_go_wrong_later(
    fit_options: list[str], capsys: pytest.CaptureFixture[str], option: str, message: str
) -> None:
    assert message in refused(capsys, [*fit_options, option])


def test_gradients_of_a_fused_optimizer_are_clipped_under_bfloat16(
    fit_options: list[str], tmp_path: Path
) -> None:
    options = [
        "--trainer.precision=bf16-mixed",
        "--trainer.gradient_clip_val=1e-30",
        "--model.optimizer={class_path: torch.optim.SGD, init_args: {lr: 1, weight_decay: 0, fused: true}}",
        "--compare=false",
    ]
    assert main([*fit_options, *options]) == 0
    first, last = (
        torch.load(tmp_path / "run" / "checkpoints" / f"{name}.ckpt", weights_only=True)["state_dict"]
        for name in ("first", "last")
    )
    name = "network.head.weight"  # a step of rate 1 would change it, and a clipped one does not
    assert torch.equal(first[name], last[name])


def test_a_diverged_run_with_a_fitted_head_is_one_line(
    fit_options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    options = [
        "--trainer.callbacks=models.callbacks.pca_head.PCAHead",
        "--model.embedding_dim=16",
        "--model.optimizer={class_path: torch.optim.SGD, init_args: {lr: 1.0e+30}}",
    ]
    assert "lower the learning rate" in refused(capsys, [*fit_options, *options])
