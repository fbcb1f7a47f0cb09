"""Thousands of damaged bodies: never a 5xx, never a death, memory bounded, ready at the end.

The full count runs in `make soak` (KINDRED_FUZZ_BODIES=10000).
"""

import io
import json
import os
import random
import struct
import time
import zlib
from pathlib import Path

import httpx
import numpy as np
from PIL import Image

BODIES = int(os.environ.get("KINDRED_FUZZ_BODIES", "300"))
MOST_GROWTH = 300 * 2**20


def resident_bytes():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def seeds(rng):
    """Good images of every kind, some of them odd."""
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8))
    frames = [noise.rotate(30 * turn) for turn in range(3)]
    exif = Image.Exif()
    exif[0x0112] = 8

    def encoded(image, form, **options):
        buffer = io.BytesIO()
        image.save(buffer, form, **options)
        return buffer.getvalue()

    return [
        encoded(noise, "PNG"),
        encoded(noise, "JPEG", exif=exif),
        encoded(noise, "JPEG", progressive=True),
        encoded(noise.convert("CMYK"), "JPEG"),
        encoded(noise, "WEBP"),
        encoded(noise.convert("RGBA"), "PNG"),
        encoded(noise.convert("P"), "PNG", transparency=3),
        encoded(noise.convert("L"), "TIFF"),
        encoded(noise.convert("F"), "TIFF"),
        encoded(noise, "BMP"),
        encoded(noise.resize((1, 1)), "PNG"),
        encoded(noise.resize((1, 500)), "GIF"),
        encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]),
        encoded(frames[0], "PNG", save_all=True, append_images=frames[1:]),
        b"dear diary " * 20,
        b"",
        rng.randbytes(1000),
    ]


def damage(rng, content):
    """Cuts, flips, doubles or grows some bytes."""
    content = bytearray(content)
    for _ in range(rng.randint(0, 4)):
        if not content:
            break
        at = rng.randrange(len(content))
        match rng.randrange(5):
            case 0:
                del content[at:]
            case 1:
                content[at] ^= 1 << rng.randrange(8)
            case 2:
                content[at:at] = content[at : at + rng.randrange(200)]
            case 3:
                content[at : at + 4] = struct.pack(">I", rng.choice([0, 1, 2**16, 2**31 - 1, 2**32 - 1]))
            case 4:
                content[at:at] = rng.randbytes(rng.randrange(50))
    return bytes(content)


def bomb(rng):
    """A PNG whose header lies about its size, with a well-compressed body."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    side = rng.choice([1, 900, 5_000, 60_000, 2**31 - 1])
    header = struct.pack(">IIBBBBB", side, side, 8, rng.choice([0, 2, 3, 6]), 0, 0, 0)
    body = zlib.compress(bytes(rng.choice([10, 10**6])), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def odd_value(rng, depth=0):
    """A JSON value, most likely of a type that nobody expects."""
    plain = [None, True, -1, 0, 2**63, 1e308, "", "7", "\x00", "ü" * 50, [], {}, float("nan")]
    if depth > 3 or rng.random() < 0.6:
        return rng.choice(plain)
    if rng.random() < 0.5:
        return [odd_value(rng, depth + 1) for _ in range(rng.randrange(4))]
    names = ["label", "metadata.a", "and", "not", "in", "gte", "id", "x"]
    return {rng.choice(names): odd_value(rng, depth + 1) for _ in range(rng.randrange(4))}


def deep(rng):
    """JSON that is nested very deeply, as text: Python's own encoder would not go so far."""
    levels = rng.choice([20, 200, 900, 5_000, 200_000])
    opening, closing = rng.choice([("[", "]"), ('{"a":', "}"), ('{"and":[', "]}"), ('{"not":', "}")])
    return opening * levels + "1" + closing * rng.choice([levels, levels - 1])


