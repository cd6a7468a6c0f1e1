"""Programs compiled for machines that are not there: memory, collectives and time before any rent.

`targets.py` names the machines, `programs.py` what is compiled, `hlo.py` reads the compiled text,
`account.py` makes the report of it and `show.py` prints that.
"""
