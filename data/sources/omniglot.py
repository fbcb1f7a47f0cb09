"""Omniglot: 1,623 handwritten characters of 50 alphabets, 20 drawings each (Lake et al., Science, 2015)."""

from pathlib import Path

import numpy as np

from data.file_index import cached_table
from data.sources.folder import zip_table
from data.sources.source import Source, data_root
from data.table import ImageTable, join_tables
from models.errors import InputError

_ARCHIVES = {"images_background.zip": "train", "images_evaluation.zip": "test"}


class OmniglotSource(Source):
    """The two official archives, read directly; classes are ``<alphabet>/<character>``.

    The official split is alphabet-disjoint: background for training (964 characters), evaluation for
    testing (659).

    Args:
        folder: Of the archives; by default ``omniglot`` in the data folder, else torchvision's
            ``omniglot-py`` there.
        download: Whether torchvision may download missing archives into the data folder.
    """

    def __init__(self, folder: str | Path | None = None, download: bool = True) -> None:
        self.folder = Path(folder).expanduser() if folder is not None else None
        self.download = download

    def table(self) -> ImageTable:
        """See :meth:`Source.table`."""
        archives = [self._folder() / name for name in _ARCHIVES]
        return cached_table("omniglot", archives, lambda: (_read(archives), archives))

    def _folder(self) -> Path:
        root = data_root()
        candidates = [self.folder] if self.folder else [root / "omniglot", root / "omniglot-py"]
        for folder in candidates:
            if all((folder / name).is_file() for name in _ARCHIVES):
                return folder
        if not self.download or self.folder is not None:
            raise InputError(
                f"{candidates[0]}: lacks {' and '.join(_ARCHIVES)}; put them there or allow download"
            )
        return _download(root)


def _download(root: Path) -> Path:
    from torchvision.datasets import Omniglot

    for background in (True, False):
        try:
            Omniglot(str(root), background=background, download=True)
        except (OSError, RuntimeError) as error:
            raise InputError(
                f"Omniglot cannot be fetched ({error}); "
                f"put {' and '.join(_ARCHIVES)} into {root / 'omniglot'}"
            ) from error
    return root / "omniglot-py"


def _read(archives: list[Path]) -> ImageTable:
    tables = []
    for path in archives:
        table = zip_table(path, wrapper=path.stem)
        tables.append(table.with_column("split", np.full(len(table), _ARCHIVES[path.name])))
    joined = join_tables(tables)
    alphabets = [name.rpartition("/")[0] for name in joined.class_names]
    return joined.with_column("alphabet", np.array(alphabets)[joined.labels])
