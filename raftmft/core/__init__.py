"""Pure and deterministic: no clock, no randomness, no threads, no sockets, no async. Standard library only."""
