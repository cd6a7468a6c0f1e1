"""What is trained, one file per method: pure functions from a batch and its keys to a loss.

inputs.py has what all are given and give back.
"""
