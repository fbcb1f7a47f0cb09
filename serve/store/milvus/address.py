"""Where a Milvus is: `file:PATH` for the embedded one, `milvus://`, `http://` or `https://` for a server."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from serve.store.protocol import StoreError

TOKEN = "KINDRED_MILVUS_TOKEN"  # noqa: S105  (the variable's name, not a token)
_SCHEMES = ("file", "milvus", "http", "https")
_PORT = 19530
_DATABASE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,254}")


@dataclass(frozen=True, slots=True)
class Address:
    """A parsed address.

    Attributes:
        uri: As the user wrote it.
        folder: Where the embedded engine keeps its files; None for a server.
        server: The server as `http(s)://HOST:PORT`; None for the embedded engine.
        database: Milvus database; empty for the default one.
    """

    uri: str
    folder: Path | None = None
    server: str | None = None
    database: str = ""

    @property
    def embedded(self) -> bool:
        """Whether the engine runs inside this process."""
        return self.folder is not None


def is_address(text: object) -> bool:
    """Whether a text names a Milvus rather than a folder of this machine."""
    return isinstance(text, str) and text.lower().startswith(tuple(f"{scheme}:" for scheme in _SCHEMES))


def parse_address(text: str) -> Address:
    """Takes an address apart.

    Args:
        text: `file:relative/path`, `file:///absolute/path`, or `milvus://HOST[:PORT][/DATABASE]` (also with
            `http` or `https`; port 19530 where none is given).

    Raises:
        StoreError: It is none of these, or it carries a password, which other users of the machine could read
            on the command line.
    """
    try:
        parts = urlsplit(text)
        port = parts.port or _PORT
    except ValueError as error:
        raise StoreError(f"The store's address is malformed ({error}); use milvus://HOST:PORT") from None
    scheme = parts.scheme.lower()
    if parts.username or parts.password:
        raise StoreError(f"The store's address holds a password; put it into {TOKEN} as USER:PASSWORD")
    if scheme == "file":
        if parts.netloc not in ("", "localhost"):
            raise StoreError(f"{text}: a file on another machine; use file:///absolute/path")
        if not parts.path:
            raise StoreError(f"{text} names no file; use file:///absolute/path or file:relative/path")
        return Address(text, folder=Path(unquote(parts.path)))
    if scheme not in _SCHEMES:
        raise StoreError(f"{text} is no address of a store; use milvus://HOST:PORT or file:PATH")
    if not parts.hostname or parts.query or parts.fragment:
        raise StoreError(f"{text} is no address of a Milvus; use milvus://HOST:PORT/DATABASE")
    database = parts.path.strip("/")
    if database and not _DATABASE.fullmatch(database):
        raise StoreError(f"{database!r} is no database name; use letters, digits and '_'")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    plain = "https" if scheme == "https" else "http"
    return Address(text, server=f"{plain}://{host}:{port}", database=database)


_OURS = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_PREFIX = "kindred_"
_WRITTEN = {"_": "__", "-": "_d", ".": "_p"}
_READ = {written: plain for plain, written in _WRITTEN.items()}


def check_name(name: str, what: str = "collection name") -> str:
    """Returns a usable name.

    Raises:
        StoreError: It is not.
    """
    if not _OURS.fullmatch(name):
        raise StoreError(f"{name!r} is no {what}; use up to 64 letters, digits, '_', '-' or '.'")
    return name


def milvus_name(name: str) -> str:
    """The name inside Milvus; different names stay different."""
    return _PREFIX + re.sub(r"[_.-]", lambda found: _WRITTEN[found[0]], check_name(name))


def our_name(name: str) -> str | None:
    """The inverse of `milvus_name`; None for what is not ours."""
    if not name.startswith(_PREFIX):
        return None
    plain = re.sub(r"_[_dp]", lambda found: _READ[found[0]], name.removeprefix(_PREFIX))
    return plain if _OURS.fullmatch(plain) and milvus_name(plain) == name else None
