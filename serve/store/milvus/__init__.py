"""The store in Milvus: embedded (milvus-lite) or a cluster, whichever the address names."""
