"""A run: its folder, the metadata of its checkpoint, and its settings."""
