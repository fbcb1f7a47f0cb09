from pathlib import Path

import pytest

from data.sources.source import data_root
from models.cache_folder import cache_root


def test_environment_names_the_folders(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("KINDRED_CACHE", str(tmp_path / "c"))
    assert cache_root() == tmp_path / "c"
    assert data_root() == tmp_path / "c" / "data"
    monkeypatch.setenv("KINDRED_DATA", str(tmp_path / "d"))
    assert data_root() == tmp_path / "d"


@pytest.mark.parametrize(
    ("platform", "expected"),
    [
        ("linux", Path("/home/u/.cache/kindred")),
        ("darwin", Path("/home/u/Library/Caches/kindred")),
        ("win32", Path("/home/u/AppData/Local/kindred")),
    ],
)
def test_default_is_the_users_cache_folder(
    monkeypatch: pytest.MonkeyPatch, platform: str, expected: Path
) -> None:
    for name in ("KINDRED_CACHE", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("sys.platform", platform)
    monkeypatch.setattr(Path, "home", lambda: Path("/home/u"))
    assert cache_root() == expected
