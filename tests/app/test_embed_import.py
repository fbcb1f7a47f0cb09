import json
from pathlib import Path

import numpy as np
import pytest

from app.cli import main
from serve.store.collection import FaissStore
from serve.store.types import Item


@pytest.fixture
def embeddings(bundle_folder: Path, image_folder: Path, tmp_path: Path) -> Path:
    listing = image_folder / "list.csv"
    lines = [f"{name}/{number:02d}.jpg,{name},{number}" for name in ("star", "ring") for number in range(8)]
    listing.write_text("\n".join(["path,label,number", *lines]))
    out = tmp_path / "vectors"
    options = ["--accelerator=cpu", "--workers=0", "--shard-rows=5"]
    assert main(["embed", f"--bundle={bundle_folder}", f"--data={listing}", f"--out={out}", *options]) == 0
    return out


def contents(folder: Path) -> list[Item]:
    with FaissStore.open(folder, read_only=True) as store:
        return sorted(store.scan(with_vectors=True), key=lambda item: str(item.id))


def test_the_store_is_the_one_that_indexing_the_images_makes(
    embeddings: Path,
    bundle_folder: Path,
    image_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    imported, direct = tmp_path / "imported", tmp_path / "direct"
    capsys.readouterr()
    assert main(["index", f"--embeddings={embeddings}", f"--store={imported}"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "16 items imported" in printed
    assert "items/s" in printed
    source = [f"--bundle={bundle_folder}", f"--data={image_folder / 'list.csv'}"]
    assert main(["index", *source, f"--store={direct}"]) == 0
    for mine, other in zip(contents(imported), contents(direct), strict=True):
        assert (mine.id, mine.label, mine.metadata) == (other.id, other.label, other.metadata)
        np.testing.assert_allclose(mine.vector, other.vector, atol=1e-5)


def test_a_second_import_changes_nothing_and_a_partial_one_is_completed(
    embeddings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["index", f"--embeddings={embeddings}", f"--store={tmp_path / 'store'}"]
    assert main(command) == 0
    with FaissStore.open(tmp_path / "store") as store:
        store.delete(["star/03.jpg", "ring/00.jpg"])
        written = store.stats().lsn
    capsys.readouterr()
    assert main(command) == 0
    assert "14 of 16 items were in the store already" in capsys.readouterr().out
    with FaissStore.open(tmp_path / "store", read_only=True) as store:
        assert store.count() == 16
        assert store.stats().lsn == written + 2
    assert main([*command, "--refresh"]) == 0
    assert "16 items imported" in capsys.readouterr().out


def test_evaluation_reads_the_folder_as_the_images_themselves(
    embeddings: Path, bundle_folder: Path, image_folder: Path, tmp_path: Path
) -> None:
    data = [f"--bundle={bundle_folder}", f"--data={image_folder / 'list.csv'}", "--split=all"]
    assert main(["evaluate", f"--embeddings={embeddings}", f"--out={tmp_path / 'saved'}"]) == 0
    assert main(["evaluate", *data, f"--out={tmp_path / 'direct'}"]) == 0
    saved, direct = (
        json.loads((tmp_path / name / "results.json").read_text())["models"][0]["metrics"]
        for name in ("saved", "direct")
    )
    assert saved == pytest.approx(direct)
    (embeddings / "part-000001.parquet").unlink()
    assert main(["evaluate", f"--embeddings={embeddings}", f"--out={tmp_path / 'gone'}"]) == 2


def test_unfit_folders_are_refused(
    embeddings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["index", f"--embeddings={embeddings}", f"--store={tmp_path / 'store'}"]

    def refused(*options: str) -> str:
        capsys.readouterr()
        assert main(list(options)) == 2
        return capsys.readouterr().err.splitlines()[-1]

    assert "no embeddings here" in refused("index", f"--embeddings={tmp_path}", command[2])
    assert "leave --bundle" in refused(*command, f"--bundle={tmp_path}")
    assert "--embeddings" in refused("index", command[2])
    with FaissStore.open(tmp_path / "other", dim=16, fingerprint="another") as store:
        store.upsert([Item("a", np.ones(16))])
    assert "another" in refused(*command[:2], f"--store={tmp_path / 'other'}")
    shard = embeddings / "part-000002.parquet"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-20])
    assert "part-000002.parquet" in refused(*command)
    shard.write_bytes(whole)
    manifest = embeddings / "embeddings.json"
    manifest.write_text(manifest.read_text().split('"complete"')[0] + '"complete": null}')
    assert "is not complete" in refused(*command)
