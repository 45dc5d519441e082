"""Parts that the HTTP backends share: envelopes and structured output."""
