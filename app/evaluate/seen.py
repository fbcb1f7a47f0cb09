"""Keeps an evaluation honest: a model is not tested on classes that it was trained on."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from app.evaluate.images import ImageSet
from app.evaluate.models import Candidate
from data.seen_classes import seen_classes
from models.errors import InputError


def split_of(candidates: Sequence[Candidate]) -> Mapping[str, Any] | None:
    """How the first model's data were split for its training, see `data.splits.select`."""
    return next((split for model in candidates if (split := model.model.info.get("split"))), None)


def seen_notes(candidates: Sequence[Candidate], images: ImageSet, *, allow: bool) -> list[str]:
    """What the reader must know of classes that a model may have been trained on.

    Args:
        candidates: the models.
        images: what they are tested on.
        allow: whether to go on where test classes were seen in training.

    Raises:
        InputError: they were, and that is not allowed.
    """
    names = [images.table.class_names[label] for label in np.unique(images.table.labels)]
    notes = []
    for candidate in candidates:
        info, packed = candidate.model.info, candidate.model.training_classes
        same_split = images.split_hash is not None and images.split_hash == info.get("split_hash")
        if packed is None:
            if images.split_hash is not None and info.get("split_hash") not in (None, images.split_hash):
                notes.append(
                    f"{candidate.name} was trained on another split of the data than this one: "
                    "it may have seen the classes that it is tested on."
                )
            continue
        seen = seen_classes(packed, names)
        if not seen:
            continue
        told = f"{candidate.name} was trained on {len(seen)} of the {len(names)} classes to be tested"
        if same_split and images.split != "train" and (info.get("split") or {}).get("kind") == "per_image":
            notes.append(f"{told}, on other images of them: the figures do not hold for new classes.")
        elif allow:
            notes.append(f"{told}: the figures say nothing of new classes.")
        else:
            raise InputError(
                f"{told} (or on classes of the same names, {seen[0]!r} first): test on others "
                "(--split test of the data it was trained on), or give --allow-seen-classes"
            )
    return notes
