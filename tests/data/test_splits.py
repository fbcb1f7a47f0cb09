import logging
from collections.abc import Callable
from itertools import combinations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.splits import PARTS, Split, SplitSettings, class_folds, select, split_classes, split_images
from data.table import ImageTable
from models.errors import InputError


def table(counts: dict[str, int], split: dict[str, list[str | None]] | None = None) -> ImageTable:
    names = [f"{name}/{i}.png" for name in counts for i in range(counts[name])]
    labels = np.repeat(np.arange(len(counts)), list(counts.values()))
    rows = pa.table({"name": pa.array(names, pa.large_string()), "label": pa.array(labels, pa.int32())})
    if split is not None:
        values = [value for name in counts for value in split[name]]
        rows = rows.append_column("split", pa.array(values, pa.string()))
    return ImageTable(rows, list(counts), ["set"])


def classes_by_part(images: ImageTable, split: Split) -> dict[str, set[str]]:
    return {part: {images.class_names[c] for c in images.labels[split.rows(part)]} for part in PARTS}


@given(
    counts=st.dictionaries(st.text(min_size=1, max_size=4), st.integers(1, 4), min_size=4, max_size=40),
    val=st.floats(0, 0.5),
    test=st.floats(0, 0.9),
    seed=st.integers(0, 5),
)
def test_parts_are_class_disjoint_and_complete(
    counts: dict[str, int], val: float, test: float, seed: int
) -> None:
    images = table(counts)
    split = split_classes(images, val, test, seed)
    parts = classes_by_part(images, split)
    assert all(not parts[a] & parts[b] for a, b in combinations(PARTS, 2))
    assert set().union(*parts.values()) == set(counts)
    assert len(parts["train"]) >= 2
    assert len(parts["test"]) >= 2 or test == 0
    assert len(parts["val"]) != 1


def test_fractions_are_kept() -> None:
    images = table({f"class {n}": 2 for n in range(100)})
    parts = classes_by_part(images, split_classes(images, 0.25, 0.2))
    assert {part: len(names) for part, names in parts.items()} == {"train": 60, "val": 20, "test": 20}


def test_a_class_keeps_its_part_when_images_are_added() -> None:
    few, many = table({f"c{n}": 2 for n in range(50)}), table({f"c{n}": 5 for n in range(50)})
    assert classes_by_part(few, split_classes(few)) == classes_by_part(many, split_classes(many))
    assert split_classes(few).hash != split_classes(many).hash


def test_hash_identifies_the_split() -> None:
    images = table({f"c{n}": 2 for n in range(20)})
    split = split_classes(images)
    assert split.hash == split_classes(images).hash
    assert split.hash != split_classes(images, seed=1).hash
    renamed = table({f"d{n}": 2 for n in range(20)})
    assert split.hash != split_classes(renamed).hash


def test_the_official_split_is_kept_and_validation_is_carved_from_training() -> None:
    counts = {f"c{n}": 2 for n in range(20)}
    images = table(counts, {name: ["train" if int(name[1:]) < 15 else "test"] * 2 for name in counts})
    parts = classes_by_part(images, split_classes(images, val_fraction=0.2, test_fraction=0.9))
    assert parts["test"] == {f"c{n}" for n in range(15, 20)}
    assert len(parts["val"]) == 3
    counts = {"a": 1, "b": 1, "c": 1, "d": 2, "e": 1}
    official = table(counts, {"a": ["train"], "b": ["train"], "c": ["val"], "d": ["test"] * 2, "e": [None]})
    parts = classes_by_part(official, split_classes(official, val_fraction=0.9))
    assert parts == {"train": {"a", "b"}, "val": {"c"}, "test": {"d"}}


def test_overlap_is_an_error_unless_images_are_split() -> None:
    images = table({"a": 2, "b": 2}, {"a": ["train", "test"], "b": ["train", "train"]})
    with pytest.raises(InputError, match=r"class 'a' is in both train and test \(1 such"):
        split_classes(images)
    split = split_images(images)
    assert split.rows("test").tolist() == [1]
    assert split.rows("train").tolist() == [0, 2, 3]


@pytest.mark.parametrize(
    ("counts", "message"),
    [({"only": 5}, "only one class \\('only'\\)"), ({"a": 1, "b": 1, "c": 1}, "3 classes are too few")],
)
def test_too_few_classes(counts: dict[str, int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        split_classes(table(counts))


def test_bad_fractions() -> None:
    with pytest.raises(InputError, match="must lie in"):
        split_classes(table({"a": 1, "b": 1}), 1.0)


def test_splitting_images_warns(caplog: pytest.LogCaptureFixture) -> None:
    images = table({"a": 200, "b": 200})
    with caplog.at_level(logging.WARNING):
        split = split_images(images, 0.25, 0.2)
    assert "split per image" in caplog.text
    shares = [len(split.rows(part)) / 400 for part in PARTS]
    assert shares == pytest.approx([0.6, 0.2, 0.2], abs=0.08)
    assert {len(names) for names in classes_by_part(images, split).values()} == {2}


@given(classes=st.integers(4, 30), folds=st.integers(2, 5))
def test_every_class_is_tested_in_one_fold(classes: int, folds: int) -> None:
    images = table({f"c{n}": 1 for n in range(classes)})
    if classes < 2 * folds:
        with pytest.raises(InputError, match="each fold needs two classes"):
            next(class_folds(images, folds))
        return
    tested: list[str] = []
    for split in class_folds(images, folds):
        parts = classes_by_part(images, split)
        assert all(not parts[a] & parts[b] for a, b in combinations(PARTS, 2))
        assert set().union(*parts.values()) == set(images.class_names)
        tested += parts["test"]
    assert sorted(tested) == sorted(images.class_names)


def test_the_drawing_of_parts_depends_on_names_alone(write_folder: Callable[..., object]) -> None:
    counts = {f"c{n}": 1 for n in range(30)}
    forward, backward = table(counts), table(dict(reversed(counts.items())))
    assert classes_by_part(forward, split_classes(forward)) == classes_by_part(
        backward, split_classes(backward)
    )


def test_selecting_a_part() -> None:
    images = table({f"c{n}": 2 for n in range(20)})
    split = split_classes(images)
    rows, split_hash = select(images, "all")
    assert rows.tolist() == list(range(40))
    assert split_hash is None
    rows, split_hash = select(images, "test")
    assert rows.tolist() == split.rows("test").tolist()
    assert split_hash == split.hash
    few = table({f"c{n}": 1 for n in range(4)})
    with pytest.raises(InputError, match="has no val images"):
        select(few, "val")
    with pytest.raises(InputError, match="choose among train"):
        select(few, "dev")


def test_a_part_is_the_one_of_the_models_training() -> None:
    images = table({f"c{n}": 2 for n in range(20)})
    settings = SplitSettings(test_fraction=0.5, seed=3)
    rows, split_hash = select(images, "test", settings.to_dict())
    assert rows.tolist() == settings.apply(images).rows("test").tolist()
    assert split_hash == settings.apply(images).hash
    assert rows.tolist() != select(images, "test")[0].tolist()
