"""`report`: compare runs on the same pairs, as tables, JSON, an HTML page or a model card."""
