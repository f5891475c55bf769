"""The commands of `medge`."""
