"""trio: the node process. app wires it; front door, worker supervision, link server and admin API stand beside it."""
