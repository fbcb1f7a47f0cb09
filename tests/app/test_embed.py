import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from app.cli import main
from data.sources import open_source
from data.splits import SplitSettings
from models.bundle import Bundle

ROOT = Path(__file__).parents[2]


@pytest.fixture
def options(bundle_folder: Path, image_folder: Path, tmp_path: Path) -> list[str]:
    return [
        "embed",
        f"--bundle={bundle_folder}",
        f"--data={image_folder}",
        f"--out={tmp_path / 'out'}",
        "--accelerator=cpu",
        "--workers=0",
        "--batch-size=6",
        "--shard-rows=10",
    ]


def changed(options: list[str], *changes: str) -> list[str]:
    names = {change.partition("=")[0] for change in changes}
    return [*(option for option in options if option.partition("=")[0] not in names), *changes]


def shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.parquet"))


def rows(folder: Path) -> pa.Table:
    return pa.concat_tables([pq.read_table(path) for path in shards(folder)])


def vectors(table: pa.Table) -> np.ndarray:
    column = table.column("vector").combine_chunks()
    return column.flatten().to_numpy().reshape(len(table), -1)


def error(capsys: pytest.CaptureFixture[str]) -> str:
    line = capsys.readouterr().err.splitlines()[-1]  # before it, progress of listing the files
    assert line.startswith("kindred: ")
    return line


