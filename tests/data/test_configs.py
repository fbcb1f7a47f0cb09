"""Every configuration of a data set makes a data module whose settings and source are understood."""

from pathlib import Path

import pytest
from jsonargparse import ArgumentParser

from data.datamodule import ImageDataModule
from data.sources import Source

CONFIGS = sorted((Path(__file__).parents[2] / "configs" / "data").glob("*.yaml"))


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_it_instantiates(config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my-images").mkdir()
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(ImageDataModule, "data")
    data = parser.instantiate(parser.parse_path(config)).data
    assert isinstance(data, ImageDataModule)
    assert isinstance(data.source, Source)


def test_there_is_one_for_each_set() -> None:
    assert {path.stem for path in CONFIGS} == {
        "cars196", "casia_webface", "cub", "folder", "glyphs", "inshop", "lfw", "omniglot", "sop", "table",
        "vggface2",
    }  # fmt: skip
