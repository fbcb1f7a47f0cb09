"""``kindred embed``: embeds a source into sharded Parquet files on any number of devices."""
