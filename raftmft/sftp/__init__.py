"""asyncio: the session worker. Terminates SSH and SFTP, writes and reads chunks, asks its node over the link."""
