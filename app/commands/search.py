"""``kindred search``: search a running service from the shell."""

import io
import os
from pathlib import Path

from PIL import Image, ImageDraw
from rich.console import Console
from rich.table import Table

from models.errors import InputError
from models.preprocess import DecodeLimits, decode_image
from serve.client import Client, ServiceError
from serve.schemas import Neighbour
from serve.store.types import DEFAULT_K

TILE = 160


def search(
    image: Path,
    *,
    k: int = DEFAULT_K,
    url: str = "http://127.0.0.1:8000",
    label: str | None = None,
    collection: str | None = None,
    sheet: Path | None = None,
) -> None:
    """Find the nearest neighbours of an image in a running service.

    If the service needs a key, set KINDRED_READ_KEY.

    Args:
        image: The query image.
        k: Number of neighbours.
        url: Address of the service.
        label: Return only items with this label.
        collection: Collection to search; by default the service's own.
        sheet: Also write a contact sheet of the query and its neighbours, as PNG or JPEG.
    """
    if not image.is_file():
        raise InputError(f"{image}: no such file; name an image")
    with Client(url, key=os.environ.get("KINDRED_READ_KEY")) as client:
        try:
            answer = client.search_image(image, k, label=label, collection=collection)
            thumbnails = [_thumbnail(client, hit, collection) for hit in answer.hits] if sheet else []
        except ServiceError as error:
            raise InputError(f"{url}: {error}") from error
    table = Table(title=f"{image.name}: {answer.timings_ms['total']:.1f} ms, {answer.plan.strategy}")
    for name in ("similarity", "label", "id"):
        table.add_column(name, justify="right" if name == "similarity" else "left")
    for hit in answer.hits:
        table.add_row(f"{hit.similarity:.4f}", hit.label or "", str(hit.id))
    Console().print(table)
    if sheet is not None:
        query = decode_image(image, "RGB", DecodeLimits(), at_least=TILE)
        captions = ["query", *(f"{hit.similarity:.3f} {hit.label or ''}" for hit in answer.hits)]
        contact_sheet([query, *thumbnails], captions).save(sheet)
        Console().print(f"contact sheet written to {sheet}")


def _thumbnail(client: Client, hit: Neighbour, collection: str | None) -> Image.Image | None:
    try:
        content = client.thumbnail(hit.id, collection=collection)
    except ServiceError as error:
        if error.status == 404:
            return None
        raise
    return Image.open(io.BytesIO(content)).convert("RGB")


def contact_sheet(images: list[Image.Image | None], captions: list[str], columns: int = 6) -> Image.Image:
    """Images in a grid with captions; a missing image leaves its tile empty."""
    rows = -(-len(images) // columns)
    height = TILE + 20
    page = Image.new("RGB", (min(columns, len(images)) * TILE, rows * height), "white")
    draw = ImageDraw.Draw(page)
    for position, (image, caption) in enumerate(zip(images, captions, strict=True)):
        x, y = position % columns * TILE, position // columns * height
        if image is not None:
            small = image.copy()
            small.thumbnail((TILE - 8, TILE - 8))
            page.paste(small, (x + 4, y + 4))
        draw.text((x + 4, y + TILE), caption[:24], fill="black")
    return page
