"""How an item's id stands in a path."""

from starlette.convertors import Convertor, register_url_convertor


class _ItemId(Convertor[str]):
    """Any text. Starlette's own `path` ends before a line break, and would take one id for another."""

    regex = r"[\s\S]*"

    def convert(self, value: str) -> str:
        return value

    def to_string(self, value: str) -> str:
        return value


register_url_convertor("item_id", _ItemId())

ITEM = "/items/{item_id:item_id}"
