/* dtype.h: element types: their names (lr_dtype_name is in lr.h), sizes and conversions (single numbers: half.h). */
#ifndef LR_DTYPE_H
#define LR_DTYPE_H

#include "core/core.h"
#include "core/half.h"

size_t lr_dtype_size(int dtype); /* bytes of an element; the dtype must exist */

/* Convert n elements between any two of F32, BF16, F16 (or copy equal dtypes), in host memory. LR_EDTYPE for other pairs. */
int lr_convert(void *dst, int dst_dtype, const void *src, int src_dtype, int64_t n);

#endif
