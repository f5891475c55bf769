"""Where models come from, and whether to trust them."""
