/* table.c: the CUDA backend's table. One row per op of ops.def; a missing kernel is a link error. Builds without CUDA have the
 * table, too, with the sizes of the kernels' scratch and no kernels (scratch.c). */
#include "cuda/pack.h"
#include "cuda/scratch.h"

#ifdef LR_HAVE_CUDA
#define LR_CUDA_KERNEL(kernel) kernel
#else
#define LR_CUDA_KERNEL(kernel) NULL
#endif
#include "lr_ops_cuda.inc"

const lr_backend *lr_cuda_backend(void)
{
    return &LR_CUDA_TABLE;
}
