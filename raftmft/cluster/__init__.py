"""trio: mutual-TLS links between members, gossip, replication and repair of chunks, certificates."""
