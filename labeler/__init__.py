"""labeler: emotion and topic labels for image+text pairs."""

__version__ = "0.1.0"
