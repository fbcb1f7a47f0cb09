"""Each standard set in a miniature of its official layout."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat

from data.sources import (
    Cars196Source,
    CubSource,
    IdentitySource,
    InShopSource,
    LfwSource,
    OnlineProductsSource,
    open_source,
)
from data.splits import split_classes
from data.table import ImageTable
from models.errors import InputError


def put(encode: Callable[..., bytes], root: Path, *names: str) -> None:
    for number, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(number))


def by_name(table: ImageTable, column: str) -> dict[str, object]:
    return dict(zip(table.names.to_pylist(), column_of(table, column), strict=True))


def column_of(table: ImageTable, name: str) -> list[object]:
    return list(table.split) if name == "split" else table.metadata[name].to_pylist()


def readable(table: ImageTable) -> bool:
    return all(table.read(row) for row in range(len(table)))


def test_cub(tmp_path: Path, encode: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "CUB_200_2011"
    birds = ["001.Albatross/A_1.jpg", "001.Albatross/A_2.jpg", "100.Pelican/P_1.jpg", "101.Gull/G_1.jpg"]
    put(encode, root / "images", *birds)
    (root / "images.txt").write_text("".join(f"{i + 1} {name}\n" for i, name in enumerate(birds)))
    (root / "image_class_labels.txt").write_text("1 1\n2 1\n3 100\n4 101\n")
    monkeypatch.setenv("KINDRED_DATA", str(tmp_path))
    table = open_source("cub").table()
    assert by_name(table, "split") == dict(zip(birds, ["train", "train", "train", "test"], strict=True))
    assert table.class_names == ["001.Albatross", "100.Pelican", "101.Gull"]
    assert readable(table)
    assert len(CubSource(tmp_path).table()) == len(CubSource(root).table()) == 4
    with pytest.raises(InputError, match=r"images\.txt is not in it"):
        CubSource(root / "images").table()


def annotations(names: list[str], numbers: list[int]) -> np.ndarray:
    kind = [("relative_im_path", object), ("class", object), ("test", object)]
    return np.array([(n, c, 0) for n, c in zip(names, numbers, strict=True)], dtype=kind)


def test_cars196(tmp_path: Path, encode: Callable[..., bytes]) -> None:
    cars = ["car_ims/000001.jpg", "car_ims/000002.jpg", "car_ims/000003.jpg"]
    put(encode, tmp_path, *cars)
    names = np.array([f"Car {n}" for n in range(1, 197)], dtype=object)
    savemat(
        tmp_path / "cars_annos.mat",
        {"annotations": annotations(cars, [1, 98, 99]), "class_names": names},
    )
    table = Cars196Source(tmp_path).table()
    assert by_name(table, "split") == dict(zip(cars, ["train", "train", "test"], strict=True))
    assert table.class_names == ["001 Car 1", "098 Car 98", "099 Car 99"]
    assert readable(table)
    (tmp_path / "cars_annos.mat").write_text("no MATLAB file, but long enough to be taken for one" * 10)
    with pytest.raises(InputError, match="cannot be read as the set's annotations"):
        Cars196Source(tmp_path).table()


def test_stanford_online_products(tmp_path: Path, encode: Callable[..., bytes]) -> None:
    train = ["bicycle_final/111085122871_0.JPG", "chair_final/111085122871_1.JPG"]
    test = ["lamp_final/211085122871_0.JPG"]
    put(encode, tmp_path, *train, *test)
    head = "image_id class_id super_class_id path\n"
    (tmp_path / "Ebay_train.txt").write_text(head + f"1 1 1 {train[0]}\n2 2 2 {train[1]}\n")
    (tmp_path / "Ebay_test.txt").write_text(head + f"3 11319 3 {test[0]}\n")
    table = OnlineProductsSource(tmp_path).table()
    assert by_name(table, "split") == {train[0]: "train", train[1]: "train", test[0]: "test"}
    assert by_name(table, "super_class") == {train[0]: "bicycle", train[1]: "chair", test[0]: "lamp"}
    assert readable(table)


def test_in_shop(tmp_path: Path, encode: Callable[..., bytes]) -> None:
    names = [f"img/WOMEN/Dresses/id_0000000{n}/0{n}_1_front.jpg" for n in range(1, 5)]
    put(encode, tmp_path / "Img", *names)
    (tmp_path / "Eval").mkdir()
    lines = [
        f"{names[0]} id_1 train",
        f"{names[1]} id_1   train",
        f"{names[2]} id_2 query",
        f"{names[3]} id_2 gallery",
    ]
    file = tmp_path / "Eval" / "list_eval_partition.txt"
    file.write_text("\n".join(["4", "image_name item_id evaluation_status", *lines]))
    table = InShopSource(tmp_path).table()
    assert table.flags("is_query").tolist() == [False, False, True, False]
    assert table.flags("is_gallery").tolist() == [False, False, False, True]
    assert table.split is not None
    assert table.split.tolist() == ["train", "train", "test", "test"]
    assert readable(table)
    file.write_text("1\nhead\na b other\n")
    with pytest.raises(InputError, match="evaluation status 'other'"):
        InShopSource(tmp_path).table()


def test_lfw(tmp_path: Path, encode: Callable[..., bytes]) -> None:
    people = {"Ann_A": 2, "Bob_B": 1, "Cy_C": 1, "Di_D": 1}
    names = [f"{p}/{p}_{i + 1:04d}.jpg" for p, count in people.items() for i in range(count)]
    put(encode, tmp_path / "lfw", *names)
    assert LfwSource(tmp_path).table().split is None
    (tmp_path / "peopleDevTrain.txt").write_text("2\nAnn_A\t2\nBob_B\t1\n")
    (tmp_path / "peopleDevTest.txt").write_text("1\nCy_C\t1\n")
    for given in (tmp_path, tmp_path / "lfw"):
        table = LfwSource(given).table()
        assert table.split is not None
        assert table.split.tolist() == ["train", "train", "train", "test", None]
    (tmp_path / "peopleDevTest.txt").write_text("1\nNobody\t1\n")
    with pytest.raises(InputError, match="'Nobody' of the people lists has no folder"):
        LfwSource(tmp_path).table()


def test_casia_webface(write_folder: Callable[..., Path]) -> None:
    root = write_folder({"0000045": 3, "0000099": 1, "0000100": 2})
    table = IdentitySource(root, min_images=2).table()
    assert len(table) == 5
    more = IdentitySource(write_folder({f"{n:07d}": 2 for n in range(9)}, "more")).table()
    split = split_classes(more)
    assert not set(more.labels[split.rows("train")]) & set(more.labels[split.rows("test")])
    with pytest.raises(InputError, match="no identity has min_images=9"):
        IdentitySource(root, min_images=9).table()


def test_vggface2(write_folder: Callable[..., Path]) -> None:
    root = write_folder({"train/n000002": 2, "train/n000003": 1, "test/n000001": 2})
    meta = root / "identity_meta.csv"
    meta.write_text(
        'Class_ID, Name, Sample_Num, Flag, Gender\nn000001, "Ay, B", 2, 0, f\nn000002, Cy, 2, 1, m\n'
    )
    table = IdentitySource(root).table()
    assert table.split is not None
    assert table.split.tolist() == ["test", "test", "train", "train", "train"]
    assert table.metadata["person"].to_pylist() == ["Ay, B", "Ay, B", "Cy", "Cy", ""]
    assert table.metadata["gender"].to_pylist() == ["f", "f", "m", "m", ""]
    meta.write_text("id,name\n1,x\n")
    with pytest.raises(InputError, match="lacks the column 'Class_ID'"):
        IdentitySource(root).table()
