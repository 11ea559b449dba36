"""The nodes: schemas and short executes. The work is done in `guiders` and `demo`."""
