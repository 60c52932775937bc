"""Sans-IO msgpack codecs: frames, commands, peer and link messages, gossip datagrams. Imports core only."""
