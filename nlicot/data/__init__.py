"""Files on disk, read as records: pairs, thoughts joined to them, and data roots."""
