"""Runs whose validation or test images are of no use, or of use in part."""

from pathlib import Path

import pytest

from app.cli import main
from data.datamodule import ImageDataModule
from data.splits import Part
from models.bundle import Bundle


def images_of(folder: Path, part: Part) -> list[list[Path]]:
    """The files of each class of a part."""
    data = ImageDataModule(folder)
    names = {data.table.class_names[label] for label in data.table.labels[data.parts.rows(part)]}
    return [sorted((folder / name).iterdir()) for name in sorted(names)]


def leave_one(classes: list[list[Path]]) -> None:
    for _, *others in classes:
        for path in others:
            path.unlink()


def test_unreadable_validation_images_end_the_run_in_one_line(
    fit_options: list[str], image_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for files in images_of(image_folder, "val"):
        for path in files:
            path.write_bytes(b"no image")
    assert main([*fit_options, "--trainer.enable_model_summary=false"]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("kindred: none of the validation images can be read")


@pytest.mark.parametrize("monitor", ["val/map@r", "null"])
def test_validation_classes_of_one_image_leave_a_run_without_validation(
    monitor: str,
    fit_options: list[str],
    image_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    leave_one(images_of(image_folder, "val"))
    assert main([*fit_options, f"--monitor={monitor}"]) == 0
    assert "2 of 2 validation classes have one image" in caplog.text
    assert "no validation classes of two images or more" in " ".join(capsys.readouterr().out.split())
    assert Bundle.load(tmp_path / "run" / "bundle", "cpu").info["step"] == 6


def test_some_validation_classes_of_one_image_are_left_out(
    image_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = images_of(image_folder, "val")
    leave_one([first])
    data = ImageDataModule(image_folder)
    assert [data.table.name(row) for row in data.validation_rows] == [
        f"{p.parent.name}/{p.name}" for p in second
    ]
    assert "1 of 2 validation classes have one image" in caplog.text


def test_test_classes_of_one_image_are_named_in_one_line(
    fit_options: list[str], image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    leave_one(images_of(image_folder, "test"))
    assert main([*fit_options, "--compare=false"]) == 0
    capsys.readouterr()
    run = [option for option in fit_options[1:] if "max_epochs" not in option]
    for command in (
        ["test", *run],
        [
            "evaluate",
            f"--bundle={tmp_path / 'run' / 'bundle'}",
            f"--data={image_folder}",
            f"--out={tmp_path}",
        ],
    ):
        assert main(command) == 2
        line = capsys.readouterr().err.splitlines()[-1]
        assert line.startswith("kindred: no query has a match in the gallery: every class has a single item")
