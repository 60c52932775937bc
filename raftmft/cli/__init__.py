"""click commands. They talk to a running node through its admin API; dev and node start processes."""
