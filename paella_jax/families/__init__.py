"""What is built from a config: `networks.py` has a record for every token network, `cells.py` says
which go together, the other files are one method each (tokens and tokenizers two: the networks, and
what only training needs). `abstract.py` has all of them without files, `start.py` training on from
another run.
"""
