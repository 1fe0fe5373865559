/* half.h: conversions between f32 and the two 16-bit formats, bf16 and f16. They round to the nearest, ties to even; a NaN stays a
 * NaN.
 *
 * They have no branch and call nothing, so that loops over them become vector code. */
#ifndef LR_HALF_H
#define LR_HALF_H

#include <stdbool.h>
#include <stdint.h>
#include <string.h>

static inline uint32_t lr_bits(float x)
{
    uint32_t u;
    memcpy(&u, &x, sizeof u);
    return u;
}

static inline float lr_float(uint32_t u)
{
    float x;
    memcpy(&x, &u, sizeof x);
    return x;
}

static inline float lr_bf16_to_f32(uint16_t x)
{
    return lr_float((uint32_t)x << 16);
}

static inline uint16_t lr_f32_to_bf16(float x)
{
    const uint32_t u = lr_bits(x);
    const bool nan = (u & 0x7fffffff) > 0x7f800000; /* made quiet: rounding could carry it into infinity */
    return (uint16_t)((nan ? u | 0x400000 : u + 0x7fff + ((u >> 16) & 1)) >> 16);
}

static inline float lr_f16_to_f32(uint16_t x)
{
    const uint32_t sign = (uint32_t)(x & 0x8000) << 16, magnitude = x & 0x7fff;
    const uint32_t tiny = lr_bits((float)(int32_t)magnitude * 0x1p-24f); /* zero and subnormals: exact in f32 */
    const uint32_t normal = (magnitude << 13) + (magnitude >= 0x7c00 ? 0x70000000 : 0x38000000);
    return lr_float(sign | (magnitude < 0x400 ? tiny : normal));
}

static inline uint16_t lr_f32_to_f16(float x)
{
    const uint32_t u = lr_bits(x), sign = (u >> 16) & 0x8000, magnitude = u & 0x7fffffff;
    /* below 2^-14: adding 2^-1 lets the FPU round to a multiple of 2^-24 */
    const uint32_t tiny = lr_bits(lr_float(magnitude) + 0.5f) - lr_bits(0.5f);
    const uint32_t normal = (magnitude + 0xfff + ((magnitude >> 13) & 1) - 0x38000000) >> 13;
    const uint32_t finite = magnitude < 0x38800000 ? tiny : normal;
    const uint32_t large = magnitude > 0x7f800000 ? 0x7e00 : 0x7c00; /* NaN; 65520 and above round to infinity */
    return (uint16_t)(sign | (magnitude >= 0x477ff000 ? large : finite));
}

#endif
