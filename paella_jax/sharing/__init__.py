"""Runs to give away: a folder of weights alone with its card, and the Hugging Face hub."""
