"""The ways to write a search: all of them become one `SearchQuery`, and none forgets a field."""

from typing import get_type_hints

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from serve.client.requests import Options
from serve.schemas import SearchOptions
from serve.store.types import QueryArguments, SearchQuery

OPTIONS = st.builds(
    SearchOptions,
    k=st.integers(1, 100),
    label=st.none() | st.text(),
    filter=st.none() | st.dictionaries(st.sampled_from(["label", "id"]), st.text(), max_size=2),
    min_similarity=st.none() | st.floats(-1, 1),
    exclude=st.lists(st.integers() | st.text(), max_size=3),
    group_by=st.sampled_from([None, "label"]),
    exact=st.booleans(),
    effort=st.none() | st.integers(1, 65_536),
)
# Of the HTTP options, those that choose a collection or become a part of `where`.
APART = {"label", "filter", "collection"}


def names(struct: type[msgspec.Struct]) -> set[str]:
    return set(struct.__struct_fields__)


def test_every_way_has_all_options() -> None:
    assert set(get_type_hints(QueryArguments)) == names(SearchQuery)
    assert names(SearchOptions) - APART == names(SearchQuery) - {"where", "with_metadata", "fingerprint"}
    assert set(get_type_hints(Options)) == names(SearchOptions) - {"filter", "k"} | {"where"}


@given(options=OPTIONS, fingerprint=st.none() | st.text())
def test_http_options_become_a_query(options: SearchOptions, fingerprint: str | None) -> None:
    query = options.query(fingerprint)
    assert query.fingerprint == fingerprint
    for name in names(SearchOptions) - APART:
        given = getattr(options, name)
        assert getattr(query, name) == (tuple(given) if isinstance(given, list) else given)
    if options.label is None:
        assert query.where == (options.filter or None)
    elif options.filter:
        assert query.where == {"and": [{"label": options.label}, options.filter]}
    else:
        assert query.where == {"label": options.label}
    assert query.is_plain == (
        not (query.where or query.exclude or query.group_by) and query.min_similarity is None
    )
    if query.is_plain:
        assert hash(query) == hash(options.query(fingerprint))  # searches that ask the same share a batch


def test_defaults_are_the_same_everywhere() -> None:
    assert SearchOptions().query() == SearchQuery()
    assert SearchQuery.of(SearchQuery().k, {}) == SearchQuery()
