"""Every block of docs/serving.md runs against a real service."""

import re
import subprocess
from pathlib import Path

PAGE = (Path(__file__).parents[2] / "docs/serving.md").read_text(encoding="utf-8")
# The benchmarks run for minutes; what they print has pages of its own.
BLOCKS = [
    (kind, block)
    for kind, block in re.findall(r"^```(sh|python)\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    if "tests/benchmarks/" not in block
]


def test_blocks_run_in_order(start, picture, tmp_path, monkeypatch, capsys):
    running = start()
    monkeypatch.chdir(tmp_path)
    for name in ("photo.jpg", "a.jpg", "b.jpg"):
        Path(name).write_bytes(picture(1, form="JPEG"))
    outputs = []
    for kind, block in BLOCKS:
        code = block.replace("http://127.0.0.1:8000", running.address)
        if kind == "sh":
            code = code.replace("curl ", "curl -fsS ")
            done = subprocess.run(["bash", "-euc", code], capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
            outputs.append(done.stdout)
        else:
            exec(compile(code, "docs/serving.md", "exec"), {})
            outputs.append(capsys.readouterr().out)
    by_curl, by_client, imported = outputs
    assert by_curl.count('"hits"') == 3
    assert '"same":true' in by_curl
    assert by_client.startswith("cat-17 cat")
    assert imported == "2\n['blue']\n"
