"""Pages and images of results: what `evaluate` and `benchmark` write, and previews of training."""
