"""Imports on the client's side: items cut into blocks of lines, and the answer to each block."""

from collections.abc import Iterable, Iterator

import msgspec

from serve.client.encoding import check_metadata, encode
from serve.client.service_error import ServiceError
from serve.schemas import ImportProgress, NewItem

# Large enough for a request's overhead not to matter, small enough to be sent again.
BLOCK_BYTES = 8 * 2**20


def blocks(items: Iterable[NewItem], most: int = BLOCK_BYTES) -> Iterator[bytes]:
    """The items as lines of JSON, in blocks of about ``most`` bytes."""
    lines: list[bytes] = []
    size = 0
    for item in items:
        check_metadata(getattr(item, "metadata", None))
        line = encode(item)
        lines.append(line)
        size += len(line) + 1
        if size >= most:
            yield b"\n".join(lines)
            lines, size = [], 0
    if lines:
        yield b"\n".join(lines)


def progress_of(answer: bytes, sent: int) -> ImportProgress:
    """The result of a block, from the answer's last line; ``sent`` items were sent ahead of it.

    Raises:
        ServiceError: The block was refused from some item on.
    """
    last = msgspec.json.decode(answer.rstrip().rpartition(b"\n")[2], type=ImportProgress)
    if last.error is not None:
        text = f"{last.error} (the {sent + last.line} before are stored)"
        if last.refused is not None:  # a block has one item on each of its lines
            text = f"item number {sent + last.refused}: {text.removeprefix(f'line {last.refused}: ')}"
        raise ServiceError(last.status or 0, last.code or "", text)
    return last
