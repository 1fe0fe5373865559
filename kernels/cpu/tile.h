/* tile.h: vectors, and small products of packed operands, for attention, from within a parallel region.
 *
 * Operands are words of 32 bits along the depth: one f32, or a pair of bf16 where the instruction set multiplies those
 * (LR_HAS_PAIRS), which halves the depth; sums are f32 in both cases. Everything but the multiplication itself is the
 * same for the two.
 *
 * The right operand comes in panels of 32 columns: panel p holds, for each word of the depth in turn, its 32 columns. A
 * panel of the depths used here stays in the first-level cache while every block of rows passes over it. The left
 * operand is read by broadcast, so any pair of strides will do; that makes transposed left operands free. Sums stay in
 * registers over the whole depth. */
#ifndef LR_CPU_TILE_H
#define LR_CPU_TILE_H

#include "cpu/vec.h"
#ifdef __AVX2__
#include <immintrin.h>
#endif

/* Vectors of the instruction set, and how many rows of two such vectors its registers hold as sums. */
#if defined(__AVX512F__)
enum { LR_LANES = 16, LR_TILE_ROWS = 12 };
#elif defined(__AVX2__)
enum { LR_LANES = 8, LR_TILE_ROWS = 6 };
#else
enum { LR_LANES = 4, LR_TILE_ROWS = 6 };
#endif
#ifdef __AVX512BF16__
enum { LR_HAS_PAIRS = 1 };
#else
enum { LR_HAS_PAIRS = 0 };
#endif
enum { LR_PANEL = 32, LR_ROW_UNIT = 12 }; /* row counts are padded to LR_ROW_UNIT, a multiple of every LR_TILE_ROWS */

typedef float lr_vec __attribute__((vector_size(LR_LANES * 4)));
typedef int32_t lr_lane_ids __attribute__((vector_size(LR_LANES * 4)));

/* A word of an operand: of a pair the first in the lower half, as two neighbours in memory are. */
typedef union lr_word {
    float value;
    uint32_t pair;
} lr_word;

static inline lr_vec lr_vec_load(const void *p)
{
    lr_vec v;
    memcpy(&v, p, sizeof v);
    return v;
}

static inline void lr_vec_store(float *p, lr_vec v)
{
    memcpy(p, &v, sizeof v);
}

static inline int64_t lr_round_up(int64_t n, int64_t unit)
{
    return (n + unit - 1) / unit * unit;
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

/* The sum and the largest of a vector's lanes, half against half. */
static inline float lr_vec_sum(lr_vec v)
{
#if defined(__AVX512F__)
    return _mm512_reduce_add_ps((__m512)v);
#else
    float lane[LR_LANES];
    memcpy(lane, &v, sizeof v);
    for (int half = LR_LANES / 2; half > 0; half /= 2)
        for (int i = 0; i < half; i++)
            lane[i] += lane[i + half];
    return lane[0];
#endif
}

static inline float lr_vec_highest(lr_vec v)
{
#if defined(__AVX512F__)
    return _mm512_reduce_max_ps((__m512)v);
#else
    float lane[LR_LANES], highest;
    memcpy(lane, &v, sizeof v);
    highest = lane[0];
    for (int i = 1; i < LR_LANES; i++)
        highest = lane[i] > highest ? lane[i] : highest;
    return highest;
#endif
}

/* 2^x for x <= 127: to 2 units in the last place, 0 below -126.5, NaN for NaN. */
static inline lr_vec lr_vec_exp2(lr_vec x)
{
    const lr_vec zero = {0}, magic = zero + (0x1.8p23f + 127.0f); /* leaves the biased exponent in the low bits */
    const lr_vec z = lr_vec_max(zero - 127.0f, x), shifted = z + magic, r = z - (shifted - magic);
    lr_vec p = zero + 1.339086336e-3f;
    p = p * r + 9.676031918e-3f;
    p = p * r + 5.550357114e-2f;
    p = p * r + 0.2402210749f;
    p = p * r + 0.6931471880f;
    p = p * r + 1.000000075f;
    return p * (lr_vec)((lr_lane_ids)shifted << 23);
}

/* ---- pairs out of f32 ------------------------------------------------------------------------------------------ */
#ifdef __AVX512BF16__
/* to[j / 2] = (x[j], x[j + 1]): n floats, in whole lots of 32. to may be x. */
static inline void lr_pair_row(lr_word *to, const float *x, int64_t n)
{
    for (int64_t j = 0; j < n; j += 32) {
        const __m512bh words = _mm512_cvtne2ps_pbh(_mm512_loadu_ps(x + j + 16), _mm512_loadu_ps(x + j));
        memcpy(to + j / 2, &words, sizeof words);
    }
}

/* to[j] = (x[j], y[j]): n of each, in whole lots of 16. to may be x. */
static inline void lr_pair_rows(lr_word *to, const float *x, const float *y, int64_t n)
{
    const __m512i upper = _mm512_set1_epi32((int)0xffff0000u);
    for (int64_t j = 0; j < n; j += 16) {
        const __m512i first = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(_mm512_loadu_ps(x + j)));
        const __m512i second = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(_mm512_loadu_ps(y + j)));
        const __m512i words = _mm512_or_si512(first, _mm512_and_si512(_mm512_slli_epi32(second, 16), upper));
        memcpy(to + j, &words, sizeof words);
    }
}
#else
/* Pairs are for instruction sets that multiply them: nothing else calls these. */
static inline void lr_pair_row(lr_word *to, const float *x, int64_t n)
{
    (void)to, (void)x, (void)n;
}

