# shellcheck shell=bash
# XLA's settings for training on TPUs, with their reasons. Sourced before the start:
#   source launch/env_tpu.sh
# libtpu reads LIBTPU_INIT_ARGS, and refuses to start on a flag that it does not know. What is set
# already stays, and a flag that you give yourself wins.

# Hardly anything is needed: the compiler overlaps all-gathers (fsdp) by default. All-reduces, which
# carry the gradients along the `data` axis, it fuses with what is computed only when asked to;
# suggested for v5e (openxla.org/xla/flags_guidance), and MaxText sets it for data parallelism.
LIBTPU_INIT_ARGS="--xla_tpu_enable_async_collective_fusion_fuse_all_reduce=true ${LIBTPU_INIT_ARGS:-}"
export LIBTPU_INIT_ARGS

# Left out on purpose: --xla_tpu_scoped_vmem_limit_kib, which is tuned per model and chip, and
# --xla_latency_hiding_scheduler_rerun, which is for a step that does not fit into memory.
