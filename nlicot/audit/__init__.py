"""`audit`: look for label leaks, duplicates and bad texts in a data root before training on it."""
