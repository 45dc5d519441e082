"""nlicot teaches a language model natural-language inference with a visible chain of thought."""

__version__ = "0.2.0.dev0"
