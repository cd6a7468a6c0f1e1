"""Forward processes: tokens.py replaces tokens, masking.py masks them, gaussian.py noises values."""
