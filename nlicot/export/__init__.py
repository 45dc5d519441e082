"""The command `export`: a run's model for other programs, one file per format."""
