"""Run folders: configs, checkpoints, frozen networks, and new runs made of runs."""
