"""Fitting the adapter: data module, sampler, Lightning module, callbacks, command line."""
