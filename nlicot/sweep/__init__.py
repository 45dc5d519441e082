"""The command `sweep`: fits of several experiments and seeds, one after another, and a table of them."""