static inline void lr_pair_rows(lr_word *to, const float *x, const float *y, int64_t n)
{
    (void)to, (void)x, (void)y, (void)n;
}
#endif

/* ---- products -------------------------------------------------------------------------------------------------- */
static inline lr_vec lr_multiply_add(bool pairs, lr_vec sum, lr_word a, lr_vec b)
{
#ifdef __AVX512BF16__
    if (pairs)
        return (lr_vec)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_set1_epi32((int)a.pair), (__m512bh)b);
#endif
    (void)pairs;
    return sum + a.value * b;
}

/* c[LR_TILE_ROWS, one or two vectors] (+)= a[.., depth] b[depth, as many vectors]. pairs and vectors are constants
 * wherever this is inlined, and the compiler makes a loop for each. */
static inline __attribute__((always_inline)) void lr_tile(bool pairs, int vectors, int64_t depth, const lr_word *a,
                                                          int64_t row_stride, int64_t column_stride, const lr_word *b,
                                                          float *c, int64_t ldc, bool accumulate)
{
    lr_vec sum[LR_TILE_ROWS][2];
#pragma GCC unroll 16
    for (int i = 0; i < LR_TILE_ROWS; i++)
        sum[i][0] = sum[i][1] = (lr_vec){0};
    for (int64_t k = 0; k < depth; k++) {
        const lr_vec b0 = lr_vec_load(b + k * LR_PANEL);
        const lr_vec b1 = vectors > 1 ? lr_vec_load(b + k * LR_PANEL + LR_LANES) : b0;
        const lr_word *column = a + k * column_stride;
#pragma GCC unroll 16
        for (int i = 0; i < LR_TILE_ROWS; i++) {
            const lr_word x = column[i * row_stride];
            sum[i][0] = lr_multiply_add(pairs, sum[i][0], x, b0);
            if (vectors > 1)
                sum[i][1] = lr_multiply_add(pairs, sum[i][1], x, b1);
        }
    }
#pragma GCC unroll 16
    for (int i = 0; i < LR_TILE_ROWS; i++)
#pragma GCC unroll 2
        for (int v = 0; v < vectors; v++) {
            float *to = c + i * ldc + v * LR_LANES;
            lr_vec_store(to, accumulate ? sum[i][v] + lr_vec_load(to) : sum[i][v]);
        }
}

/* c[rows, columns] (+)= a[rows, depth] b[depth, columns], depth in words. a and c have room for rows rounded up to
 * LR_ROW_UNIT and columns to LR_LANES; what stands in a's extra rows is of no consequence but for c's extra rows. */
static inline void lr_tile_product(bool pairs, int64_t rows, int64_t columns, int64_t depth, const lr_word *a,
                                   int64_t row_stride, int64_t column_stride, const lr_word *b, int64_t panel_stride,
                                   float *c, int64_t ldc, bool accumulate)
{
    for (int64_t column = 0; column < columns; column += 2 * LR_LANES) {
        const lr_word *panel = b + column / LR_PANEL * panel_stride + column % LR_PANEL;
        const bool narrow = columns - column <= LR_LANES;
        for (int64_t i = 0; i < rows; i += LR_TILE_ROWS) {
            const lr_word *from = a + i * row_stride;
            float *to = c + i * ldc + column;
            if (LR_HAS_PAIRS && pairs && narrow)
                lr_tile(true, 1, depth, from, row_stride, column_stride, panel, to, ldc, accumulate);
            else if (LR_HAS_PAIRS && pairs)
                lr_tile(true, 2, depth, from, row_stride, column_stride, panel, to, ldc, accumulate);
            else if (narrow)
                lr_tile(false, 1, depth, from, row_stride, column_stride, panel, to, ldc, accumulate);
            else
                lr_tile(false, 2, depth, from, row_stride, column_stride, panel, to, ldc, accumulate);
        }
    }
}

#endif
