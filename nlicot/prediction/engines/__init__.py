"""Engines other than transformers; `run.engines.ENGINES` lists them."""
