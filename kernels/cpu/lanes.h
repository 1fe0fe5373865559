/* lanes.h: vectors of the instruction set that a file is compiled for, and functions of them. Plain loops are left to the
 * compiler; these are for what it does not find by itself: products in registers, transposition, rows in parts of a vector. */
#ifndef LR_CPU_LANES_H
#define LR_CPU_LANES_H

#include "cpu/vec.h"
#ifdef __AVX2__
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
enum { LR_LANES = 16 };
#elif defined(__AVX2__)
enum { LR_LANES = 8 };
#else
enum { LR_LANES = 4 };
#endif

typedef float lr_vec __attribute__((vector_size(LR_LANES * 4)));
typedef int32_t lr_lane_ids __attribute__((vector_size(LR_LANES * 4)));
typedef uint32_t lr_lane_bits __attribute__((vector_size(LR_LANES * 4)));

static inline lr_vec lr_vec_load(const void *p)
{
    lr_vec v;
    memcpy(&v, p, sizeof v);
    return v;
}

static inline void lr_vec_store(void *p, lr_vec v)
{
    memcpy(p, &v, sizeof v);
}

/* The first n of the floats at p, then zeros; nothing beyond the n is read. */
static inline lr_vec lr_vec_load_first(const void *p, int64_t n)
{
    if (n >= LR_LANES)
        return lr_vec_load(p);
#if defined(__AVX512F__)
    return (lr_vec)_mm512_maskz_loadu_ps((__mmask16)((1u << n) - 1), p);
#else
    float lane[LR_LANES] = {0};
    for (int64_t i = 0; i < n; i++)
        memcpy(lane + i, (const char *)p + 4 * i, 4);
    return lr_vec_load(lane);
#endif
}

/* The same of bf16 at p. */
static inline lr_vec lr_vec_widen_first(const void *p, int64_t n)
{
#if defined(__AVX512F__)
    const __m256i half =
        n >= LR_LANES ? _mm256_loadu_si256(p) : _mm256_maskz_loadu_epi16((__mmask16)((1u << n) - 1), p);
    return (lr_vec)_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16);
#else
    uint16_t half[LR_LANES] = {0};
    float lane[LR_LANES];
    if (n >= LR_LANES)
        memcpy(half, p, sizeof half);
    else
        for (int64_t i = 0; i < n; i++)
            memcpy(half + i, (const char *)p + 2 * i, 2);
    lr_run_from_bf16(lane, half, LR_LANES);
    return lr_vec_load(lane);
#endif
}

/* Write the first n lanes; nothing beyond them is touched. */
static inline void lr_vec_store_first(void *p, lr_vec v, int64_t n)
{
    if (n >= LR_LANES)
        lr_vec_store(p, v);
    else
        memcpy(p, &v, (size_t)n * sizeof(float));
}

/* The same, rounded to bf16. */
static inline void lr_vec_narrow_first(void *p, lr_vec v, int64_t n)
{
#if defined(__AVX512BF16__)
    const __m256i half = (__m256i)_mm512_cvtneps_pbh((__m512)v);
    if (n >= LR_LANES)
        _mm256_storeu_si256(p, half); /* a store under a mask takes several times as long */
    else
        _mm256_mask_storeu_epi16(p, (__mmask16)((1u << n) - 1), half);
#else
    float lane[LR_LANES];
    uint16_t half[LR_LANES];
    memcpy(lane, &v, sizeof lane);
    lr_run_to_bf16(half, lane, LR_LANES);
    memcpy(p, half, (size_t)lr_min64(n, LR_LANES) * sizeof *half);
#endif
}

/* Up to a vector of f32 or bf16 in memory. */
static inline lr_vec lr_vec_in(int dtype, const void *at, int64_t n)
{
    return dtype == LR_F32 ? lr_vec_load_first(at, n) : lr_vec_widen_first(at, n);
}

