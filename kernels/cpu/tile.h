/* tile.h: small products of packed operands, from within a parallel region. pack.h makes the operands.
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

#include "cpu/lanes.h"

/* How many rows of two vectors the registers hold as sums. */
#if defined(__AVX512F__)
enum { LR_TILE_ROWS = 12 };
#else
enum { LR_TILE_ROWS = 6 };
#endif
#ifdef __AVX512BF16__
enum { LR_HAS_PAIRS = 1 };
#else
enum { LR_HAS_PAIRS = 0 };
#endif
enum { LR_PANEL = 32, LR_ROW_UNIT = 12 }; /* row counts are padded to LR_ROW_UNIT, a multiple of every LR_TILE_ROWS */

/* A word of an operand: of a pair the first in the lower half, as two neighbours in memory are. */
typedef union lr_word {
    float value;
    uint32_t pair;
} lr_word;

/* ---- pairs -------------------------------------------------------------------------------------------------- */
#ifdef __AVX512BF16__
/* What takes the halves of a vector of bf16 to their places when the first is interleaved with the second. */
static const uint16_t lr_interleaved[32] = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                                            8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};

/* Neighbours as pairs: to[0, LR_LANES) = first, then second, rounded to bf16. */
static inline void lr_pair_along(lr_word *to, lr_vec first, lr_vec second)
{
    const __m512bh words = _mm512_cvtne2ps_pbh((__m512)second, (__m512)first);
    memcpy(to, &words, sizeof words);
}

/* Counterparts as pairs: to[i] = (first[i], second[i]), rounded to bf16. */
static inline void lr_pair_down(lr_word *to, lr_vec first, lr_vec second)
{
    const __m512i halves = (__m512i)_mm512_cvtne2ps_pbh((__m512)second, (__m512)first);
    _mm512_storeu_si512(to, _mm512_permutexvar_epi16(_mm512_loadu_si512(lr_interleaved), halves));
}

/* to[c] = (even[c], odd[c]): n <= LR_PANEL of each, bf16, then zeros up to a whole vector. odd NULL: zeros. */
static inline void lr_interleave(lr_word *to, const char *even, const char *odd, int64_t n)
{
    const __m512i order = _mm512_loadu_si512(lr_interleaved); /* of 16 and 16: the others are the second vector's */
    const __m512i first = _mm512_mask_add_epi16(order, 0xaaaaaaaau, order, _mm512_set1_epi16(16));
    const __m512i second = _mm512_add_epi16(first, _mm512_set1_epi16(16));
    const __mmask32 there = n < 32 ? (1u << n) - 1 : 0xffffffffu;
    const __m512i x = _mm512_maskz_loadu_epi16(there, even);
    const __m512i y = odd != NULL ? _mm512_maskz_loadu_epi16(there, odd) : _mm512_setzero_si512();
    _mm512_storeu_si512(to, _mm512_permutex2var_epi16(x, first, y));
    if (n > 16)
        _mm512_storeu_si512(to + 16, _mm512_permutex2var_epi16(x, second, y));
}
#else
/* Pairs are for instruction sets that multiply them: nothing else calls these. */
static inline void lr_interleave(lr_word *to, const char *even, const char *odd, int64_t n)
{
    (void)to, (void)even, (void)odd, (void)n;
}

static inline void lr_pair_along(lr_word *to, lr_vec first, lr_vec second)
{
    (void)to, (void)first, (void)second;
}

static inline void lr_pair_down(lr_word *to, lr_vec first, lr_vec second)
{
    (void)to, (void)first, (void)second;
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
