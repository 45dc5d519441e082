"""The base model, its adapter, and how text becomes token ids."""
