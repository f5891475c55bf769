"""Question in, prompt out."""
