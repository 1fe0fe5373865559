/* convert.c: 16-bit floating point, for files and single values. Kernels convert in vectors of their own. */
#include "core/tensor.h"
#include <string.h>

static inline uint32_t bits_of(float x)
{
    uint32_t u;
    memcpy(&u, &x, sizeof u);
    return u;
}

static inline float float_of(uint32_t u)
{
    float x;
    memcpy(&x, &u, sizeof x);
    return x;
}

float lr_bf16_to_f32(uint16_t x)
{
    return float_of((uint32_t)x << 16);
}

uint16_t lr_f32_to_bf16(float x)
{
    const uint32_t u = bits_of(x);
    if ((u & 0x7fffffff) > 0x7f800000) /* NaN: keep it quiet, rounding could carry it into infinity */
        return (uint16_t)((u >> 16) | 0x40);
    return (uint16_t)((u + 0x7fff + ((u >> 16) & 1)) >> 16);
}

float lr_f16_to_f32(uint16_t x)
{
    const uint32_t sign = (uint32_t)(x & 0x8000) << 16, exponent = (x >> 10) & 31, fraction = x & 0x3ff;
    if (exponent == 31)
        return float_of(sign | 0x7f800000 | fraction << 13);
    if (exponent == 0) /* zero and subnormals: fraction * 2^-24, exact in f32 */
        return float_of(sign | bits_of((float)fraction * 0x1p-24f));
    return float_of(sign | (exponent + 112) << 23 | fraction << 13);
}

uint16_t lr_f32_to_f16(float x)
{
    const uint32_t u = bits_of(x), sign = (u >> 16) & 0x8000, magnitude = u & 0x7fffffff;
    if (magnitude > 0x7f800000)
        return (uint16_t)(sign | 0x7e00);
    if (magnitude >= 0x477ff000) /* 65520 and above round to infinity */
        return (uint16_t)(sign | 0x7c00);
    if (magnitude < 0x38800000) { /* below 2^-14: adding 2^-1 lets the FPU round to a multiple of 2^-24 */
        const uint32_t r = bits_of(float_of(magnitude) + 0.5f) - bits_of(0.5f);
        return (uint16_t)(sign | r);
    }
    const uint32_t rounded = magnitude + 0xfff + ((magnitude >> 13) & 1);
    return (uint16_t)(sign | ((rounded - 0x38000000) >> 13));
}

int lr_convert(void *dst, int dst_dtype, const void *src, int src_dtype, int64_t n)
{
    if (dst_dtype == src_dtype) {
        memmove(dst, src, (size_t)n * lr_dtype_size(dst_dtype));
        return LR_OK;
    }
    if (dst_dtype > LR_F16 || src_dtype > LR_F16)
        return lr_fail(LR_EDTYPE, "cannot convert %s to %s", lr_dtype_name(src_dtype), lr_dtype_name(dst_dtype));
    const float *f = src;
    const uint16_t *h = src;
    float *to_f = dst;
    uint16_t *to_h = dst;
    for (int64_t i = 0; i < n; i++) {
        const float x = src_dtype == LR_F32 ? f[i] : src_dtype == LR_BF16 ? lr_bf16_to_f32(h[i]) : lr_f16_to_f32(h[i]);
        if (dst_dtype == LR_F32)
            to_f[i] = x;
        else
            to_h[i] = dst_dtype == LR_BF16 ? lr_f32_to_bf16(x) : lr_f32_to_f16(x);
    }
    return LR_OK;
}
