"""The network, and the process that the engine lives in."""
