"""Networks and nothing else: Flax modules from arrays to arrays, defaults are the published sizes.

- layers.py: what all networks are made of; conditioning.py: what an image is conditioned on.
- paella.py and stage_b.py on unet.py, stage_c.py: blocks.py has their C, T, A and F blocks.
- muse.py, muse_super_resolution.py with multi_axis_attention.py, and uvit.py with uvit_blocks.py:
  transformer_layers.py has what they share. uvit_predictor.py is the U-ViT as a token predictor.
- vqgan.py and vqmodel.py: tokenizers on quantizer.py; discriminator.py and perceptual.py judge
  their images in training.
- compressor.py (Stage C's latents), antialias_resize.py, direct_decoder.py, clip_prior.py.
"""
