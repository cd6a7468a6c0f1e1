"""From images and captions to batches: sources -> transform -> loader.

- Captioned images: records.py is what a format offers, folder.py (with listing.py, captions.py,
  tables.py, split.py and split_names.py), webdataset.py (with shard_index.py), array_records.py,
  parquet.py and tfds_records.py (with tfds_features.py) are the formats, captioned.py and
  buckets.py make samples of them.
- Other sources: shapes*.py (the embedded task; sources.py reads it), one_image.py, embeddings.py.
- build.py makes the source that a config names, places.py says which source a path is,
  transform.py turns one sample into arrays, loader.py shuffles, batches and resumes.
"""
