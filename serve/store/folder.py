"""The folder of a store on disk: its lock, its collections and their aliases.

lock.db                   held by the process that owns the folder
catalogue.json            aliases
collections/NAME/         one collection: items.db (the truth) and its snapshot
collections/.new-NAME     one that is being made, or .old-NAME deleted; both go at the next opening
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

from serve.store.files import replace_file, sync_folder
from serve.store.lock import FolderLock
from serve.store.protocol import ReadOnly, StoreError, StoreMissing

DATABASE = "items.db"
UNFINISHED, _DELETED = ".new-", ".old-"
"""How the folder of a collection begins while it is made or deleted; no name of a collection does."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


class StoreFolder:
    """Opens the folder and takes its lock (unless only for reading)."""

    def __init__(self, path: Path, *, create: bool = True, read_only: bool = False) -> None:
        self.path = path
        if path.exists() and not path.is_dir():
            raise StoreError(f"{path} is a file; a store is a folder")
        if not (path / "collections").is_dir():
            if read_only or not create:
                raise StoreMissing(f"There is no store in {path}; build one with `kindred index`")
            if path.is_dir() and any(path.iterdir()) and not (path / "lock.db").exists():
                raise StoreError(f"{path} holds other files; name an empty or a new folder for the store")
            new = [folder for folder in (path / "collections", path, *path.parents) if not folder.exists()]
            (path / "collections").mkdir(parents=True, exist_ok=True)
            for folder in new:
                sync_folder(folder.parent)
        self._lock = None if read_only else FolderLock(path)
        if self._lock is not None:
            for start in (UNFINISHED, _DELETED):
                for left in (path / "collections").glob(f"{start}*"):
                    shutil.rmtree(left, ignore_errors=True)

    def collections(self) -> list[str]:
        """Names of the collections, sorted."""
        found = (path.parent.name for path in (self.path / "collections").glob(f"*/{DATABASE}"))
        return sorted(name for name in found if _NAME.fullmatch(name))

    def aliases(self) -> dict[str, str]:
        """Collections by alias."""
        path = self.path / "catalogue.json"
        if not path.exists():
            return {}
        aliases: dict[str, str] = json.loads(path.read_text("utf-8"))["aliases"]
        return aliases

    def place(self, name: str) -> Path:
        """The folder of a collection named directly or by alias, there or not.

        Raises:
            StoreError: The name is not usable.
        """
        name = self.aliases().get(name, name)
        if not _NAME.fullmatch(name):
            raise StoreError(f"{name!r} is no collection name; use up to 64 letters, digits, '_', '-' or '.'")
        return self.path / "collections" / name

    def set_alias(self, alias: str, name: str | None) -> None:
        """Lets an alias mean a collection from now on, or nothing (None); at once or not at all."""
        self._need_lock()
        if not _NAME.fullmatch(alias):
            raise StoreError(f"{alias!r} is no alias; use up to 64 letters, digits, '_', '-' or '.'")
        aliases = self.aliases()
        if alias in self.collections():
            raise StoreError(f"{alias!r} is a collection; choose another name for the alias")
        if name is None:
            aliases.pop(alias, None)
        elif name in self.collections():
            aliases[alias] = name
        else:
            raise StoreMissing(f"There is no collection {name!r} in {self.path}")
        text = json.dumps({"aliases": aliases}, indent=1, sort_keys=True)
        replace_file(self.path / "catalogue.json", text.encode())

    def check_removable(self, name: str) -> None:
        """Raises where `remove` would.

        Raises:
            StoreError: An alias still means the collection.
            StoreMissing: It does not exist.
        """
        self._need_lock()
        aliases = sorted(alias for alias, target in self.aliases().items() if target == name)
        if aliases:
            raise StoreError(f"The alias {aliases[0]!r} means {name!r}; point it elsewhere first")
        if name not in self.collections():
            raise StoreMissing(f"There is no collection {name!r} in {self.path}")

    def remove(self, name: str) -> None:
        """Deletes a closed collection with all its files."""
        self.check_removable(name)
        place = self.path / "collections" / name
        deleted = place.replace(place.with_name(f"{_DELETED}{name}"))
        sync_folder(place.parent)
        shutil.rmtree(deleted)
        sync_folder(place.parent)

    def release(self) -> None:
        """Gives the lock up; a second call does nothing."""
        if self._lock is not None:
            self._lock.release()

    def _need_lock(self) -> None:
        if self._lock is None:
            raise ReadOnly(f"{self.path} is open for reading only")
