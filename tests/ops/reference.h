/* reference.h: what the cases of test_reference.c share: tensors that know their values in double, comparison,
 * derivatives.
 *
 * A mat is a tensor of random values together with the same values in double, already rounded to the tensor's dtype: a
 * reference computed from them differs from the op by the op's own error alone. Strided mats are views into wider
 * tensors whose other columns hold a marker, and every comparison checks that the marker is still there. */
#ifndef REFERENCE_H
#define REFERENCE_H

#include "core/op.h"
#include "core/philox.h"
#include "lr_test.h"
#include <stdbool.h>

typedef struct mat {
    lr_tensor *t, *whole; /* whole: what t is a view of, or NULL */
    int64_t rows, cols;
    double *v; /* rows * cols */
} mat;

enum { GAP = 5, MAX_MADE = 64 };
static const double MARKER = 12288.0; /* exact in every dtype */

/* Everything made by the running case, for release() at its end. */
static mat *made[MAX_MADE];
static int made_count;
static double *blocks[4 * MAX_MADE];
static int block_count;

static double *doubles(int64_t n)
{
    double *p = calloc((size_t)n + 1, sizeof *p);
    if (p == NULL || block_count == (int)LR_COUNT_OF(blocks))
        LR_TEST_FAIL("no room for a reference of %lld numbers", (long long)n);
    return blocks[block_count++] = p;
}

static void release(void)
{
    for (int i = 0; i < made_count; i++) {
        lr_tensor_destroy(made[i]->t);
        lr_tensor_destroy(made[i]->whole);
        free(made[i]);
    }
    for (int i = 0; i < block_count; i++)
        free(blocks[i]);
    made_count = block_count = 0;
}

/* ---- random numbers, the same in every run -------------------------------------------------------------------------
 */
static uint64_t draws;

static double uniform(void)
{
    uint32_t r[4];
    lr_random(7, 1, 0, draws++, r);
    return (double)r[0] * 0x1p-32;
}

/* Roughly normal: the sum of four uniforms, unit variance. */
static double normal(void)
{
    return (uniform() + uniform() + uniform() + uniform() - 2.0) * sqrt(3.0);
}

/* ---- elements
 * -------------------------------------------------------------------------------------------------------- */
static double rounded(double x, int dtype)
{
    return dtype == LR_F32    ? (double)(float)x
           : dtype == LR_BF16 ? (double)lr_bf16_to_f32(lr_f32_to_bf16((float)x))
                              : (double)lr_f16_to_f32(lr_f32_to_f16((float)x));
}

static double element(const lr_tensor *t, int64_t i)
{
    switch (t->dtype) {
    case LR_F32:
        return ((const float *)t->data)[i];
    case LR_BF16:
        return lr_bf16_to_f32(((const uint16_t *)t->data)[i]);
    case LR_F16:
        return lr_f16_to_f32(((const uint16_t *)t->data)[i]);
    case LR_I32:
        return ((const int32_t *)t->data)[i];
    default:
        return (double)((const int64_t *)t->data)[i];
    }
}

static void set_element(lr_tensor *t, int64_t i, double x)
{
    switch (t->dtype) {
    case LR_F32:
        ((float *)t->data)[i] = (float)x;
        break;
    case LR_BF16:
        ((uint16_t *)t->data)[i] = lr_f32_to_bf16((float)x);
        break;
    case LR_F16:
        ((uint16_t *)t->data)[i] = lr_f32_to_f16((float)x);
        break;
    case LR_I32:
        ((int32_t *)t->data)[i] = (int32_t)x;
        break;
    default:
        ((int64_t *)t->data)[i] = (int64_t)x;
    }
}

/* ---- mats
 * ------------------------------------------------------------------------------------------------------------ */
/* An uninitialised mat is full of NaN, so that an op which reads it by mistake is found out. rows 0: a vector of cols.
 */
static mat *mat_new(int64_t rows, int64_t cols, int dtype, bool strided)
{
    mat *m = calloc(1, sizeof *m);
    if (m == NULL || made_count == MAX_MADE)
        LR_TEST_FAIL("too many mats in one case");
    made[made_count++] = m;
    m->rows = rows > 0 ? rows : 1;
    m->cols = cols;
    m->v = doubles(m->rows * cols);
    const int64_t shape[2] = {rows, cols}, wide[2] = {rows, cols + 2 * GAP};
    if (strided && rows > 0) {
        CHECK_INT(lr_tensor_new(&m->whole, dtype, 2, wide, LR_CPU, "whole"), LR_OK);
        CHECK_INT(lr_tensor_fill(m->whole, MARKER), LR_OK);
        CHECK_INT(lr_tensor_view(&m->t, m->whole, GAP, 2, shape, cols + 2 * GAP), LR_OK);
    } else {
        CHECK_INT(lr_tensor_new(&m->t, dtype, rows > 0 ? 2 : 1, rows > 0 ? shape : shape + 1, LR_CPU, "mat"), LR_OK);
    }
    if (dtype <= LR_F16)
        CHECK_INT(lr_tensor_fill(m->t, NAN), LR_OK);
    return m;
}

static int64_t mat_at(const mat *m, int64_t i)
{
    return i / m->cols * m->t->ld + i % m->cols;
}

/* Give the tensor the values in m->v, and m->v the values after rounding. */
static mat *mat_put(mat *m)
{
    for (int64_t i = 0; i < m->rows * m->cols; i++) {
        set_element(m->t, mat_at(m, i), m->v[i]);
        m->v[i] = element(m->t, mat_at(m, i));
    }
    return m;
}

