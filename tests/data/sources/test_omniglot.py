from collections.abc import Callable
from pathlib import Path

import pytest
import torchvision.datasets

from data.sources import OmniglotSource
from models.errors import InputError


@pytest.fixture
def archives(write_zip: Callable[..., Path]) -> Callable[[str], Path]:
    def make(folder: str) -> Path:
        background = {"Greek/character01": 2, "Greek/character02": 2, "Latin/character01": 1}
        write_zip(background, f"{folder}/images_background.zip", "images_background/")
        evaluation = {"Tengwar/character01": 2}
        return write_zip(evaluation, f"{folder}/images_evaluation.zip", "images_evaluation/").parent

    return make


def test_both_archives_are_read_directly(
    archives: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    archives("omniglot")
    monkeypatch.setenv("KINDRED_DATA", str(tmp_path))
    table = OmniglotSource().table()
    assert table.class_names == [
        "Greek/character01",
        "Greek/character02",
        "Latin/character01",
        "Tengwar/character01",
    ]
    assert table.split is not None
    assert table.split.tolist() == ["train"] * 5 + ["test"] * 2
    assert table.metadata["alphabet"].to_pylist() == ["Greek"] * 4 + ["Latin"] + ["Tengwar"] * 2
    assert table.read(6)[:4] == b"\x89PNG"


def test_torchvision_fetches_what_is_missing(
    archives: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("KINDRED_DATA", str(tmp_path))
    asked = []

    class Downloader:
        def __init__(self, root: str, background: bool, download: bool) -> None:
            asked.append((root, background, download))
            archives("omniglot-py")

    monkeypatch.setattr(torchvision.datasets, "Omniglot", Downloader)
    assert len(OmniglotSource().table()) == 7
    assert asked == [(str(tmp_path), True, True), (str(tmp_path), False, True)]
    assert len(OmniglotSource().table()) == 7
    assert len(asked) == 2


def test_a_failed_download_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("KINDRED_DATA", str(tmp_path))

    def fail(*args: object, **kwargs: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr(torchvision.datasets, "Omniglot", fail)
    with pytest.raises(InputError, match=r"cannot be fetched \(no network\); put images_background\.zip"):
        OmniglotSource().table()
    with pytest.raises(InputError, match="lacks images_background"):
        OmniglotSource(tmp_path).table()
    with pytest.raises(InputError, match="lacks images_background"):
        OmniglotSource(download=False).table()


def test_the_real_archives(shared_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KINDRED_DATA", str(shared_data))
    table = OmniglotSource().table()
    assert (len(table), len(table.class_names)) == (32460, 1623)
