"""The process that draws a share of the classes: it reads an order as JSON and prints a line per class."""

import io
import json
import sys
import zipfile
from pathlib import Path

import numpy as np

from data.glyphs.drawing import draw_glyph

# A fixed date, so that the same pictures make the same archive.
_DATE = (2020, 1, 1, 0, 0, 0)


def _draw(part: Path) -> None:
    order = json.load(sys.stdin)
    with zipfile.ZipFile(part, "w") as archive:
        for job in order["jobs"]:
            for number in range(order["count"]):
                rng = np.random.default_rng((order["seed"], job["code"], number))
                content = io.BytesIO()
                draw_glyph(job["variants"], rng, order["size"]).save(content, "PNG", compress_level=1)
                info = zipfile.ZipInfo(f"{job['folder']}/{number:03d}.png", _DATE)
                archive.writestr(info, content.getvalue())
            sys.stdout.write(".\n")
            sys.stdout.flush()


if __name__ == "__main__":
    _draw(Path(sys.argv[1]))
