"""The stages of a teacher: generate, reflect, score, and the check of its labels."""
