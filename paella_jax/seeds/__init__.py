"""A small run's numbers over several seeds: everything that `repeat` does.

- run.py is the whole of it; wish.py is what it is asked for, plan.py the runs that are trained, in
  their order, given.py checks those that seeds stand on.
- score.py tunes and scores a seed's runs, report.py makes the table.
"""