def slowly(content):
    """The content in some pieces, each of which comes late."""
    step = max(1, len(content) // 3)
    for start in range(0, len(content), step):
        time.sleep(0.002)
        yield content[start : start + step]


def send(http, rng, images):
    """One request, damaged in one of many ways."""
    image = bomb(rng) if rng.random() < 0.1 else damage(rng, rng.choice(images))
    names = [
        "k",
        "label",
        "filter",
        "min_similarity",
        "exclude",
        "group_by",
        "exact",
        "collection",
        "id",
        "metadata",
    ]
    fields = {rng.choice(names): json.dumps(odd_value(rng)) for _ in range(rng.randrange(3))}
    match rng.randrange(10):
        case 8:
            name = rng.choice(["filter", "metadata", "exclude", "vector", "items"])
            line = f'{{"id": 1, "vector": {[0.5] * 32}, "{name}": {deep(rng)}}}'.encode()
            path = rng.choice(["search/vector", "items/vectors", "items/delete", "import"])
            return http.post(f"/v1/{path}", content=line, headers={"content-type": "application/json"})
        case 9:
            whole = http.build_request("POST", "/v1/items", files={"image": image}, data=fields).read()
            path = rng.choice(["search", "embed", "import", "raw/search"])
            headers = {"content-type": rng.choice(["image/png", "multipart/form-data; boundary=x"])}
            return http.post(f"/v1/{path}", content=slowly(whole), headers=headers)
        case 0 | 1:
            path = rng.choice(["/v1/search", "/v1/search/batch", "/v1/embed", "/v1/items"])
            return http.post(path, files={"image": image}, data=fields)
        case 2:
            whole = http.build_request("POST", "/v1/search", files={"image": image}, data=fields)
            return http.post(
                "/v1/search",
                content=damage(rng, whole.read()),
                headers={"content-type": whole.headers["content-type"]},
            )
        case 3:
            return http.post("/v1/verify", files={"first": image, "second": rng.choice(images)}, data=fields)
        case 4:
            body = {
                rng.choice([*names, "vector", "vectors", "items", "ids", "positives"]): odd_value(rng)
                for _ in range(3)
            }
            if rng.random() < 0.5:
                body["vector"] = [rng.choice([0.1, -1, 0, 1e300])] * rng.choice([32, 32, 32, 0, 7])
            path = rng.choice(
                ["search/vector", "search/examples", "items/vectors", "items/delete", "collections"]
            )
            content = damage(rng, json.dumps(body).encode()) if rng.random() < 0.3 else json.dumps(body)
            return http.post(f"/v1/{path}", content=content, headers={"content-type": "application/json"})
        case 5:
            rows = (
                np.random.default_rng(rng.randrange(99)).standard_normal(32 * rng.randrange(3)).astype("<f4")
            )
            return http.post("/v1/raw/search", content=damage(rng, rows.tobytes()), params=fields)
        case 6:
            lines = [
                json.dumps({"id": odd_value(rng), "vector": [0.5] * rng.choice([32, 32, 5])})
                for _ in range(3)
            ]
            return http.post("/v1/import", content=damage(rng, "\n".join(lines).encode()))
        case _:
            item_id = rng.choice(['"', "%00", "..", "7", '"7"', "x" * 2000, "%ff", "a/b/similar"])
            return http.request(rng.choice(["GET", "DELETE", "PATCH"]), f"/v1/items/{item_id}", params=fields)


def test_damaged_bodies_never_break_the_service(running):
    rng = random.Random(0)
    images = seeds(rng)
    with httpx.Client(base_url=running.address, timeout=60) as http:
        for _ in range(min(BODIES, 100)):  # allocators and caches warm up
            send(http, rng, images)
        before = resident_bytes()
        statuses = {}
        for number in range(BODIES):
            state = rng.getstate()
            response = send(http, rng, images)
            statuses[response.status_code] = statuses.get(response.status_code, 0) + 1
            assert response.status_code < 500, (number, response.text, response.request.url, hash(state))
        assert http.get("/readyz").json() == {"status": "ok"}
    after = resident_bytes()
    print(f"\n{BODIES} bodies, answers by status: {dict(sorted(statuses.items()))}; /readyz ok")
    print(f"resident {before / 2**20:.0f} MiB before, {after / 2**20:.0f} MiB after")
    assert len(statuses) >= 3
    assert after - before < MOST_GROWTH
