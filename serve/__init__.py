"""The retrieval service: stores, API, page, client."""
