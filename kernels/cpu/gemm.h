/* gemm.h: matrix products by oneDNN, for the kernels. See gemm.c. Matrices are row-major, ld is the row stride in
 * elements. */
#ifndef LR_CPU_GEMM_H
#define LR_CPU_GEMM_H

#include "core/op.h"

/* The dtype that x and y of lr_gemm_packed must have: that of the packed values, which may differ from w->dtype. */
int lr_gemm_packed_dtype(const lr_tensor *w);

/* y[rows, N] = x[rows, K] w^T + bias for a weight packed in direction 1; y[rows, K] = x[rows, N] w in direction 2. Rows
 * follow each other without a gap. bias may be NULL; beta: y = product + beta y. */
int lr_gemm_packed(const lr_tensor *w, int64_t rows, const void *x, void *y, const float *bias, float beta);

/* One operand of lr_gemm: element (i, j) is at i * ld + j, or at j * ld + i where transposed. */
typedef struct lr_gemm_operand {
    const void *data;
    int64_t ld;
    bool transposed;
} lr_gemm_operand;

/* c[m, n] = alpha a[m, k] b[k, n] + beta c, all f32. */
int lr_gemm_f32(int64_t m, int64_t n, int64_t k, float alpha, lr_gemm_operand a, lr_gemm_operand b, float beta,
                float *c, int64_t ldc);

#endif
