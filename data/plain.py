"""Metadata of a Parquet table as values that JSON has, which stores, reports and filters understand."""

import json
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc


def plain_values(values: pa.Array) -> pa.Array | None:
    """The same values as strings, integers, finite floats, booleans, or lists and structs of these.

    Decimals become floats, non-finite floats null, and times and mappings strings. Returns None for columns
    that contain bytes.
    """
    if isinstance(values, pa.ExtensionArray):
        values = values.storage
    kind = values.type
    if pa.types.is_dictionary(kind):
        return plain_values(values.cast(kind.value_type))
    if _holds_bytes(kind):
        return None
    if pa.types.is_decimal(kind) or pa.types.is_floating(kind):
        values = values.cast(pa.float64())
        return pc.if_else(pc.is_finite(values), values, None)
    if _is_plain(kind):
        return values
    contents = [_plain(value) for value in values.to_pylist()]
    try:
        return pa.array(contents)
    except pa.ArrowException:  # values of several kinds
        return pa.array([None if content is None else json.dumps(content) for content in contents])


def _children(kind: pa.DataType) -> list[pa.DataType]:
    return [kind.field(number).type for number in range(kind.num_fields)]


def _holds_bytes(kind: pa.DataType) -> bool:
    types = pa.types
    bytes_ = (types.is_binary, types.is_large_binary, types.is_fixed_size_binary, types.is_binary_view)
    return any(test(kind) for test in bytes_) or any(map(_holds_bytes, _children(kind)))


def _is_plain(kind: pa.DataType) -> bool:
    if pa.types.is_list(kind) or pa.types.is_struct(kind):
        return all(map(_is_plain, _children(kind)))
    scalars = (pa.types.is_string, pa.types.is_integer, pa.types.is_boolean, pa.types.is_null)
    return any(test(kind) for test in scalars)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(name): _plain(content) for name, content in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(content) for content in value]
    if isinstance(value, float) and not -float("inf") < value < float("inf"):
        return None
    return value if value is None or isinstance(value, str | int | float) else str(value)
