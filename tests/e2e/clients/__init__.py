"""SFTP clients that people use, each behind the same few verbs: test_clients.py takes each through every scenario."""
