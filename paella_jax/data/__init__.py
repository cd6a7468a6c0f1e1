"""From images and captions to batches: sources -> transform -> loader.

- Sources: shapes*.py (the embedded task; sources.py reads it), folder.py with captions.py and
  buckets.py, one_image.py, embeddings.py; build.py makes the one that a config names.
- transform.py turns one sample into arrays, loader.py shuffles, batches and resumes.
"""
