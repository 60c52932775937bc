"""The chunk store of one node: append-only segments on disk, and a memory twin that passes the same suite."""
