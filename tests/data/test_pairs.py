from collections.abc import Callable
from pathlib import Path

import pytest

from data.pairs import read_pairs
from data.sources import FolderSource
from data.table import ImageTable
from models.errors import InputError


@pytest.fixture
def people(tmp_path: Path, encode: Callable[..., bytes]) -> ImageTable:
    for person in ("Ann_A", "Bob_B"):
        (tmp_path / "lfw" / person).mkdir(parents=True)
        for number in (1, 2):
            (tmp_path / "lfw" / person / f"{person}_{number:04d}.jpg").write_bytes(encode(number))
    return FolderSource(tmp_path / "lfw").table()


def test_lfw_pairs_with_folds(people: ImageTable, tmp_path: Path) -> None:
    file = tmp_path / "pairs.txt"
    fold = "Ann_A\t1\t2\nAnn_A\t1\tBob_B\t2\n"
    file.write_text("2\t1\n" + fold + fold.replace("Ann_A\t1\t2", "Bob_B\t1\t2"))
    pairs = read_pairs(file, people)
    names = [
        (people.name(a)[-8:-4], people.name(b)[-8:-4]) for a, b in zip(pairs.first, pairs.second, strict=True)
    ]
    assert names == [("0001", "0002")] * 4
    assert pairs.same.tolist() == [True, False, True, False]
    assert pairs.fold.tolist() == [0, 0, 1, 1]
    assert people.labels[pairs.second].tolist() == [0, 1, 1, 1]


def test_lfw_pairs_without_folds(people: ImageTable, tmp_path: Path) -> None:
    (tmp_path / "pairsDevTest.txt").write_text("1\nAnn_A\t1\t2\nAnn_A\t1\tBob_B\t2\n")
    assert read_pairs(tmp_path / "pairsDevTest.txt", people).fold.tolist() == [0, 0]


def test_csv_pairs(people: ImageTable, tmp_path: Path) -> None:
    file = tmp_path / "pairs.csv"
    file.write_text("image_a,image_b,same\nAnn_A/Ann_A_0001.jpg,Bob_B/Bob_B_0001.jpg,0\n")
    pairs = read_pairs(file, people)
    assert (pairs.first.tolist(), pairs.second.tolist(), pairs.same.tolist()) == ([0], [2], [False])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.csv", "a,b\n1,2\n", "needs the columns image_a"),
        ("p.csv", "image_a,image_b,same\nx/y.jpg,x/z.jpg,1\n", "pair 1 names 'x/y', which the images lack"),
        ("p.txt", "", "not in LFW's pairs format"),
        ("p.txt", "1\nAnn_A one two\n", "not in LFW's pairs format"),
    ],
)
def test_pairs_that_do_not_fit(
    people: ImageTable, tmp_path: Path, name: str, content: str, message: str
) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=message):
        read_pairs(tmp_path / name, people)
    with pytest.raises(InputError, match="cannot be read"):
        read_pairs(tmp_path / "missing.txt", people)
