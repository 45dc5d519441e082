"""The teacher's stages: which inputs each one takes, what it asks, and how an answer becomes a record."""
