/* table.c: the CUDA backend's table. One row per op of ops.def; a missing kernel is a link error. Builds without CUDA have the
 * table, too, with the sizes of the kernels' scratch and no kernels (scratch.c). */
#include "cuda/pack.h"
#include "cuda/scratch.h"

#ifndef LR_HAVE_CUDA
#define LR_ENTRY(kernel) NULL
#endif
#include "lr_ops_table.inc"

const lr_backend *lr_cuda_backend(void)
{
    return &LR_TABLE;
}
