"""An examination of a model: rows in, accuracy with its interval out. Knows no HTTP and no command line."""
