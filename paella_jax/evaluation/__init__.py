"""Pure measures: of arrays and functions, without run folders and pipelines.

- oracle.py reads embedded-shapes images back and scores them against their captions.
- classifier.py gives the features that frechet.py and diversity.py measure distances of.
- features.py has the networks of real images; distances.py, neighbours.py and image_measures.py the
  scores on them with the intervals of estimates.py; groups.py says which group an image is of.
- token_cross_entropy.py compares token predictors, flops.py counts, timing.py times side by side.
- captions.py says which captions are scored, tuning.py chooses a sampler's settings on others.
- signals.py reads from a program how loud the signals are that a network adds.
"""
