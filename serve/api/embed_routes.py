"""``/v1/embed`` and ``/v1/verify``: the model without a store."""

from contextlib import suppress

import numpy as np
from fastapi import APIRouter, Depends
from msgspec import Struct
from starlette.requests import Request
from starlette.responses import Response

from models.preprocess import ImageError
from serve.api.bodies import fields_as, read_images
from serve.api.context import Stopwatch, check_batch, service_of
from serve.api.documents import answers, image_body, reply
from serve.auth import read_key
from serve.problems import Problem
from serve.schemas import EmbedAnswer, VerifyAnswer

router = APIRouter(prefix="/v1", tags=["model"], dependencies=[Depends(read_key)])


class NoFields(Struct, forbid_unknown_fields=True):
    """No fields besides the images."""


class VerifyFields(Struct, kw_only=True, forbid_unknown_fields=True):
    """How strict to be.

    Attributes:
        false_accept_rate: One of the rates that the model was calibrated for; the strictest one when absent.
    """

    false_accept_rate: str | None = None


@router.post(
    "/embed",
    summary="Embed images",
    responses=answers(EmbedAnswer),
    openapi_extra=image_body(NoFields, many=True),
)
async def embed(request: Request) -> Response:
    """Vectors of one or several images (repeat the file field `image`).

    With `Accept: application/octet-stream` the answer is raw little-endian float32, one row an image; a
    single unusable image then refuses the whole request.
    """
    service = service_of(request)
    form = await read_images(request, "image", many=True)
    watch = Stopwatch()
    fields_as(form.fields, NoFields)
    images = form.files["image"]
    check_batch(len(images), service, "images")
    bundle = service.bundle
    with service.admission.admit(len(images)), watch.stage("embed"):
        embedded = await service.pipeline.embed_many(images)
    errors = {index: str(image) for index, image in enumerate(embedded) if isinstance(image, ImageError)}
    if errors and (len(images) == 1 or _wants_raw(request)):
        raise Problem(422, "image", next(iter(errors.values())))
    if _wants_raw(request):
        rows = np.stack([image.vector for image in embedded if not isinstance(image, ImageError)])
        return Response(
            rows.astype("<f4").tobytes(),
            media_type="application/octet-stream",
            headers={"X-Dim": str(bundle.dim), "X-Fingerprint": bundle.fingerprint},
        )
    return reply(
        EmbedAnswer(
            vectors=[None if isinstance(image, ImageError) else image.vector.tolist() for image in embedded],
            errors=errors,
            fingerprint=bundle.fingerprint,
            dim=bundle.dim,
            timings_ms=watch.finish(service),
        )
    )


@router.post(
    "/verify",
    summary="Compare two images",
    responses=answers(VerifyAnswer),
    openapi_extra=image_body(VerifyFields, files=("first", "second")),
)
async def verify(request: Request) -> Response:
    """Whether two images show the same class, by the threshold calibrated for a false-accept rate."""
    service = service_of(request)
    form = await read_images(request, "first", "second")
    watch = Stopwatch()
    fields = fields_as(form.fields, VerifyFields)
    thresholds = service.bundle.thresholds  # a reload may replace the bundle before the answer
    rate, threshold = _threshold(thresholds, fields.false_accept_rate)
    with service.admission.admit(2), watch.stage("embed"):
        pair = await service.pipeline.embed_many([form.files["first"][0], form.files["second"][0]])
    vectors = []
    for name, image in zip(("first", "second"), pair, strict=True):
        if isinstance(image, ImageError):
            raise Problem(422, "image", f"{name}: {image}")
        vectors.append(image.vector)
    similarity = float(np.clip(np.dot(vectors[0], vectors[1]), -1.0, 1.0))
    return reply(
        VerifyAnswer(
            same=None if threshold is None else similarity >= threshold,
            similarity=similarity,
            threshold=threshold,
            false_accept_rate=rate,
            thresholds=thresholds,
            timings_ms=watch.finish(service),
        )
    )


def _wants_raw(request: Request) -> bool:
    first = request.headers.get("accept", "").partition(",")[0].partition(";")[0]
    return first.strip().lower() == "application/octet-stream"


def _threshold(thresholds: dict[str, float], wanted: str | None) -> tuple[float | None, float | None]:
    """The rate and threshold to decide by; Nones where the model was not calibrated."""
    if wanted is not None:
        with suppress(ValueError):
            number = float(wanted)
            for rate, threshold in thresholds.items():
                if float(rate) == number:
                    return number, threshold
        known = ", ".join(sorted(thresholds)) or "none; kindred evaluate calibrates"
        raise Problem(422, "rate", f"false_accept_rate {wanted}: the model is calibrated for {known}")
    if not thresholds:
        return None, None
    strictest = min(thresholds, key=float)
    return float(strictest), thresholds[strictest]
