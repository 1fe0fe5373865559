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

/* Where the ops run and what the 16-bit cases hold: LORARUN_TEST_DEVICE=cuda, LORARUN_TEST_HALF=f16. */
static int device = LR_CPU, HALF = LR_BF16;

/* The device is CUDA's kernels on the CPU, with a fiber for each thread: some thousand times slower than a GPU. */
#define MODELLED (device != LR_CPU && getenv("LORARUN_SIMT") != NULL)

/* For a case about the CPU alone. */
#define CPU_ONLY                                                                                                       \
    if (device != LR_CPU)                                                                                              \
    return

__attribute__((constructor)) static void choose_device(void)
{
    const char *name = getenv("LORARUN_TEST_DEVICE"), *dtype = getenv("LORARUN_TEST_HALF");
    if (name != NULL && strcmp(name, "cuda") == 0)
        device = LR_CUDA;
    if (dtype != NULL && strcmp(dtype, "f16") == 0)
        HALF = LR_F16;
}

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

/* ---- random numbers ----------------------------------------------------------------------------------------------- */
/* Four numbers of 32 bits: the same in every run of a test, whichever others run before it. */
static void draw(uint32_t out[4])
{
    static const char *drawn_for;
    static uint64_t draws;
    static uint32_t stream;
    if (drawn_for != lr_test_name) {
        drawn_for = lr_test_name;
        stream = lr_crc32c(0, drawn_for, strlen(drawn_for));
        draws = 0;
    }
    lr_random(7, stream, 0, draws++, out);
}

static double uniform(void)
{
    uint32_t r[4];
    draw(r);
    return (double)r[0] * 0x1p-32;
}

/* Roughly normal: the sum of four uniforms, unit variance. */
static double normal(void)
{
    uint32_t r[4];
    draw(r);
    return (((double)r[0] + r[1] + r[2] + r[3]) * 0x1p-32 - 2.0) * sqrt(3.0);
}

/* ---- elements --------------------------------------------------------------------------------------------------- */
static double rounded(double x, int dtype)
{
    return dtype == LR_F32    ? (double)(float)x
           : dtype == LR_BF16 ? (double)lr_bf16_to_f32(lr_f32_to_bf16((float)x))
                              : (double)lr_f16_to_f32(lr_f32_to_f16((float)x));
}

/* Element i of `raw`, which holds numbers of a dtype. */
static double decoded(const void *raw, int dtype, int64_t i)
{
    switch (dtype) {
    case LR_F32:
        return ((const float *)raw)[i];
    case LR_BF16:
        return lr_bf16_to_f32(((const uint16_t *)raw)[i]);
    case LR_F16:
        return lr_f16_to_f32(((const uint16_t *)raw)[i]);
    case LR_I32:
        return ((const int32_t *)raw)[i];
    default:
        return (double)((const int64_t *)raw)[i];
    }
}

static void encode(void *raw, int dtype, int64_t i, double x)
{
    switch (dtype) {
    case LR_F32:
        ((float *)raw)[i] = (float)x;
        break;
    case LR_BF16:
        ((uint16_t *)raw)[i] = lr_f32_to_bf16((float)x);
        break;
    case LR_F16:
        ((uint16_t *)raw)[i] = lr_f32_to_f16((float)x);
        break;
    case LR_I32:
        ((int32_t *)raw)[i] = (int32_t)x;
        break;
    default:
        ((int64_t *)raw)[i] = (int64_t)x;
    }
}

/* One element, in row order. */
static double element(const lr_tensor *t, int64_t i)
{
    int64_t raw[1];
    CHECK_INT(lr_tensor_read(t, i, 1, raw), LR_OK);
    return decoded(raw, t->dtype, 0);
}

/* All elements in row order, to be freed. */
static double *elements_of(const lr_tensor *t)
{
    double *x = calloc((size_t)t->elements, sizeof *x);
    void *raw = calloc((size_t)t->elements, lr_dtype_size(t->dtype));
    const int status = x != NULL && raw != NULL ? lr_tensor_read(t, 0, t->elements, raw) : LR_ENOMEM;
    for (int64_t i = 0; status == LR_OK && i < t->elements; i++)
        x[i] = decoded(raw, t->dtype, i);
    free(raw);
    if (status != LR_OK)
        free(x);
    CHECK_INT(status, LR_OK);
    return x;
}

