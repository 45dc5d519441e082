"""A teacher's answers: their schema, the repair of broken JSON, and retries until one is valid."""