static mat *mat_scaled(int64_t rows, int64_t cols, int dtype, bool strided, double scale)
{
    mat *m = mat_new(rows, cols, dtype, strided);
    for (int64_t i = 0; i < m->rows * cols; i++)
        m->v[i] = scale * normal();
    return mat_put(m);
}

static mat *mat_random(int64_t rows, int64_t cols, int dtype, bool strided)
{
    return mat_scaled(rows, cols, dtype, strided, 1.0);
}

/* A vector of whole numbers below limit. */
static mat *mat_ids(int64_t n, int dtype, int64_t limit)
{
    mat *m = mat_new(0, n, dtype, false);
    for (int64_t i = 0; i < n; i++)
        m->v[i] = floor(uniform() * (double)limit);
    return mat_put(m);
}

static mat *mat_of(const double *values, int64_t n, int dtype)
{
    mat *m = mat_new(0, n, dtype, false);
    memcpy(m->v, values, (size_t)n * sizeof *values);
    return mat_put(m);
}

static mat *mat_cu(const int *lengths, int64_t sequences)
{
    mat *m = mat_new(0, sequences + 1, LR_I32, false);
    for (int64_t i = 0; i < sequences; i++)
        m->v[i + 1] = m->v[i] + lengths[i];
    return mat_put(m);
}

/* ---- comparison
 * ------------------------------------------------------------------------------------------------------ */
/* Every element within `relative` of itself and of the largest element, at least `largest` (sums of terms of that size
 * round on that scale), plus, where the result is stored in bf16, one unit of its 8-bit significand: half for the
 * rounding, half for ties that the f32 error tips over. terms, if given: sums of the absolute values of each element's
 * terms, each of which a bf16 op may round to bf16 before it is summed, to 8 bits: by 2^-8 of itself. */
static void compare_within(const mat *m, const double *expected, double relative, double largest, const double *terms,
                           const char *what, int line)
{
    const double unit = m->t->dtype == LR_BF16 ? 0x1p-8 : m->t->dtype == LR_F16 ? 0x1p-11 : 0.0;
    for (int64_t i = 0; i < m->rows * m->cols; i++)
        largest = fmax(largest, fabs(expected[i]));
    for (int64_t i = 0; i < m->rows * m->cols; i++) {
        const double got = element(m->t, mat_at(m, i)), tolerance = relative * largest +
                                                                    (relative + unit) * fabs(expected[i]) +
                                                                    (terms != NULL ? unit * terms[i] : 0.0);
        if (!(fabs(got - expected[i]) <= tolerance))
            LR_TEST_FAIL("line %d: %s[%lld, %lld] of [%lld, %lld] %s is %.9g, expected %.9g within %.3g", line, what,
                         (long long)(i / m->cols), (long long)(i % m->cols), (long long)m->rows, (long long)m->cols,
                         lr_dtype_name(m->t->dtype), got, expected[i], tolerance);
    }
    for (int64_t i = 0; m->whole != NULL && i < m->whole->elements; i++) {
        const int64_t column = i % m->whole->shape[1];
        if ((column < GAP || column >= GAP + m->cols) && element(m->whole, i) != MARKER)
            LR_TEST_FAIL("line %d: %s: column %lld beside the view was written", line, what, (long long)(column - GAP));
    }
}
#define COMPARE(m, expected, relative) compare_within(m, expected, relative, 0.0, NULL, #m, __LINE__)
/* The same where the result is a difference of terms of order one, which may cancel. */
#define COMPARE_SUM(m, expected, relative) compare_within(m, expected, relative, 1.0, NULL, #m, __LINE__)
/* The same where the terms themselves may be rounded to bf16. */
#define COMPARE_TERMS(m, expected, relative, terms) compare_within(m, expected, relative, 1.0, terms, #m, __LINE__)
static const double CLOSE = 2e-6; /* 32 units of f32's 24 bits: sums of some hundred terms */

#define OK(call) CHECK_INT(call, LR_OK)

/* ---- derivatives
 * ----------------------------------------------------------------------------------------------------- */
/* d f(x) / dx[i] by central differences in double, for every i: exact to some 1e-9 of f. */
static double *derivative(double *x, int64_t n, double (*f)(const void *context), const void *context)
{
    double *d = doubles(n);
    for (int64_t i = 0; i < n; i++) {
        const double saved = x[i], h = 1e-5;
        x[i] = saved + h;
        const double above = f(context);
        x[i] = saved - h;
        d[i] = (above - f(context)) / (2.0 * h);
        x[i] = saved;
    }
    return d;
}

static double inner(const double *a, const double *b, int64_t n)
{
    double sum = 0.0;
    for (int64_t i = 0; i < n; i++)
        sum += a[i] * b[i];
    return sum;
}

/* ---- configurations
 * -------------------------------------------------------------------------------------------------- */
typedef struct config {
    int dtype;
    int64_t rows, cols;
    bool strided;
} config;

/* Odd sizes, one wider than a kernel's run of elements, each in both dtypes, with and without gaps between rows. */
static const config CONFIGS[] = {
    {LR_F32, 1, 1, false},   {LR_F32, 3, 17, true},    {LR_F32, 17, 33, false},   {LR_F32, 33, 3, true},
    {LR_F32, 2, 4101, true}, {LR_F32, 130, 64, false}, {LR_BF16, 1, 1, false},    {LR_BF16, 3, 17, true},
    {LR_BF16, 17, 33, true}, {LR_BF16, 33, 3, false},  {LR_BF16, 2, 4101, false}, {LR_BF16, 130, 64, true},
};
#define FOR_CONFIGS(c) for (const config *c = CONFIGS; c < CONFIGS + LR_COUNT_OF(CONFIGS); c++, release())

#endif
