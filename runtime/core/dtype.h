/* dtype.h: element types: their names (lr_dtype_name is in lr.h), sizes and conversions. */
#ifndef LR_DTYPE_H
#define LR_DTYPE_H

#include "core/core.h"

size_t lr_dtype_size(int dtype); /* bytes of an element; the dtype must exist */

/* bf16 and f16 to f32 and back; rounded to nearest, ties to even; NaN stays NaN. convert.c */
float lr_bf16_to_f32(uint16_t x);
uint16_t lr_f32_to_bf16(float x);
float lr_f16_to_f32(uint16_t x);
uint16_t lr_f32_to_f16(float x);
/* Convert n elements between any two of F32, BF16, F16 (or copy equal dtypes), in host memory. LR_EDTYPE for other pairs. */
int lr_convert(void *dst, int dst_dtype, const void *src, int src_dtype, int64_t n);

#endif
