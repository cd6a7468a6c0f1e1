"""Forward processes: tokens.py replaces and masking.py masks tokens, gaussian.py noises values."""
