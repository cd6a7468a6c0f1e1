"""Frozen or jointly trained encoders of texts and images, with the reading of their weights.

- text.py: the text side of a run; byte_tokenizer.py and t5.py are its parts, emphasis.py stresses
  phrases, t5_weights.py reads published folders.
- clip_text.py and clip_vision.py on clip_transformer.py, clip_weights.py reads published folders.
- clip_preprocess.py and compressor_preprocess.py: images as the frozen image encoders want them.
"""
