/* device_types.h: CUDA's words for a compiler that is not nvcc: qualifiers, vector types, 16-bit floating point, math functions.
 * Only what the kernels use. No CUDA toolkit is needed to build for the host. */
#ifndef LR_DEVICE_TYPES_H
#define LR_DEVICE_TYPES_H

#include <math.h>
#include <stdint.h>
#include <string.h>
extern "C" {
#include "core/tensor.h"
}

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)

struct uint3 {
    unsigned x, y, z;
};
struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_)
    {
    }
};
struct alignas(8) float2 {
    float x, y;
};
struct alignas(16) float4 {
    float x, y, z, w;
};
/* As on the GPU, a word may hold any two 16-bit numbers. */
struct alignas(8) [[gnu::may_alias]] uint2 {
    unsigned x, y;
};
struct alignas(16) [[gnu::may_alias]] uint4 {
    unsigned x, y, z, w;
};
static inline float2 make_float2(float x, float y)
{
    return {x, y};
}
static inline float4 make_float4(float x, float y, float z, float w)
{
    return {x, y, z, w};
}
static inline uint2 make_uint2(unsigned x, unsigned y)
{
    return {x, y};
}
static inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w)
{
    return {x, y, z, w};
}

/* ---- 16-bit floating point -------------------------------------------------------------------------------------------- */
struct bf16 {
    uint16_t bits;
};
struct f16 {
    uint16_t bits;
};

static inline float to_float(float x)
{
    return x;
}
static inline float to_float(bf16 x)
{
    return lr_bf16_to_f32(x.bits);
}
static inline float to_float(f16 x)
{
    return lr_f16_to_f32(x.bits);
}

template <class T> static inline T from_float(float x);
template <> inline float from_float<float>(float x)
{
    return x;
}
template <> inline bf16 from_float<bf16>(float x)
{
    return {lr_f32_to_bf16(x)};
}
template <> inline f16 from_float<f16>(float x)
{
    return {lr_f32_to_f16(x)};
}

template <class T> static inline uint32_t pack2(float lo, float hi)
{
    return from_float<T>(lo).bits | static_cast<uint32_t>(from_float<T>(hi).bits) << 16;
}
template <class T> static inline float2 unpack2(uint32_t two)
{
    return {to_float(T{static_cast<uint16_t>(two)}), to_float(T{static_cast<uint16_t>(two >> 16)})};
}

/* ---- math ------------------------------------------------------------------------------------------------------------- */
static inline float rsqrtf(float x)
{
    return 1.0f / sqrtf(x);
}
static inline float fast_exp(float x)
{
    return expf(x);
}
static inline float fast_log(float x)
{
    return logf(x);
}
static inline float fast_exp2(float x)
{
    return exp2f(x);
}
static inline float __uint_as_float(unsigned u)
{
    float x;
    memcpy(&x, &u, sizeof x);
    return x;
}
static inline unsigned __float_as_uint(float x)
{
    unsigned u;
    memcpy(&u, &x, sizeof u);
    return u;
}
static inline unsigned __umulhi(unsigned a, unsigned b)
{
    return static_cast<unsigned>(static_cast<uint64_t>(a) * b >> 32);
}
static inline int __popc(unsigned x)
{
    return __builtin_popcount(x);
}
template <class T> static inline T __ldg(const T *p)
{
    return *p;
}
template <class T> static inline void __stwb(T *p, T x) /* on the host a plain store */
{
    *p = x;
}
template <class T> static constexpr T min(T a, T b)
{
    return b < a ? b : a;
}
template <class T> static constexpr T max(T a, T b)
{
    return a < b ? b : a;
}

#endif
