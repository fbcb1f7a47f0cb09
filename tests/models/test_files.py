from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from models.files import replacing


def write(path: Path, content: bytes) -> bytes:
    with replacing(path) as fresh:
        fresh.write_bytes(content)
    return path.read_bytes()


def stop(path: Path, *, begun: bool) -> None:
    with replacing(path) as fresh:
        if begun:
            fresh.write_bytes(b"ha")
        raise KeyboardInterrupt


@pytest.mark.parametrize("begun", [False, True])
@pytest.mark.parametrize("old", [{}, {"file.json": b"old"}])
def test_what_fails_leaves_the_folder_as_it_was(old: dict[str, bytes], begun: bool, tmp_path: Path) -> None:
    for name, content in old.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(KeyboardInterrupt):
        stop(tmp_path / "file.json", begun=begun)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == old


def test_readers_see_one_whole_file_whoever_writes(tmp_path: Path) -> None:
    path = tmp_path / "file"
    contents = [bytes([number]) * 100_000 for number in range(8)]
    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(lambda content: write(path, content), contents * 5)) <= {*contents}
    assert [file.name for file in tmp_path.iterdir()] == ["file"]
