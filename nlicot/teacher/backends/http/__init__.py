"""Parts that the HTTP backends share: connections, envelopes, structured output."""
