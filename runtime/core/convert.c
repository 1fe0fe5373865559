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

/* Without branches, so that loops over them become vector code. */
static inline float from_bf16(uint16_t x)
{
    return float_of((uint32_t)x << 16);
}

static inline uint16_t to_bf16(float x)
{
    const uint32_t u = bits_of(x);
    const bool nan = (u & 0x7fffffff) > 0x7f800000; /* keep it quiet, rounding could carry it into infinity */
    return (uint16_t)((nan ? u | 0x400000 : u + 0x7fff + ((u >> 16) & 1)) >> 16);
}

static inline float from_f16(uint16_t x)
{
    const uint32_t sign = (uint32_t)(x & 0x8000) << 16, magnitude = x & 0x7fff;
    const uint32_t tiny = bits_of((float)(int32_t)magnitude * 0x1p-24f); /* zero and subnormals: exact in f32 */
    const uint32_t normal = (magnitude << 13) + (magnitude >= 0x7c00 ? 0x70000000 : 0x38000000);
    return float_of(sign | (magnitude < 0x400 ? tiny : normal));
}

static inline uint16_t to_f16(float x)
{
    const uint32_t u = bits_of(x), sign = (u >> 16) & 0x8000, magnitude = u & 0x7fffffff;
    /* below 2^-14: adding 2^-1 lets the FPU round to a multiple of 2^-24 */
    const uint32_t tiny = bits_of(float_of(magnitude) + 0.5f) - bits_of(0.5f);
    const uint32_t normal = (magnitude + 0xfff + ((magnitude >> 13) & 1) - 0x38000000) >> 13;
    const uint32_t finite = magnitude < 0x38800000 ? tiny : normal;
    const uint32_t large = magnitude > 0x7f800000 ? 0x7e00 : 0x7c00; /* NaN; 65520 and above round to infinity */
    return (uint16_t)(sign | (magnitude >= 0x477ff000 ? large : finite));
}

float lr_bf16_to_f32(uint16_t x)
{
    return from_bf16(x);
}

uint16_t lr_f32_to_bf16(float x)
{
    return to_bf16(x);
}

float lr_f16_to_f32(uint16_t x)
{
    return from_f16(x);
}

uint16_t lr_f32_to_f16(float x)
{
    return to_f16(x);
}

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
        EACH(to_h[i] = to_bf16(f[i]));
    else if (src_dtype == LR_F32)
        EACH(to_h[i] = to_f16(f[i]));
    else if (src_dtype == LR_BF16 && dst_dtype == LR_F32)
        EACH(to_f[i] = from_bf16(h[i]));
    else if (src_dtype == LR_BF16)
        EACH(to_h[i] = to_f16(from_bf16(h[i])));
    else if (dst_dtype == LR_F32)
        EACH(to_f[i] = from_f16(h[i]));
    else
        EACH(to_h[i] = to_bf16(from_f16(h[i])));
#undef EACH
    return LR_OK;
}
