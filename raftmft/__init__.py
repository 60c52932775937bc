"""raftmft: one program, run once per host, that makes an active-active SFTP cluster. The map is in DESIGN.md."""

__version__ = "0.1.0"
