"""The Mistral batch API as a backend: jobs that answer within hours at half the price."""