static inline void lr_vec_out(int dtype, void *at, int64_t n, lr_vec v)
{
    if (dtype == LR_F32)
        lr_vec_store_first(at, v, n);
    else
        lr_vec_narrow_first(at, v, n);
}

static inline lr_vec lr_vec_max(lr_vec a, lr_vec b)
{
#if defined(__AVX512F__)
    return (lr_vec)_mm512_max_ps((__m512)a, (__m512)b);
#elif defined(__AVX2__)
    return (lr_vec)_mm256_max_ps((__m256)a, (__m256)b);
#else
    const lr_lane_ids greater = a > b;
    return (lr_vec)(((lr_lane_ids)a & greater) | ((lr_lane_ids)b & ~greater));
#endif
}

/* Interleave the first halves of a and b, and their second halves. */
#if defined(__AVX512F__)
#define LR_FRONT 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23
#define LR_BACK 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31
#elif defined(__AVX2__)
#define LR_FRONT 0, 8, 1, 9, 2, 10, 3, 11
#define LR_BACK 4, 12, 5, 13, 6, 14, 7, 15
#else
#define LR_FRONT 0, 4, 1, 5
#define LR_BACK 2, 6, 3, 7
#endif
static inline lr_vec lr_front(lr_vec a, lr_vec b)
{
    return LR_SHUFFLE(lr_lane_ids, a, b, LR_FRONT);
}
static inline lr_vec lr_back(lr_vec a, lr_vec b)
{
    return LR_SHUFFLE(lr_lane_ids, a, b, LR_BACK);
}

/* Transpose LR_LANES vectors, each a row: interleaving the first half of the rows with the second half, as often as a
 * row's number has bits, moves every element to where its column was. */
static inline void lr_transpose(lr_vec v[LR_LANES])
{
#pragma GCC unroll 4
    for (int rows = 1; rows < LR_LANES; rows *= 2) {
        lr_vec u[LR_LANES];
#pragma GCC unroll 8
        for (int i = 0; i < LR_LANES / 2; i++) {
            u[2 * i] = lr_front(v[i], v[i + LR_LANES / 2]);
            u[2 * i + 1] = lr_back(v[i], v[i + LR_LANES / 2]);
        }
        memcpy(v, u, sizeof u);
    }
}

/* Lane i of the result: the sum, or the largest, of v[i * LR_LANES] to v[(i + 1) * LR_LANES - 1]. The same interleaving,
 * adding as it goes. */
static inline lr_vec lr_sums_of(const float *v)
{
    lr_vec u[LR_LANES];
    memcpy(u, v, sizeof u);
#pragma GCC unroll 4
    for (int half = LR_LANES / 2; half > 0; half /= 2)
#pragma GCC unroll 8
        for (int i = 0; i < half; i++)
            u[i] = lr_front(u[i], u[i + half]) + lr_back(u[i], u[i + half]);
    return u[0];
}

static inline lr_vec lr_largest_of(const float *v)
{
    lr_vec u[LR_LANES];
    memcpy(u, v, sizeof u);
#pragma GCC unroll 4
    for (int half = LR_LANES / 2; half > 0; half /= 2)
#pragma GCC unroll 8
        for (int i = 0; i < half; i++)
            u[i] = lr_vec_max(lr_front(u[i], u[i + half]), lr_back(u[i], u[i + half]));
    return u[0];
}

static inline int64_t lr_round_up(int64_t n, int64_t unit)
{
    return (n + unit - 1) / unit * unit;
}

/* The first n lanes of v, and `rest` in the others. */
static inline lr_vec lr_vec_first(lr_vec v, int64_t n, float rest)
{
    if (n >= LR_LANES)
        return v;
    lr_lane_ids lane;
    for (int i = 0; i < LR_LANES; i++)
        lane[i] = i;
    const lr_lane_ids keep = lane < (int32_t)n;
    return (lr_vec)(((lr_lane_ids)v & keep) | ((lr_lane_ids)((lr_vec){0} + rest) & ~keep));
}

