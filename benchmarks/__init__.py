"""Comparisons of medge with what a user would otherwise run, one question a file."""
