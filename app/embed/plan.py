"""The plan of an embedding run: which images belong to which shard, stored beside the shards.

The plan does not depend on the number of processes, so a killed run can continue with more or fewer of them,
and every image is embedded exactly once.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.table import ImageTable
from models.errors import InputError
from models.files import replacing
from serve.store.store_folder import disk_errors, sync_folder, write_synced

FORMAT = 1
MANIFEST = "embeddings.json"
REJECTS = "rejects.csv"

# Fields of the plan that must be equal to continue a folder, and their command-line options.
_OPTIONS = {
    "fingerprint": "bundle",
    "dim": "bundle",
    "source": "data",
    "split": "split",
    "shard_rows": "shard-rows",
}


@dataclass(frozen=True)
class Plan:
    """The work of one folder of embeddings."""

    fingerprint: str  # of the bundle
    dim: int  # length of a vector
    source: str  # of the images, as the user named it
    split: str | None  # None for all images
    content: str  # SHA-256 of names and labels of the images in order
    images: int  # number of images
    shard_rows: int  # images in a shard; the last one has the rest
    versions: dict[str, str] = field(default_factory=dict)  # of the libraries when the run began

    @property
    def shards(self) -> int:
        """Number of shards."""
        return -(-self.images // self.shard_rows)

    def places(self, shard: int) -> range:
        """Indices, in the order of the plan, of a shard's images."""
        return range(shard * self.shard_rows, min((shard + 1) * self.shard_rows, self.images))

    def file(self, shard: int) -> str:
        """Name of a shard's file."""
        return f"part-{shard:06d}.parquet"


def content_of(table: ImageTable, rows: NDArray[np.int64]) -> str:
    """SHA-256 that identifies the images at ``rows`` (int64, ascending) of a table."""
    digest = hashlib.sha256(table.fingerprint.encode())
    digest.update(np.ascontiguousarray(rows).tobytes())
    return digest.hexdigest()


def begin(folder: Path, wanted: Plan) -> Plan:
    """Write the plan into a new folder, or return the folder's plan if it describes the same work.

    Several processes may do this at once: they write the same bytes, atomically.

    Raises:
        InputError: The folder holds other files, or embeddings of another bundle, source or split, or the
            source has changed.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder}: cannot be created ({error.strerror or error})") from error
    if (folder / MANIFEST).is_file():
        kept = read_plan(folder)
        _refuse_other_work(folder, kept, wanted)
        return kept
    if any(not entry.name.startswith(MANIFEST) for entry in folder.iterdir()):
        raise InputError(f"{folder}: holds other files than embeddings; choose another folder")
    with disk_errors(folder / MANIFEST):
        write_manifest(folder, wanted, complete=None)
    return wanted


def _refuse_other_work(folder: Path, kept: Plan, wanted: Plan) -> None:
    for name, option in _OPTIONS.items():
        if (began := getattr(kept, name)) != (now := getattr(wanted, name)):
            raise InputError(
                f"{folder}: was begun with {name} {began}, not {now}; give the same --{option}, "
                "or another folder as --out"
            )
    if kept.content != wanted.content:
        raise InputError(
            f"{folder}: {kept.source} has changed since the folder was begun ({kept.images} images then, "
            f"{wanted.images} now, or other names or labels); give another folder as --out"
        )


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a folder of embeddings.

    Raises:
        InputError: It is missing, damaged or of an unknown format.
    """
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(
            f"{folder}: no embeddings here ({MANIFEST} is missing); run kindred embed first"
        ) from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({error}); embed again into another folder") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        found = manifest.get("format") if isinstance(manifest, dict) else None
        raise InputError(f"{path}: format {found}, this program reads {FORMAT}; embed again")
    return manifest


def read_plan(folder: Path) -> Plan:
    """The plan of a folder; see :func:`read_manifest`."""
    try:
        return Plan(**read_manifest(folder)["plan"])
    except (KeyError, TypeError) as error:
        raise InputError(f"{folder / MANIFEST}: not as kindred embed writes it ({error})") from error


def write_manifest(folder: Path, plan: Plan, complete: dict[str, int] | None) -> None:
    """Write the manifest atomically; ``complete`` has the counts of a finished run."""
    content = {"format": FORMAT, "plan": asdict(plan), "complete": complete}
    with replacing(folder / MANIFEST) as fresh:
        write_synced(fresh, [(json.dumps(content, indent=2) + "\n").encode()])
    sync_folder(folder)
