"""Tokens in, tokens out: continuous batching over llama.cpp."""
