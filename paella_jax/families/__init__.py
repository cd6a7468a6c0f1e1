"""One file per model family: its networks, built from a config, and its training method."""
