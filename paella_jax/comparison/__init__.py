"""The fair comparison of token predictors: everything that `compare` does.

- run.py is the whole of it, plan.py says which networks are trained on how many images.
- train.py trains them, measure.py scores every cell, claims.py divides the work among processes.
- rows.py is the table of results, report.py its page, curves.py its chart, verdict.py its words.
"""
