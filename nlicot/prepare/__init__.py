"""Write instruction data for `fit` and for other trainers."""