/* ---- mats ------------------------------------------------------------------------------------------------------- */
/* A mat without anything, to be destroyed by release(). */
static mat *holder(void)
{
    mat *m = calloc(1, sizeof *m);
    if (m == NULL || made_count == MAX_MADE)
        LR_TEST_FAIL("too many mats in one case");
    return made[made_count++] = m;
}

/* An uninitialised mat is full of NaN, so that an op which reads it by mistake fails. rows 0: a vector of cols.
 */
static mat *mat_new(int64_t rows, int64_t cols, int dtype, bool strided)
{
    mat *m = holder();
    m->rows = rows > 0 ? rows : 1;
    m->cols = cols;
    m->v = doubles(m->rows * cols);
    const int64_t shape[2] = {rows, cols}, wide[2] = {rows, cols + 2 * GAP};
    if (strided && rows > 0) {
        CHECK_INT(lr_tensor_new(&m->whole, dtype, 2, wide, device, "whole"), LR_OK);
        CHECK_INT(lr_tensor_fill(m->whole, MARKER), LR_OK);
        CHECK_INT(lr_tensor_view(&m->t, m->whole, GAP, 2, shape, cols + 2 * GAP), LR_OK);
    } else {
        CHECK_INT(lr_tensor_new(&m->t, dtype, rows > 0 ? 2 : 1, rows > 0 ? shape : shape + 1, device, "mat"), LR_OK);
    }
    if (dtype <= LR_F16)
        CHECK_INT(lr_tensor_fill(m->t, NAN), LR_OK);
    return m;
}

/* Give the tensor the values in m->v, and m->v the values after rounding. */
static mat *mat_put(mat *m)
{
    const int64_t n = m->rows * m->cols;
    void *raw = calloc((size_t)n, lr_dtype_size(m->t->dtype));
    CHECK(raw != NULL);
    for (int64_t i = 0; i < n; i++) {
        encode(raw, m->t->dtype, i, m->v[i]);
        m->v[i] = decoded(raw, m->t->dtype, i);
    }
    const int status = lr_tensor_write(m->t, 0, n, raw);
    free(raw);
    CHECK_INT(status, LR_OK);
    return m;
}

static mat *mat_draw(mat *m, double scale)
{
    for (int64_t i = 0; i < m->rows * m->cols; i++)
        m->v[i] = scale * normal();
    return mat_put(m);
}

static mat *mat_scaled(int64_t rows, int64_t cols, int dtype, bool strided, double scale)
{
    return mat_draw(mat_new(rows, cols, dtype, strided), scale);
}

