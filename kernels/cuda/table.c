/* table.c: the CUDA backend's kernels. One row per op of ops.def; a missing kernel is a link error. */
#include "cuda/cuda.h"

#include "lr_ops_cuda.inc"

const lr_backend *lr_cuda_backend(void)
{
    return &LR_CUDA_TABLE;
}
