"""From noise to tokens or values: every sampler is a scan whose body reads like the paper's loop.

`loop` runs a sampler, whole or in groups of steps. `token_loop` is what the token samplers share;
`renoise` is Paella's, `parallel_decode` MUSE's, `resample` edits without a mask, and
`token_sampler` picks one for a cell. `diffusion` draws from Gaussian noise with the single steps of
`steppers`. `guidance`, `filters` and `schedule` serve all.
"""
