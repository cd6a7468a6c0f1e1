"""Frozen or jointly trained encoders of texts and images, with the reading of published folders.

- text.py: the text side of a run; byte_tokenizer.py and t5.py are its parts, emphasis.py stresses
  phrases.
- clip_text.py and clip_vision.py on clip_transformer.py.
- feature_network.py: the features of a stream of images; clip_judge.py says how well images fit
  texts.
- preprocess.py: images as the frozen image encoders want them.
"""
