import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
from fontTools.ttLib import TTFont
from PIL import Image

from data.glyphs.characters import (
    CONFUSABLE,
    FACES,
    character_classes,
    faces_of_characters,
    font_file,
    glyph_bitmap,
    likeness,
)
from data.glyphs.draw_archive import class_name
from data.glyphs.drawing import draw_glyph
from data.sources import GlyphSource
from models.errors import InputError


@pytest.fixture(scope="module")
def faces() -> dict[str, tuple[str, ...]]:
    return faces_of_characters()


def test_only_glyphs_that_a_font_truly_has(faces: dict[str, tuple[str, ...]]) -> None:
    assert len(faces) > 2000
    assert all(len(found) >= 2 for found in faces.values())
    for face in FACES:
        with TTFont(font_file(face), lazy=True) as font:
            mapped = font.getBestCmap()
            assert all(mapped[ord(char)] != ".notdef" for char in faces if face in faces[char])


def test_no_spaces_marks_or_boxes(faces: dict[str, tuple[str, ...]]) -> None:
    for char in "\u00a0 \u0301\u200b\u2588\u28ff\ufffd\u00e9\t":
        assert char not in faces
    assert {"A", "ß", "Ж", "5"} <= faces.keys()


def test_computer_modern_only_draws_what_it_maps_rightly(faces: dict[str, tuple[str, ...]]) -> None:
    assert "cmr10" in faces["A"]
    assert all(char.isascii() for char in faces if any(face.startswith("cm") for face in faces[char]))


def test_outlines_shared_across_scripts_and_sizes_are_alike(faces: dict[str, tuple[str, ...]]) -> None:
    chars = ["A", "Α", "А", "o", "O", "о", "c", "C", "Q", "E", "x", "X"]
    alike = likeness(chars, faces)
    at = {char: position for position, char in enumerate(chars)}
    for one, other in (("A", "Α"), ("A", "А"), ("o", "о"), ("o", "O")):
        assert alike[at[one], at[other]] > 0.9, (one, other)
    for one, other in (("c", "C"), ("x", "X")):
        assert alike[at[one], at[other]] > CONFUSABLE, "one of such a pair is left out"
    for one, other in (("A", "E"), ("Q", "E"), ("c", "x")):
        assert alike[at[one], at[other]] < 0.8, (one, other)
    assert np.allclose(alike, alike.T, atol=1e-5)


def test_classes_are_distinct(faces: dict[str, tuple[str, ...]]) -> None:
    classes, _ = character_classes(60, seed=0)
    assert len(classes) == 60
    members = [char for chars in classes for char in chars]
    assert len(set(members)) == len(members)
    alike = likeness(members, faces)
    owner = np.repeat(np.arange(60), [len(chars) for chars in classes])
    assert alike[owner[:, None] != owner].max() < 0.9
    assert character_classes(60, seed=0)[0] == classes
    assert character_classes(60, seed=1)[0] != classes


def test_a_picture_depends_on_its_generator_alone() -> None:
    pictures = [
        np.asarray(draw_glyph([("A", "DejaVuSans"), ("A", "DejaVuSerif")], np.random.default_rng(seed), 40))
        for seed in (1, 1, 2)
    ]
    assert pictures[0].shape == (40, 40, 3)
    assert np.array_equal(pictures[0], pictures[1])
    assert not np.array_equal(pictures[0], pictures[2])
    assert min(picture.std() for picture in pictures) > 5


def test_faces_that_draw_nothing() -> None:
    assert glyph_bitmap(" ", "DejaVuSans") is None
    with pytest.raises(ValueError, match="draws nothing"):
        draw_glyph([(" ", "DejaVuSans")], np.random.default_rng(0), 40)


def test_the_set_is_drawn_once_and_class_disjoint(cache_folder: Path) -> None:
    source = GlyphSource(train_classes=6, test_classes=4, images_per_class=3, size=24)
    table = source.table()
    assert (len(table), len(table.class_names)) == (30, 10)
    assert table.split is not None
    assert sorted(set(table.split)) == ["test", "train"]
    for label in range(10):
        assert len(set(table.split[table.labels == label])) == 1
    assert Image.open(io.BytesIO(table.read(0))).size == (24, 24)
    before = source.archive.stat().st_mtime_ns
    assert len(source.table()) == 30
    assert source.archive.stat().st_mtime_ns == before
    assert [path.name for path in source.archive.parent.iterdir()] == ["glyphs.zip"]
    drawn = source.archive.read_bytes()
    source.archive.unlink()
    source.table()
    assert source.archive.read_bytes() == drawn, "drawing again gives the same archive"
    with zipfile.ZipFile(source.archive) as archive:
        assert archive.testzip() is None


def test_more_characters_than_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "data.glyphs.draw_archive.character_classes", lambda *_: ([["A"]], {"A": ("DejaVuSans",)})
    )
    with pytest.raises(InputError, match="the fonts hold 1 distinct characters, not 900"):
        GlyphSource(train_classes=700).table()


def test_names_of_classes() -> None:
    assert class_name("A") == "U+0041 LATIN CAPITAL LETTER A"
