"""``kindred embed``: the embeddings of any source as sharded Parquet, on any number of devices."""
