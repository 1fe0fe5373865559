/* gemm.h: products with packed weights by oneDNN, for linear.c. See gemm.c. */
#ifndef LR_CPU_GEMM_H
#define LR_CPU_GEMM_H

#include "core/op.h"

/* The driver's pack, see core/device.h. LR_EUNSUPPORTED for f16, which the CPU does not compute in. */
int lr_cpu_pack(lr_tensor **out, const lr_tensor *w, int direction, int dtype);

/* The dtype that x and y of lr_gemm_packed must have: that of the packed values, which may differ from w->dtype. */
int lr_gemm_packed_dtype(const lr_tensor *w);

/* y[rows, N] = x[rows, K] w^T + bias for a weight packed in direction 1; y[rows, K] = x[rows, N] w in direction 2. Rows
 * follow each other without a gap. bias may be NULL; beta: y = product + beta y. */
int lr_gemm_packed(const lr_tensor *w, int64_t rows, const void *x, void *y, const float *bias, float beta);

#endif
