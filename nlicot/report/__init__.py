"""Runs as a person compares them."""
