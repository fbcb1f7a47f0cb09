import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml

from app.cli import main
from app.export import bundle_from_checkpoint
from models.bundle import Bundle
from models.renorm import BatchRenorm2d
from tests.forked import Forked

ROOT = Path(__file__).parents[2]


def error_of(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> str:
    """What the command prints when it refuses its input: exactly one line."""
    assert main(arguments) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("kindred: ")
    return lines[0]


def test_fit_leaves_checkpoints_logs_config_and_a_bundle(
    fit_options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(fit_options) == 0
    assert "waiting for data: first epoch" in capsys.readouterr().out
    run = tmp_path / "run"
    assert sorted(path.name for path in run.iterdir()) == ["bundle", "checkpoints", "config.yaml", "logs"]
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == [
        "best.ckpt",
        "first.ckpt",
        "last.ckpt",
    ]
    assert "val/recall@1" in next(run.glob("logs/csv/*/metrics.csv")).read_text()
    bundle = Bundle.load(run / "bundle", device="cpu")
    assert main(["fit", f"--config={run / 'config.yaml'}", "--overwrite"]) == 0, "the run can be repeated"
    assert bundle.preprocess.size == 28
    assert len(bundle.info["split_hash"]) == 64
    assert bundle.fingerprint == bundle_from_checkpoint(run / "checkpoints" / "best.ckpt").fingerprint


def test_a_run_is_not_written_over_by_accident(
    fit_options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(fit_options) == 0
    capsys.readouterr()
    assert "holds a run already; continue it with --ckpt_path last" in error_of(capsys, fit_options)
    assert main([*fit_options, "--overwrite"]) == 0
    assert main([*fit_options, "--ckpt_path=last", "--trainer.max_epochs=3"]) == 0


def test_test_and_validate_measure_the_best_checkpoint(
    fit_options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(fit_options) == 0
    capsys.readouterr()
    options = [option for option in fit_options[1:] if option != "--overwrite"]
    assert main(["test", *options]) == 0
    assert "test/recall@1" in capsys.readouterr().out
    checkpoint = (
        next(Path(o.removeprefix("--run=")) for o in options if o.startswith("--run=")) / "checkpoints"
    )
    assert main(["validate", *options, f"--ckpt_path={checkpoint / 'best.ckpt'}"]) == 0
    assert "val/recall@1" in capsys.readouterr().out


def test_the_bundle_has_the_fitted_head(
    fit_options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    callback = "--trainer.callbacks+=models.callbacks.pca_head.PCAHead"
    assert "128 exceeds the backbone's 64 features" in error_of(capsys, [*fit_options, callback])
    # What fit and validate print differs in its last digits where only one of them takes bfloat16.
    fit_options.append("--trainer.precision=32-true")
    options = [*fit_options, callback, "--model.embedding_dim=8", "--overwrite"]
    assert main(options) == 0
    run = tmp_path / "run"
    trained = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)
    directions = trained["callbacks"]["PrincipalHead"]["directions"]
    head = Bundle.load(run / "bundle", device="cpu").network.head
    assert torch.equal(head.weight, directions)
    assert not torch.equal(head.weight, trained["state_dict"]["network.head.weight"])
    capsys.readouterr()
    validate = ["validate", *options[1:-1], f"--ckpt_path={run / 'checkpoints' / 'best.ckpt'}"]
    assert main(validate) == 0
    variance = trained["kindred"]["metrics"]["val/embedding_variance"]
    assert f"{variance:.6f}"[:7] in capsys.readouterr().out
    assert main([*options[:-1], "--ckpt_path=last", "--trainer.max_epochs=3"]) == 0


@pytest.mark.slow
def test_two_processes_train_one_model(fit_options: list[str], tmp_path: Path) -> None:
    """Lightning starts the second one, with the command line of the first."""
    several = [
        "--config=configs/trainer/ddp.yaml",
        "--trainer.devices=2",
        "--model.normalization=sync_renorm",
        "--model.embedding_dim=8",
        "--data.classes_per_batch=2",
        "--trainer.callbacks+=models.callbacks.pca_head.PCAHead",
    ]
    command = [sys.executable, "-m", "app", *fit_options, *several]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    trained = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert trained["global_step"] == 6
    assert trained["kindred"]["metrics"]["val/queries"] == 16
    assert Bundle.load(tmp_path / "run" / "bundle", device="cpu").dim == 8


def wait_for(path: Path, process: Forked) -> None:
    for _ in range(2400):
        if path.exists():
            return
        assert process.running, process.err
        time.sleep(0.05)
    raise AssertionError(f"{path} did not appear")


@pytest.mark.slow
def test_killed_run_resumes_where_it_was(
    fit_options: list[str], tmp_path: Path, start_kindred: Callable[..., Forked]
) -> None:
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    options = [*fit_options, "--save_seconds=0", "--trainer.max_epochs=100000"]
    process = start_kindred(options)
    wait_for(last, process)
    process.send(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    step = torch.load(last, weights_only=True)["global_step"]
    assert main([*fit_options, "--ckpt_path=last", f"--trainer.max_epochs={step // 3 + 2}"]) == 0
    assert torch.load(last, weights_only=True)["global_step"] == 3 * (step // 3 + 2)


@pytest.mark.slow
def test_interrupted_run_leaves_a_checkpoint_and_a_bundle(
    fit_options: list[str], tmp_path: Path, start_kindred: Callable[..., Forked]
) -> None:
    run = tmp_path / "run"
    process = start_kindred([*fit_options, "--save_seconds=0", "--trainer.max_epochs=100000"])
    wait_for(run / "checkpoints" / "last.ckpt", process)
    process.send(signal.SIGINT)
    assert process.wait() == 130, process.err
    assert process.err.strip().splitlines()[-1] == "kindred: interrupted"
    assert "Traceback" not in process.err
    assert "bundle written" in process.out
    assert Bundle.load(run / "bundle", device="cpu").dim == 128


def test_broken_images_are_named_and_skipped(
    fit_options: list[str], image_folder: Path, truncated_jpeg: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    for folder in image_folder.iterdir():
        (folder / "broken.jpg").write_bytes(truncated_jpeg)
    assert main(fit_options) == 0
    assert "broken.jpg" in caplog.text


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--data.source=nowhere"], "nowhere"),
        (["--data.classes_per_batch=0"], "classes_per_batch"),
        (
            ["--data.small_classes=error", "--data.samples_per_class=9"],
            "samples_per_class",
        ),
        (["--data.sise=3"], "sise"),
        (["--model.normalization=nothing"], "normalization"),
        (["--model.backbone=resnet19"], "resnet19"),
        (['--model.backbone_args={"num_pools": 9}'], "num_pools is 0 to 4"),
        (['--model.tta=[{"degrees": 400}]'], "degrees"),
        (["--trainer.max_epochs=many"], "max_epochs"),
        (["--ckpt_path=last"], "no such checkpoint"),
        (["--monitor=test/recall@1"], "leak"),
        (["--unknown=1"], "unknown"),
        (["--config=configs/none.yaml"], "none.yaml"),
    ],
)
def test_bad_input_is_one_line(
    fit_options: list[str], capsys: pytest.CaptureFixture[str], extra: list[str], message: str
) -> None:
    assert message in error_of(capsys, [*fit_options, *extra])


def test_one_class_is_refused(
    fit_options: list[str], tmp_path: Path, image_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    only = tmp_path / "only"
    only.mkdir()
    (image_folder / "ring").rename(only / "ring")
    assert "class" in error_of(capsys, [*fit_options, f"--data.source={only}"])


@pytest.mark.parametrize("name", ["table.csv", "table.parquet", "images.zip"])
def test_a_file_as_source_is_named_not_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    """Its text would pass for a YAML value."""
    source = tmp_path / name
    source.write_text("path,label\na.png,a\n")
    with pytest.raises(SystemExit) as end:
        main(["fit", "--config=configs/folder.yaml", f"--data.source={source}", "--print_config"])
    assert end.value.code == 0
    assert yaml.safe_load(capsys.readouterr().out)["data"]["source"] == str(source)


def test_print_config(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["fit", "--config=configs/folder.yaml", "--print_config"])
    assert end.value.code == 0
    assert "backbone: timm.tf_efficientnet_lite0" in capsys.readouterr().out


def test_bundle_info_is_plain_json(fit_options: list[str], image_folder: Path, tmp_path: Path) -> None:
    assert main([*fit_options, "--trainer.precision=32-true"]) == 0  # as the evaluation
    bundle = tmp_path / "run" / "bundle"
    info = json.loads((bundle / "bundle.json").read_text())["info"]
    options = [f"--data={image_folder}", "--split=val", f"--out={tmp_path / 'out'}", "--no-report"]
    assert main(["evaluate", f"--bundle={bundle}", "--no-calibrate", *options]) == 0
    measured = json.loads((tmp_path / "out" / "results.json").read_text())["models"][0]["metrics"]
    for name in ("recall@1", "map@r"):
        assert info["metrics"][f"val/{name}"] == pytest.approx(measured[name], abs=1e-6)


def test_a_network_of_timm_goes_all_the_way(fit_options: list[str], tmp_path: Path) -> None:
    """Its normalization holds an activation, and its names in the bundle are those after the conversion."""
    backbone = ["--model.backbone=timm.mobilenetv3_small_050", "--data.image_size=32"]
    assert main([*fit_options, *backbone, "--trainer.max_epochs=1"]) == 0
    bundle = Bundle.load(tmp_path / "run" / "bundle", device="cpu")
    assert any(isinstance(module, BatchRenorm2d) for module in bundle.network.modules())
    image = next((tmp_path / "images").rglob("*.jpg"))
    assert bundle.embed([image]).shape == (1, 128)


def test_a_run_that_fails_to_start_leaves_the_earlier_one(
    fit_options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*fit_options, "--compare=false"]) == 0
    error_of(capsys, [*fit_options, "--overwrite", "--data.source=/nowhere"])
    assert main([*fit_options, "--overwrite", "--trainer.max_epochs=0"]) == 0
    assert "no bundle: the run took no step" in capsys.readouterr().out
    for kept in ("checkpoints/best.ckpt", "checkpoints/first.ckpt", "checkpoints/last.ckpt", "bundle"):
        assert (tmp_path / "run" / kept).exists()
    step = bundle_from_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt").info["step"]
    assert main([*fit_options, "--overwrite", "--trainer.max_epochs=1", "--compare=false"]) == 0
    assert bundle_from_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt").info["step"] < step


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "cannot be read as a checkpoint"), ({"state_dict": {}}, "give them as model.weights")],
)
def test_a_checkpoint_of_other_code_is_one_line(
    fit_options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], content: object, message: str
) -> None:
    file = tmp_path / "other.ckpt"
    file.touch()
    if content is not None:
        torch.save(content, file)
    assert message in error_of(capsys, [*fit_options, f"--ckpt_path={file}"])


def test_a_run_goes_on_from_the_weights_before_the_first_step(fit_options: list[str], tmp_path: Path) -> None:
    assert main([*fit_options, "--compare=false"]) == 0
    checkpoints = tmp_path / "run" / "checkpoints"
    (checkpoints / "first.ckpt").replace(checkpoints / "best.ckpt")
    assert main([*fit_options, "--compare=false", "--ckpt_path=best"]) == 0
