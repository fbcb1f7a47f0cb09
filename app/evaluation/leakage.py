"""Keeps an evaluation honest: a model is not tested on classes that it was trained on."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from app.evaluation.evaluated_models import EvaluatedModel
from app.evaluation.evaluation_set import EvaluationSet
from data.seen_classes import seen_classes
from models.bundle import Bundle
from models.errors import InputError


def split_of(bundles: Sequence[Bundle]) -> Mapping[str, Any] | None:
    """How the first model's data were split for its training, see `data.splits.select`."""
    return next((split for bundle in bundles if (split := bundle.info.get("split"))), None)


def seen_notes(models: Sequence[EvaluatedModel], items: EvaluationSet, *, allow: bool) -> list[str]:
    """What the reader must know of classes that a model may have been trained on.

    Args:
        models: those without a bundle say nothing of their training.
        items: what they are tested on.
        allow: whether to go on where test classes were seen in training.

    Raises:
        InputError: they were, and that is not allowed.
    """
    names = [items.class_names[label] for label in np.unique(items.labels)]
    notes = []
    for model in models:
        if model.bundle is None:
            continue
        info, packed = model.bundle.info, model.bundle.training_classes
        same_split = items.split_hash is not None and items.split_hash == info.get("split_hash")
        if packed is None:
            if items.split_hash is not None and info.get("split_hash") not in (None, items.split_hash):
                notes.append(
                    f"{model.name} was trained on another split of the data than this one: "
                    "it may have seen the classes that it is tested on."
                )
            continue
        seen = seen_classes(packed, names)
        if not seen:
            continue
        told = f"{model.name} was trained on {len(seen)} of the {len(names)} classes to be tested"
        if same_split and items.split != "train" and (info.get("split") or {}).get("kind") == "per_image":
            notes.append(f"{told}, on other images of them: the figures do not hold for new classes.")
        elif allow:
            notes.append(f"{told}: the figures say nothing of new classes.")
        else:
            raise InputError(
                f"{told} (or on classes of the same names, {seen[0]!r} first): test on others "
                "(--split test of the data it was trained on), or give --allow-seen-classes"
            )
    return notes
