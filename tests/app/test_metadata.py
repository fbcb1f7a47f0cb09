"""Every command that reads a table's metadata takes whatever a Parquet file may hold."""

import datetime
import decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from app.cli import main
from data.datamodule import ImageDataModule
from serve.store.collection import FaissStore


def table_of(folder: Path) -> Path:
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.jpg"))
    count = len(names)
    columns = {
        "path": names,
        "label": [name.partition("/")[0] for name in names],
        "name": [f"product {n}" for n in range(count)],
        "size": list(range(count)),
        "root": ["left", "right"] * (count // 2),
        "tags": [["x", "y"], ["y", "z"]] * (count // 2),
        "shop": [{"city": "Ulm"}, None] * (count // 2),
        "price": [decimal.Decimal("1.50"), None] * (count // 2),
        "score": [float("nan"), float("inf")] * (count // 2),
        "since": [datetime.date(2024, 1, 5)] * count,
        "thumb": [b"\x89"] * count,
        "by_key": pa.array([[("k", 1)]] * count, pa.map_(pa.string(), pa.int64())),
    }
    pq.write_table(pa.table(columns), folder / "list.parquet")
    return folder / "list.parquet"


def test_metadata_of_any_name_and_type(image_folder: Path, bundle_folder: Path, tmp_path: Path) -> None:
    listing = table_of(image_folder)
    given = [f"--bundle={bundle_folder}", f"--data={listing}"]
    expected = {
        "name": "product 0",
        "size": 0,
        "root": "left",
        "tags": ["x", "y"],
        "shop": {"city": "Ulm"},
        "price": 1.5,
        "score": None,
        "since": "2024-01-05",
        "by_key": '[["k", 1]]',
    }
    assert main(["index", *given, f"--store={tmp_path / 'store'}"]) == 0
    with FaissStore.open(tmp_path / "store", read_only=True) as store:
        (item,) = store.get(["circle/00.jpg"])
        assert item is not None
        assert item.metadata == expected
    options = ["--accelerator=cpu", "--workers=0", f"--out={tmp_path / 'embedded'}"]
    assert main(["embed", *given, *options]) == 0
    assert main(["index", f"--embeddings={tmp_path / 'embedded'}", f"--store={tmp_path / 'imported'}"]) == 0
    with FaissStore.open(tmp_path / "imported", read_only=True) as store:
        (item,) = store.get(["circle/00.jpg"])
        assert item is not None
        assert item.metadata == expected
    assert main(["evaluate", *given, "--split=all", "--relevance=tags", f"--out={tmp_path / 'out'}"]) == 0
    assert "root" in (tmp_path / "out" / "report.html").read_text()
    data = ImageDataModule(listing, image_size=8, group_by="tags", classes_per_batch=2, num_workers=0)
    assert len(data.train_dataloader()) > 0
