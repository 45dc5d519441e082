"""The teacher: models that write thoughts, reflect on wrong ones, and score both."""
