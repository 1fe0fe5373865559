/* scratch.h: the working memory of CUDA's kernels, which are told by the same functions where in exec->scratch their parts are.
 * C and C++, without CUDA: see scratch.c. */
#ifndef LR_CUDA_SCRATCH_H
#define LR_CUDA_SCRATCH_H

#include "core/op.h"

#define LR_KERNEL(name) lr_cuda_##name
#include "lr_ops_kernels.h"

/* ---- matrix products --------------------------------------------------------------------------------------------------- */
/* What cuBLASLt may use; the start of a product's scratch. */
enum { LR_CUDA_GEMM_WORKSPACE = 32 << 20 };

/* The dtype that the operands of a product of these three dtypes are given: 16-bit where one of them is. LR_EDTYPE: bf16 meets
 * f16. */
int lr_cuda_operand_dtype(const char *op, int a, int b, int c, int *dtype);

/* Bytes of a copy of `elements` numbers, had in one dtype and wanted in another; 0 where they are the same. */
static inline int64_t lr_cuda_copy_bytes(int64_t elements, int had, int wanted)
{
    return had == wanted ? 0 : (elements * (int64_t)lr_dtype_size(wanted) + 255) & ~(int64_t)255;
}

/* ---- attention's backward ---------------------------------------------------------------------------------------------- */
enum { LR_CUDA_MAX_HEAD_DIM = 176 }; /* what attention_plain.cu has shared memory for */

/* Slots for every tile of `tile` rows that a packed batch could have: attention.h. */
static inline int64_t lr_cuda_slots(int64_t tile, int64_t tokens, int64_t sequences)
{
    return tokens / tile + sequences;
}

/* Two floats for each head and row of a slot. Kernels with smaller tiles, of which this is a multiple, need no more. */
enum { LR_CUDA_STATISTICS_TILE = 64, LR_CUDA_STATISTICS_BYTES = 8 };

/* ---- the gradient's norm ----------------------------------------------------------------------------------------------- */
enum { LR_CUDA_NORM_CHUNK = 16384 }; /* elements of which one block adds the squares */

#endif
