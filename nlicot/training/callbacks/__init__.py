"""Lightning callbacks of a fit: generated metrics, checkpoints, and the TensorBoard layout."""
