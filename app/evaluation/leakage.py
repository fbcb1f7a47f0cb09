"""Refuse to test a model on classes that it was trained on."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from app.evaluation.evaluated_models import EvaluatedModel
from app.evaluation.evaluation_set import EvaluationSet
from data.seen_classes import seen_classes
from models.bundle import Bundle
from models.errors import InputError


def split_of(bundles: Sequence[Bundle]) -> Mapping[str, Any] | None:
    """The first recorded split settings among the models, see `data.splits.select`."""
    return next((split for bundle in bundles if (split := bundle.info.get("split"))), None)


def seen_notes(models: Sequence[EvaluatedModel], items: EvaluationSet, *, allow: bool) -> list[str]:
    """Notes about test classes that a model was, or may have been, trained on.

    Args:
        models: those without a bundle are skipped, because their training is unknown.
        items: the items to test on.
        allow: whether test classes may have been seen in training.

    Raises:
        InputError: test classes were seen in training, and `allow` is false.
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
            notes.append(f"{told}, on other images of them: the metrics do not hold for new classes.")
        elif allow:
            notes.append(f"{told}: the metrics do not hold for new classes.")
        else:
            raise InputError(
                f"{told} (or on classes of the same names, {seen[0]!r} first): test on others "
                "(--split test of the data it was trained on), or give --allow-seen-classes"
            )
    return notes
