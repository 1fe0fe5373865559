/* table.c: the CUDA backend's kernels. One row per op of ops.def; a missing kernel is a link error, but for those named here, which then
 * answer LR_EUNSUPPORTED. */
#include "cuda/cuda.h"

extern __typeof__(lr_cuda_attention) lr_cuda_attention __attribute__((weak));
extern __typeof__(lr_cuda_attention_backward) lr_cuda_attention_backward __attribute__((weak));

#include "lr_ops_cuda.inc"

const lr_backend *lr_cuda_backend(void)
{
    return &LR_CUDA_TABLE;
}
