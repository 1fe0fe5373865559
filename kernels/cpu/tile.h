/* tile.h: small products for attention, from within a parallel region, on packed f32 operands.
 *
 * The right operand comes in panels of 32 columns: panel p holds, for each k in turn, its 32 values. A panel of the
 * depths used here stays in the first-level cache while every block of rows passes over it. The left operand is read by
 * broadcast, so any pair of strides will do; that makes transposed left operands free. Sums stay in registers over the
 * whole depth. */
#ifndef LR_CPU_TILE_H
#define LR_CPU_TILE_H

#include "cpu/vec.h"

/* Vectors of the instruction set, and how many rows of two such vectors its registers hold as sums. */
#if defined(__AVX512F__)
enum { LR_LANES = 16, LR_TILE_ROWS = 12 };
#elif defined(__AVX2__)
enum { LR_LANES = 8, LR_TILE_ROWS = 6 };
#else
enum { LR_LANES = 4, LR_TILE_ROWS = 6 };
#endif
enum { LR_PANEL = 32, LR_ROW_UNIT = 12 }; /* row counts are padded to LR_ROW_UNIT, a multiple of every LR_TILE_ROWS */

typedef float lr_vec __attribute__((vector_size(LR_LANES * 4)));

static inline lr_vec lr_vec_load(const float *p)
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

/* c[LR_TILE_ROWS, two vectors] (+)= a[.., depth] b[depth, two vectors] */
static inline void lr_tile(int64_t depth, const float *a, int64_t row_stride, int64_t column_stride, const float *b,
                           float *c, int64_t ldc, bool accumulate)
{
    lr_vec sum[LR_TILE_ROWS][2];
#pragma GCC unroll 16
    for (int i = 0; i < LR_TILE_ROWS; i++)
        sum[i][0] = sum[i][1] = (lr_vec){0};
    for (int64_t k = 0; k < depth; k++) {
        const lr_vec b0 = lr_vec_load(b + k * LR_PANEL), b1 = lr_vec_load(b + k * LR_PANEL + LR_LANES);
        const float *column = a + k * column_stride;
#pragma GCC unroll 16
        for (int i = 0; i < LR_TILE_ROWS; i++) {
            const float x = column[i * row_stride];
            sum[i][0] += x * b0;
            sum[i][1] += x * b1;
        }
    }
#pragma GCC unroll 16
    for (int i = 0; i < LR_TILE_ROWS; i++) {
        float *to = c + i * ldc;
        if (accumulate) {
            sum[i][0] += lr_vec_load(to);
            sum[i][1] += lr_vec_load(to + LR_LANES);
        }
        lr_vec_store(to, sum[i][0]);
        lr_vec_store(to + LR_LANES, sum[i][1]);
    }
}

/* c[rows, 32 panels] (+)= a[rows, depth] b[depth, 32 panels]. a and c have room for rows rounded up to LR_ROW_UNIT;
 * what stands in a's extra rows is of no consequence but for c's extra rows. */
static inline void lr_tile_product(int64_t rows, int64_t panels, int64_t depth, const float *a, int64_t row_stride,
                                   int64_t column_stride, const float *b, int64_t panel_stride, float *c, int64_t ldc,
                                   bool accumulate)
{
    for (int64_t p = 0; p < panels; p++)
        for (int64_t column = 0; column < LR_PANEL; column += 2 * LR_LANES)
            for (int64_t i = 0; i < rows; i += LR_TILE_ROWS)
                lr_tile(depth, a + i * row_stride, row_stride, column_stride, b + p * panel_stride + column,
                        c + i * ldc + p * LR_PANEL + column, ldc, accumulate);
}

#endif
