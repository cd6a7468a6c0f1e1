# shellcheck shell=bash
# XLA's settings for training on NVIDIA GPUs, each with its reason. Sourced before the start:
#   source launch/env_gpu.sh
# What is set already stays: XLA_FLAGS are added to, and a flag that you give yourself wins.

# Collectives run while something is computed; off by default, as it makes compiling longer. The one
# flag that NVIDIA's own JAX containers set (docs.nvidia.com/jax-toolbox/environment-variables).
XLA_FLAGS="--xla_gpu_enable_latency_hiding_scheduler=true ${XLA_FLAGS:-}"

# JAX takes 75 % of a GPU's memory by default; 80 to 90 % leaves the CUDA libraries what they need
# (docs.nvidia.com/jax-toolbox/performance-profiling/gpu-performance). Lower it if NCCL or cuDNN,
# not XLA, runs out of memory.
XLA_PYTHON_CLIENT_MEM_FRACTION="${XLA_PYTHON_CLIENT_MEM_FRACTION:-0.9}"

export XLA_FLAGS XLA_PYTHON_CLIENT_MEM_FRACTION

# Left out on purpose, as nothing tells that they help these models; measure before you set them:
# - JAX_OPTIMIZATION_LEVEL=O1: the flag above and pipelined collectives; compiles longer.
# - --xla_gpu_{all_gather,reduce_scatter,all_reduce}_combine_threshold_bytes: one collective for
#   many small tensors needs memory for all of them; the same page advises the bytes of one layer.
# - CUDA_DEVICE_MAX_CONNECTIONS=1: helps the overlap up to Hopper, slows Blackwell down.
# - --xla_gpu_triton_gemm_any: another code generator for products.
# The former --xla_gpu_enable_async_* flags are on by default; current versions refuse their names.
