"""How fast presets run on this machine, with random weights: what `benchmark` measures."""
