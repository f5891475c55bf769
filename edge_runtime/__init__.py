"""medge: a medical language model on machines without internet."""

__version__ = "0.1.0"
