"""Runs the requests of a stage: scheduling, rate limits, budget, prices, and the journal."""
