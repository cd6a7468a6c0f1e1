"""One training loop for every method; method.py is the contract between the two.

loop.py runs the steps, step.py is one of them (compiled_step.py compiles it ahead), on the mesh of
sharding.py, with the optimiser of optim.py; metrics.py and timing.py write what happened.
finish.py does all of it for one run of a plan.
"""
