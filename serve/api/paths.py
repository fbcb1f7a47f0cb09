"""The id of an item in a path."""

from starlette.convertors import Convertor, register_url_convertor


class _ItemId(Convertor[str]):
    """Any text. Starlette's own `path` stops at a line break and would confuse ids."""

    regex = r"[\s\S]*"

    def convert(self, value: str) -> str:
        return value


register_url_convertor("item_id", _ItemId())

ITEM = "/items/{item_id:item_id}"