def test_every_image_is_a_row_of_one_shard(
    options: list[str],
    bundle_folder: Path,
    image_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(options) == 0
    printed = capsys.readouterr().out
    assert "64 of 64 images have vectors" in printed
    assert "images/s" in printed
    assert "waiting for data" in " ".join(printed.split())
    found = rows(tmp_path / "out")
    table = open_source(str(image_folder)).table()
    assert found.column("id").to_pylist() == [table.name(row) for row in range(64)]
    assert found.column("label").to_pylist() == [table.class_names[label] for label in table.labels]
    assert found.schema.field("vector").type == pa.list_(pa.float32(), 16)
    model = Bundle.load(bundle_folder, device="cpu")
    expected = model.embed([image_folder / name for name in found.column("id").to_pylist()])
    np.testing.assert_allclose(vectors(found), expected, atol=1e-5)
    assert [pq.read_metadata(path).num_rows for path in shards(tmp_path / "out")] == [10] * 6 + [4]
    about = json.loads(pq.read_schema(shards(tmp_path / "out")[2]).metadata[b"kindred"])
    assert about["shard"] == 2
    assert about["plan"]["fingerprint"] == model.fingerprint
    assert about["plan"]["dim"] == 16
    assert about["plan"]["source"] == str(image_folder)
    assert set(about["plan"]["versions"]) == {"python", "torch", "pyarrow"}


def test_metadata_are_columns(options: list[str], image_folder: Path, tmp_path: Path) -> None:
    """Also where they are named as our own columns are."""
    listing = image_folder / "list.csv"
    listing.write_text("path,label,price,id\nstar/00.jpg,s,3,a\nring/00.jpg,r,,b\n")
    assert main(changed(options, f"--data={listing}")) == 0
    found = {row["id"]: row for row in rows(tmp_path / "out").to_pylist()}
    assert found["star/00.jpg"] | {"vector": 0} == {
        "id": "star/00.jpg",
        "label": "s",
        "vector": 0,
        "price": 3,
        "metadata.id": "a",
    }
    assert found["ring/00.jpg"]["price"] is None


def test_only_one_split(options: list[str], bundle_folder: Path, image_folder: Path, tmp_path: Path) -> None:
    """The test classes are those that this model was not trained on."""
    settings = SplitSettings(test_fraction=0.5, seed=3)
    bundle = Bundle.load(bundle_folder, device="cpu")
    bundle.update(bundle_folder, info={"split": settings.to_dict()})
    assert main([*options, "--split=test"]) == 0
    table = open_source(str(image_folder)).table()
    expected = [table.class_names[label] for label in table.labels[settings.apply(table).rows("test")]]
    assert sorted(rows(tmp_path / "out").column("label").to_pylist()) == sorted(expected)


def test_broken_images_are_listed_and_the_others_keep_their_shards(
    options: list[str],
    image_folder: Path,
    tmp_path: Path,
    truncated_jpeg: bytes,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """One broken image among others, a whole batch of them, and a whole shard."""
    table = open_source(str(image_folder)).table()
    broken = {3, *range(12, 18), *range(20, 30), 63}
    for row in broken:
        (image_folder / table.name(row)).write_bytes(truncated_jpeg if row % 2 else b"")
    assert main(options) == 0
    assert f"46 of 64 images have vectors in {tmp_path}" in capsys.readouterr().out.replace("\n", "")
    lines = (tmp_path / "out" / "rejects.csv").read_text().splitlines()
    assert lines[0] == "id,reason"
    assert [line.split(",")[0] for line in lines[1:]] == [table.name(row) for row in sorted(broken)]
    assert all(line.partition(",")[2] for line in lines[1:])
    kept = [table.name(row) for row in range(64) if row not in broken]
    assert rows(tmp_path / "out").column("id").to_pylist() == kept
    assert [pq.read_metadata(path).num_rows for path in shards(tmp_path / "out")] == [9, 4, 0, 10, 10, 10, 3]


def test_a_second_run_makes_only_what_is_missing(
    options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(options) == 0
    out = tmp_path / "out"
    whole = {path.name: path.read_bytes() for path in out.iterdir()}
    files = shards(out)
    files[1].unlink()
    files[4].write_bytes(files[4].read_bytes()[:-50])
    (out / "part-000001.parquet.elsewhere-7.tmp").write_bytes(b"left by a killed run")
    untouched = files[0].stat().st_mtime_ns
    capsys.readouterr()
    assert main(options) == 0
    assert "20 of them now" in capsys.readouterr().out
    assert {path.name: path.read_bytes() for path in out.iterdir()} == whole
    assert files[0].stat().st_mtime_ns == untouched
    assert main(options) == 0
    assert "of them now" not in capsys.readouterr().out


def test_other_work_in_the_same_folder_is_refused(
    options: list[str], image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(options) == 0
    whole = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    model = Bundle.load(options[1].partition("=")[2], device="cpu")
    next(model.network.parameters()).data.add_(1)
    model.fingerprint = ""
    model.__post_init__()
    model.save(tmp_path / "other")
    for change in ("--shard-rows=11", "--split=test", f"--bundle={tmp_path / 'other'}"):
        assert main(changed(options, change)) == 2
        assert change.partition("=")[0] in error(capsys)
    (image_folder / "star" / "00.jpg").rename(image_folder / "star" / "new.jpg")
    assert main(options) == 2
    assert "has changed" in error(capsys)
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == whole


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("--data=nowhere", "nowhere"),
        ("--bundle=nowhere", "no bundle"),
        ("--split=tset", "tset"),
        ("--devices=0", "--devices 0"),
        ("--devices=many", "--devices many"),
        ("--accelerator=abacus", "abacus"),
        ("--shard-rows=0", "--shard-rows 0"),
        ("--out=images", "other files than embeddings"),
    ],
)
def test_bad_input_is_one_line(
    options: list[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    change: str,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(changed(options, change)) == 2
    assert message in error(capsys)


@pytest.mark.slow
def test_two_processes_make_the_same_rows_as_one(options: list[str], tmp_path: Path) -> None:
    assert main(options) == 0
    command = [sys.executable, "-m", "app", *changed(options, f"--out={tmp_path / 'two'}"), "--devices=2"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=280)
    assert done.returncode == 0, done.stderr
    assert "on 2 devices" in " ".join(done.stdout.split())
    one, two = rows(tmp_path / "out"), rows(tmp_path / "two")
    assert two.drop_columns("vector") == one.drop_columns("vector")
    np.testing.assert_allclose(vectors(two), vectors(one), atol=1e-6)
    assert [path.name for path in shards(tmp_path / "two")] == [
        path.name for path in shards(tmp_path / "out")
    ]


@pytest.mark.slow
def test_killed_at_random_moments_and_resumed(options: list[str], tmp_path: Path) -> None:
    """Bit for bit the rows of an undisturbed run, and nothing half-written left."""
    kills = Path(__file__).with_name("embed_kills.py")
    folder = tmp_path / "killed"
    small = changed(options, "--shard-rows=2", "--batch-size=2")
    mine = [option for option in small if not option.startswith("--out")]
    command = [sys.executable, str(kills), f"--folder={folder}", *mine]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=280)
    assert done.returncode == 0, done.stderr
    outcome = json.loads(done.stdout)
    assert outcome["code"] == 0
    assert outcome["kills"] >= 1
    undisturbed = Path(f"{folder}-timed")
    assert rows(folder) == rows(undisturbed)
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        path.name for path in undisturbed.iterdir()
    )