/* Some columns of a mat, with values of their own. */
static mat *mat_slice(const mat *of, int64_t column, int64_t cols)
{
    mat *m = holder();
    *m = (mat){.rows = of->rows, .cols = cols, .v = doubles(of->rows * cols)};
    const int64_t shape[2] = {of->rows, cols};
    CHECK_INT(lr_tensor_view(&m->t, of->t, column, 2, shape, of->t->ld), LR_OK);
    return m;
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

/* ---- comparison ------------------------------------------------------------------------------------------------- */
/* Every element within `relative` of itself and of the largest element, at least `largest` (sums of terms of that size
 * round on that scale), plus, where the result is stored in bf16, one unit of its 8-bit significand: half for the
 * rounding, half for ties that the f32 error tips over. terms, if given: sums of the absolute values of each element's
 * terms, each of which a bf16 op may round to bf16 before it is summed, to 8 bits: by 2^-8 of itself. f16 has 11 bits, and
 * nothing between multiples of 2^-24 where it has fewer. */
static void compare_within(const mat *m, const double *expected, double relative, double largest, const double *terms,
                           const char *what, int line)
{
    const double unit = m->t->dtype == LR_BF16 ? 0x1p-8 : m->t->dtype == LR_F16 ? 0x1p-11 : 0.0;
    const double least = m->t->dtype == LR_F16 ? 0x1p-25 : 0.0;
    for (int64_t i = 0; i < m->rows * m->cols; i++)
        largest = fmax(largest, fabs(expected[i]));
    double *values = elements_of(m->t);
    for (int64_t i = 0; i < m->rows * m->cols; i++) {
        const double got = values[i], tolerance = relative * largest + (relative + unit) * fabs(expected[i]) + least +
                                                  (terms != NULL ? unit * terms[i] : 0.0);
        if (!(fabs(got - expected[i]) <= tolerance)) {
            free(values);
            LR_TEST_FAIL("line %d: %s[%lld, %lld] of [%lld, %lld] %s is %.9g, expected %.9g within %.3g", line, what,
                         (long long)(i / m->cols), (long long)(i % m->cols), (long long)m->rows, (long long)m->cols,
                         lr_dtype_name(m->t->dtype), got, expected[i], tolerance);
        }
    }
    free(values);
    if (m->whole == NULL)
        return;
    values = elements_of(m->whole);
    int64_t written = -1;
    for (int64_t i = 0; i < m->whole->elements; i++) {
        const int64_t column = i % m->whole->shape[1];
        if ((column < GAP || column >= GAP + m->cols) && values[i] != MARKER)
            written = column;
    }
    free(values);
    if (written >= 0)
        LR_TEST_FAIL("line %d: %s: column %lld beside the view was written", line, what, (long long)(written - GAP));
}
#define COMPARE(m, expected, relative) compare_within(m, expected, relative, 0.0, NULL, #m, __LINE__)
/* The same where the result is a difference of terms of order one, which may cancel. */
#define COMPARE_SUM(m, expected, relative) compare_within(m, expected, relative, 1.0, NULL, #m, __LINE__)
/* The same where the terms themselves may be rounded to bf16. */
#define COMPARE_TERMS(m, expected, relative, terms) compare_within(m, expected, relative, 1.0, terms, #m, __LINE__)
static const double CLOSE = 2e-6; /* 32 units of f32's 24 bits: sums of some hundred terms */

#define OK(call) CHECK_INT(call, LR_OK)
/* A number in a tensor is out of range. The CPU looks before it works, a GPU says so when it is waited for. */
#define REJECTED(call)                                                                                                 \
    do {                                                                                                               \
        const int status_ = call;                                                                                      \
        CHECK_INT(device == LR_CPU || status_ != LR_OK ? status_ : lr_device_wait(device), LR_EINVAL);                 \
    } while (0)

/* ---- derivatives ------------------------------------------------------------------------------------------------ */
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

/* ---- the rows of ops.def ------------------------------------------------------------------------------------------- */
static FILE *ops_open(void)
{
    char path[4096];
    const char *tests = getenv("LORARUN_TESTS");
    CHECK(tests != NULL); /* ctest sets it to the folder of the tests */
    snprintf(path, sizeof path, "%s/../kernels/ops.def", tests);
    FILE *f = fopen(path, "r");
    CHECK(f != NULL);
    return f;
}

/* The name of the next op, and whether its row says that kernels have scratch; false after the last. */
static bool ops_next(FILE *f, char name[64], bool *scratch)
{
    char line[1024];
    while (fgets(line, sizeof line, f) != NULL)
        if (sscanf(line, "%63[a-z0-9_]", name) == 1) {
            *scratch = strstr(line, "| scratch") != NULL;
            return true;
        }
    return false;
}

/* ---- configurations ------------------------------------------------------------------------------------------------ */
typedef struct config {
    bool half;
    int64_t rows, cols;
    bool strided;
} config;

/* Odd sizes, some wider than what a kernel takes at a time, with and without gaps between rows; each also in 16 bits. */
static const config CONFIGS[] = {
    {false, 1, 1, false},   {false, 3, 17, true},    {false, 17, 33, false}, {false, 33, 3, true},
    {false, 2, 4101, true}, {false, 130, 64, false}, {false, 12, 512, true}, {true, 1, 1, false},
    {true, 3, 17, true},    {true, 17, 33, true},    {true, 33, 3, false},   {true, 2, 4101, false},
    {true, 130, 64, true},  {true, 65, 12, false},   {true, 1, 8200, false},
};
#define FOR_CONFIGS(c) for (const config *c = CONFIGS; c < CONFIGS + LR_COUNT_OF(CONFIGS); c++, release())

static int dtype_of(const config *c)
{
    return c->half ? HALF : LR_F32;
}

#endif
