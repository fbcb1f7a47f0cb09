"""``/v1/collections`` and what describes them: labels, figures, the model."""

from fastapi import APIRouter, Depends
from starlette.requests import Request
from starlette.responses import Response

from serve.api.bodies import fields_as
from serve.api.context import service_of
from serve.api.documents import answers, form_fields, query_parameters, reply
from serve.api.items import InCollection
from serve.auth import requires
from serve.schemas import CollectionStats, Labels, Model
from serve.store.protocol import Store

router = APIRouter(prefix="/v1", tags=["collections"], dependencies=[Depends(requires(write=False))])

_COLLECTION = query_parameters(form_fields(InCollection))


def figures(name: str, store: Store) -> CollectionStats:
    """A collection's figures under its name."""
    stats = store.stats()
    return CollectionStats(
        name=name,
        items=stats.items,
        dim=stats.dim,
        fingerprint=stats.fingerprint,
        index=stats.index,
        sequence=stats.sequence,
        segments=stats.segments,
        head=stats.head,
        dead=stats.dead,
        snapshot_sequence=stats.snapshot_sequence,
        disk_bytes=stats.disk_bytes,
        payload_indexes=list(stats.payload_indexes),
    )


@router.get(
    "/stats", summary="A collection's figures", responses=answers(CollectionStats), openapi_extra=_COLLECTION
)
async def stats(request: Request) -> Response:
    """Items, index, sizes on disk."""
    service = service_of(request)
    name = fields_as(dict(request.query_params), InCollection).collection or service.settings.collection
    store = service.store(name)
    return reply(await service.threads.call(lambda: figures(name, store)))


@router.get("/labels", summary="A collection's labels", responses=answers(Labels), openapi_extra=_COLLECTION)
async def labels(request: Request) -> Response:
    """Up to 1000 labels with their number of items, most frequent first."""
    service = service_of(request)
    name = fields_as(dict(request.query_params), InCollection).collection
    store = service.store(name)
    return reply(Labels(labels=await service.threads.call(store.labels)))


@router.get("/model", summary="The model", responses=answers(Model))
async def model(request: Request) -> Response:
    """What embeds images here: fingerprint, input, calibrated thresholds and training figures."""
    bundle = service_of(request).bundle
    return reply(
        Model(
            fingerprint=bundle.fingerprint,
            dim=bundle.dim,
            size=bundle.preprocess.size,
            mode=bundle.preprocess.mode,
            thresholds=bundle.thresholds,
            info=bundle.info,
        )
    )
