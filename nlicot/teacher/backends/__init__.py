"""Ways to reach a teacher model: Mistral's API, any OpenAI-compatible server, or a model in this process."""
