"""Figures of predictions: classification metrics, their intervals, and paired tests."""
