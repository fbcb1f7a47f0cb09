"""Copies between stores: whole, resumed, checked."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from app import index_copy
from app.index_copy import copy, copy_items
from models.errors import InputError
from serve.store.catalogue import open_store
from serve.store.collection import FaissStore
from serve.store.types import Item

DIM = 12


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """120 items with everything an item can have; pages of 25 make several rounds."""
    monkeypatch.setattr(index_copy, "PAGE", 25)
    rng = np.random.default_rng(0)
    with FaissStore.open(tmp_path / "source", dim=DIM, fingerprint="model") as store:
        store.upsert(
            Item(
                n if n % 2 else f"item {n}",
                rng.standard_normal(DIM),
                None if n % 5 == 0 else f"label {n % 5}",
                {"n": n, "nested": {"x": [1, "a", None]}} if n % 3 else {},
                b"image %d" % n if n % 4 == 0 else None,
            )
            for n in range(120)
        )
        store.create_field_index("label")
    return tmp_path / "source"


def contents(place: str | Path) -> list[tuple[Any, ...]]:
    with open_store(place) as store:
        return [
            (
                item.id,
                item.label,
                item.metadata,
                store.thumbnail(item.id),
                np.asarray(item.vector).round(5).tolist(),
            )
            for item in store.scan(with_vectors=True)
        ]


def test_to_milvus_and_back_nothing_changes(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    milvus = f"file:{tmp_path / 'lite'}"
    copy(str(source), milvus, index_type="HNSW", sample=40)
    told = capsys.readouterr().out
    assert "120 / 120" in told
    assert "0 of 40" in told
    copy(milvus, str(tmp_path / "back"))
    assert contents(tmp_path / "back") == contents(source) == contents(milvus)
    with open_store(milvus) as store:
        assert (store.fingerprint, store.stats().field_indexes) == ("model", ("label",))
    copy(str(source), milvus)
    told = capsys.readouterr().out
    assert "there already, the same" in told
    FaissStore.open(tmp_path / "other", dim=3).close()
    with pytest.raises(InputError, match="takes vectors of 12"):
        copy(str(tmp_path / "other"), milvus)


def test_an_interrupted_copy_goes_on(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pages = []

    def stop_at_the_third(*arguments: Any) -> None:
        if len(pages) == 2:
            raise KeyboardInterrupt
        pages.append(arguments)
        copy_page(*arguments)

    copy_page = index_copy._copy_page
    monkeypatch.setattr(index_copy, "_copy_page", stop_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        copy(str(source), str(tmp_path / "target"))
    monkeypatch.setattr(index_copy, "_copy_page", copy_page)
    with FaissStore.open(source, read_only=True) as old, FaissStore.open(tmp_path / "target") as new:
        assert new.count() == 50
        outcome = copy_items(old, new, Console(quiet=True))
    assert (outcome.copied, outcome.present, outcome.different, outcome.recall) == (70, 50, [], 1.0)
    assert contents(tmp_path / "target") == contents(source)


def test_what_differs_is_brought_over_and_what_is_too_much_is_said(source: Path, tmp_path: Path) -> None:
    copy(str(source), str(tmp_path / "target"))
    with FaissStore.open(source) as old:
        old.update(1, {"label": "changed"})
    copy(str(source), str(tmp_path / "target"))
    assert sorted(contents(tmp_path / "target"), key=str) == sorted(contents(source), key=str)
    with FaissStore.open(tmp_path / "target") as new:
        new.upsert([Item("of somebody else", np.ones(DIM))])
    with pytest.raises(InputError, match="121"):
        copy(str(source), str(tmp_path / "target"))


def test_the_check_finds_what_was_not_copied(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy(str(source), str(tmp_path / "target"))
    with FaissStore.open(tmp_path / "target") as new:
        (item,) = new.get(["item 0"], with_vectors=True)
        new.upsert([Item(item.id, item.vector, item.label, item.metadata, b"another thumbnail")])
    monkeypatch.setattr(index_copy, "_copy_page", lambda *_: None)  # or it would repair the item
    with pytest.raises(InputError, match="1 of 120 sampled items differ"):
        copy(str(source), str(tmp_path / "target"))


def test_copying_onto_itself_or_from_nothing_is_refused(source: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="both"):
        copy(str(source), str(source))
    with pytest.raises(InputError, match="no store"):
        copy(str(tmp_path / "none"), str(tmp_path / "target"))
    assert not (tmp_path / "target").exists()


@pytest.mark.parametrize("same", ["source/", "./source", "link"])
def test_another_name_of_the_source_is_no_target(
    source: Path, same: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(source.parent)
    (source.parent / "link").symlink_to("source")
    with pytest.raises(InputError, match="both source and target"):
        copy("source", same)


def test_a_new_thumbnail_is_copied(source: Path, tmp_path: Path) -> None:
    target = str(tmp_path / "target")
    copy(str(source), target)
    with FaissStore.open(source) as store:
        (item,) = store.get(["item 4"], with_vectors=True)
        assert item is not None
        store.upsert([Item(item.id, item.vector, item.label, item.metadata, b"larger")])
    copy(str(source), target, sample=0)
    with FaissStore.open(target, read_only=True) as store:
        assert store.thumbnail("item 4") == b"larger"


def test_the_sample_does_not_shrink_where_items_were_often_rewritten(source: Path, tmp_path: Path) -> None:
    with FaissStore.open(source) as old, FaissStore.open(tmp_path / "target", dim=DIM) as new:
        for _ in range(40):
            old.upsert(old.get([1, 3, 5], with_vectors=True))
        assert copy_items(old, new, Console(quiet=True), sample=64).sampled == 64


def test_a_negative_sample_is_refused_before_anything_is_written(source: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--sample -1"):
        copy(str(source), str(tmp_path / "target"), sample=-1)
    assert not (tmp_path / "target").exists()
