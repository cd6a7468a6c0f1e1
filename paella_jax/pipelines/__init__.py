"""From a prompt to images: what `paella_jax.load` returns (load.py picks by the run's method).

Prompt to image is nine files, in reading order, with the functions to read in each:

1. pipelines/tokens.py `TokenPipeline.generate`: the pipeline that load.py makes of a run folder; a
   prompt becomes arrays, checked before anything is compiled.
2. pipelines/batches.py `image_keys` `in_batches`: each image has its own key, so that batches do
   not matter; pieces of a request go through the same programs.
3. pipelines/request.py `encode` `advance_request` `_plan` `_denoise`: those programs: texts, and
   some steps of the loop, guided.
4. families/token_networks.py `TokenNetworks.condition` `TokenNetworks.logits`
   `TokenNetworks.decode_tokens`: text encoders, predictor and tokenizer as functions of parameters.
5. sampling/renoise.py `plan` `renoise`: Paella's loop: predict, draw, renoise, put kept tokens
   back; every policy is chosen before the scan.
6. models/paella.py `Paella.__call__`: tokens, noise level and conditions -> logits.
7. models/unet.py `UNet.levels` `UNet._level`: down and up again, with skips.
8. models/blocks.py `run_blocks` `ResponseMlp.__call__` `ConvBlock.__call__`
   `TimestepBlock.__call__` `AttentionBlock.__call__`: the residual blocks.
9. models/vqgan.py `VQGANBlock.__call__` `VQGAN.decode`: tokens' codes -> pixels.

Around the path: base.py (the call that all share) with call.py (its checks, seeds and result),
given_image.py (image and mask), watch.py (steps in groups, progress, stopping), drawn_images.py
(the result) with records.py (what it was drawn from), prompt_embeds.py. Beside it: prompts.py (what
a user may ask for) and token_inputs.py (as arrays), token_coder.py (images to tokens and back),
geometry.py (sizes, and what of an image stays), editing.py and variations.py (image tasks) with
presets.py (their defaults) and windows.py (larger canvases), tasks.py (the same by flags),
narrow.py with held_tokens.py and held_stage.py (weights in the types that are used), two_scale.py
with pairs.py (MUSE's two runs), wuerstchen.py with wuerstchen_stages.py, wuerstchen_programs.py and
wuerstchen_texts.py (three stages). Many prompts: prompt_file.py (rows), stream.py (batches of
them), best_of.py (by a score), gallery.py (the folder they go to), rows_by_flags.py (the command),
flag_checks.py (what is told before loading).
"""
