"""Folders that cannot be written and full disks: one line that says where, and what to do."""

import errno
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.cli import main
from models.bundle import Bundle

USERS = [errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.ENOTDIR, errno.EISDIR, errno.EEXIST]


def line_of(capsys: pytest.CaptureFixture[str], *options: object) -> str:
    capsys.readouterr()
    assert main([str(option) for option in options]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("kindred: ")]
    return line


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_text("no folder")
    return path


@pytest.mark.parametrize("below", ["", "run"])
def test_a_run_folder_that_is_a_file(
    fit_options: list[str], file: Path, capsys: pytest.CaptureFixture[str], below: str
) -> None:
    line = line_of(capsys, *fit_options, f"--run={file / below}")
    assert f"{file / below}: cannot be written" in line
    assert "--run" in line


def test_an_index_that_cannot_be_kept_is_built_each_time(
    fit_options: list[str], file: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("KINDRED_CACHE", str(file))
    assert main(fit_options) == 0
    (told,) = [record for record in caplog.records if "KINDRED_CACHE" in record.getMessage()]
    assert str(file / "index") in told.getMessage()


@pytest.mark.parametrize("options", [["source=glyphs"], ["cache=disk"]])
def test_caches_that_cannot_be_done_without(
    fit_options: list[str],
    file: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
) -> None:
    monkeypatch.setenv("KINDRED_CACHE", str(file))
    line = line_of(capsys, *fit_options, *(f"--data.{option}" for option in options))
    assert "set KINDRED_CACHE to a folder that can be written" in line
    assert str(file) in line


@pytest.mark.parametrize("below", ["", "out"])
@pytest.mark.parametrize("command", ["evaluate", "export", "embed", "index"])
def test_results_cannot_be_written_into_a_file(
    bundle_folder: Path,
    image_folder: Path,
    file: Path,
    capsys: pytest.CaptureFixture[str],
    command: str,
    below: str,
) -> None:
    options: dict[str, list[object]] = {
        "evaluate": ["--bundle", bundle_folder, "--data", image_folder, "--out"],
        "export": [bundle_folder, "--out"],
        "embed": ["--bundle", bundle_folder, "--data", image_folder, "--out"],
        "index": ["--bundle", bundle_folder, "--data", image_folder, "--store"],
    }
    assert str(file) in line_of(capsys, command, *options[command], file / below)
    assert file.read_text() == "no folder"


def test_a_disk_that_is_full(
    fit_options: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")  # as a write says it, without a name

    monkeypatch.setattr(Bundle, "save", full)
    assert "No space left on device" in line_of(capsys, *fit_options)


@given(number=st.sampled_from(sorted(errno.errorcode)), named=st.booleans())
def test_only_the_file_systems_troubles_are_one_line(number: int, named: bool) -> None:
    error = OSError(number, "why", "/somewhere/file") if named else OSError(number, "why")

    def run(arguments: object) -> int:
        raise error

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("app.cli._run", run)
        if number in (errno.ENOSPC, errno.EDQUOT) or (named and number in USERS):
            assert main([]) == 2
        else:
            with pytest.raises(OSError, match="why"):
                main([])
