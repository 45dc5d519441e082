"""From a tuned model to predictions: decoding, and writing what was decoded."""
