/* convert.c: arrays of floating point from one dtype to another, in host memory: files, single values, packing. Kernels convert in
 * vectors of their own, by the same functions (half.h). */
#include "core/dtype.h"
#include <string.h>

int lr_convert(void *dst, int dst_dtype, const void *src, int src_dtype, int64_t n)
{
    if (dst_dtype == src_dtype) {
        memmove(dst, src, (size_t)n * lr_dtype_size(dst_dtype));
        return LR_OK;
    }
    if (dst_dtype > LR_F16 || src_dtype > LR_F16)
        return lr_fail(LR_EDTYPE, "cannot convert %s to %s", lr_dtype_name(src_dtype), lr_dtype_name(dst_dtype));
    const float *restrict f = src;
    const uint16_t *restrict h = src;
    float *restrict to_f = dst;
    uint16_t *restrict to_h = dst;
#define EACH(result)                                                                                                   \
    for (int64_t i = 0; i < n; i++)                                                                                    \
    result
    if (src_dtype == LR_F32 && dst_dtype == LR_BF16)
        EACH(to_h[i] = lr_f32_to_bf16(f[i]));
    else if (src_dtype == LR_F32)
        EACH(to_h[i] = lr_f32_to_f16(f[i]));
    else if (src_dtype == LR_BF16 && dst_dtype == LR_F32)
        EACH(to_f[i] = lr_bf16_to_f32(h[i]));
    else if (src_dtype == LR_BF16)
        EACH(to_h[i] = lr_f32_to_f16(lr_bf16_to_f32(h[i])));
    else if (dst_dtype == LR_F32)
        EACH(to_f[i] = lr_f16_to_f32(h[i]));
    else
        EACH(to_h[i] = lr_f32_to_bf16(lr_f16_to_f32(h[i])));
#undef EACH
    return LR_OK;
}