/* 2^x for x <= 127: to 2 units in the last place, 0 below -126.5 (or a number below 2^-126), NaN for NaN. */
static inline lr_vec lr_vec_exp2(lr_vec x)
{
    const lr_vec zero = {0};
#if defined(__AVX512F__)
    const lr_vec n = (lr_vec)_mm512_roundscale_ps((__m512)x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC), r = x - n;
#else
    const lr_vec magic = zero + (0x1.8p23f + 127.0f); /* leaves the biased exponent in the low bits */
    const lr_vec z = lr_vec_max(zero - 127.0f, x), shifted = z + magic, r = z - (shifted - magic);
#endif
    lr_vec p = zero + 1.32647269e-3f; /* minimax of (2^r - 1) / r, so that 2^0 is 1 */
    p = p * r + 9.67151266e-3f;
    p = p * r + 5.55073374e-2f;
    p = p * r + 0.240222421f;
    p = p * r + 0.693146978f;
    p = p * r + 1.0f;
#if defined(__AVX512F__)
    return (lr_vec)_mm512_scalef_ps((__m512)p, (__m512)n);
#else
    return p * (lr_vec)((lr_lane_ids)shifted << 23);
#endif
}

/* log2 x of normal numbers above 0, to 2e-7: the exponent that leaves a significand between sqrt(1/2) and sqrt(2), and a
 * minimax polynomial in what that is above 1. */
static inline lr_vec lr_vec_log2(lr_vec x)
{
    const lr_lane_bits bits = (lr_lane_bits)x, above = bits - 0x3f3504f3u; /* the bits of sqrt(1/2) */
    const lr_lane_ids exponent = (lr_lane_ids)above >> 23;
    const lr_vec t = (lr_vec)(bits - ((lr_lane_bits)exponent << 23)) - 1.0f;
    lr_vec p = (lr_vec){0} - 0.145744364f;
    p = p * t + 0.236890336f;
    p = p * t - 0.25006906f;
    p = p * t + 0.286707462f;
    p = p * t - 0.360087215f;
    p = p * t + 0.480939445f;
    p = p * t - 0.721357149f;
    p = p * t + 1.44269477f;
    return __builtin_convertvector(exponent, lr_vec) + p * t;
}

/* For a negative x the first, else the second. */
static inline lr_vec lr_vec_if_negative(lr_vec x, lr_vec first, lr_vec second)
{
    const lr_lane_ids negative = (lr_lane_ids)x >> 31;
    return (lr_vec)(((lr_lane_ids)first & negative) | ((lr_lane_ids)second & ~negative));
}

static inline lr_vec lr_vec_magnitude(lr_vec x)
{
    return (lr_vec)((lr_lane_ids)x & 0x7fffffff);
}

/* 1 / (1 + e^-x), from e^-|x|, which is at most 1. */
static inline lr_vec lr_vec_sigmoid(lr_vec x)
{
    const lr_vec e = lr_vec_exp2(-LR_LOG2_E * lr_vec_magnitude(x)), one = (lr_vec){0} + 1.0f;
    return lr_vec_if_negative(x, e, one) / (one + e);
}

/* The normal distribution function Phi(x); *density is phi(x). */
static inline lr_vec lr_vec_normal(lr_vec x, lr_vec *density)
{
    const lr_vec e = lr_vec_exp2(-0.5f * LR_LOG2_E * x * x);
    const lr_vec t = 1.0f / (1.0f + LR_NORMAL_SCALE * lr_vec_magnitude(x));
    lr_vec p = (lr_vec){0} + LR_NORMAL_LEADING;
#define STEP(c) p = p * t + c;
    LR_NORMAL_REST(STEP)
#undef STEP
    const lr_vec tail = e * t * p;
    *density = LR_NORMAL_DENSITY * e;
    return lr_vec_if_negative(x, tail, 1.0f - tail);
}

#endif
