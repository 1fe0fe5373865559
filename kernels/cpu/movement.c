/* movement.c: rows in and out, conversion, sums and products of elements. */
#include "cpu/vec.h"

/* y[i] = table[ids[i]] + beta y[i] for n ids already checked. */
static void take_rows(lr_tensor *y, const lr_tensor *table, const int32_t *ids, float beta, const lr_exec *exec)
{
    const int64_t rows = y->shape[0], width = y->shape[1];
    const size_t size = lr_dtype_size(y->dtype);
#pragma omp parallel for num_threads(lr_threads_for(exec, rows *width)) schedule(static)
    for (int64_t i = 0; i < rows; i++) {
        float a_run[LR_RUN], y_run[LR_RUN];
        const int64_t from = (int64_t)ids[i] * table->ld, to = i * y->ld;
        if (beta == 0.0f) {
            memcpy(lr_at(y, to), lr_at(table, from), (size_t)width * size);
            continue;
        }
        for (int64_t at = 0; at < width; at += LR_RUN) {
            const int64_t n = lr_min64(LR_RUN, width - at);
            const float *a = lr_row_in(table, from + at, n, a_run), *old = lr_row_in(y, to + at, n, y_run);
            float *out = lr_row_out(y, to + at, y_run);
#pragma omp simd
            for (int64_t j = 0; j < n; j++)
                out[j] = a[j] + beta * old[j];
            lr_row_done(y, to + at, n, out);
        }
    }
}

static int check_ids(const char *op, const lr_tensor *ids, int64_t limit, const lr_tensor *of)
{
    const int32_t *id = ids->data;
    for (int64_t i = 0; i < ids->elements; i++)
        if (id[i] < 0 || id[i] >= limit)
            return lr_fail(LR_EINVAL, "%s: %s[%lld] is %d, but '%s' has rows 0 to %lld", op, ids->name, (long long)i,
                           id[i], of->name, (long long)limit - 1);
    return LR_OK;
}

int LR_CPU(embedding)(lr_exec *exec, lr_tensor *y, const lr_tensor *table, const lr_tensor *ids, double beta)
{
    LR_NEED_CPU_DTYPE("embedding", table);
    const int status = check_ids("embedding", ids, table->shape[0], table);
    if (status == LR_OK)
        take_rows(y, table, ids->data, (float)beta, exec);
    return status;
}

int LR_CPU(gather_rows)(lr_exec *exec, lr_tensor *y, const lr_tensor *x, const lr_tensor *rows)
{
    LR_NEED_CPU_DTYPE("gather_rows", x);
    const int status = check_ids("gather_rows", rows, x->shape[0], x);
    if (status == LR_OK)
        take_rows(y, x, rows->data, 0.0f, exec);
    return status;
}

int LR_CPU(scatter_rows)(lr_exec *exec, lr_tensor *x, const lr_tensor *y, const lr_tensor *rows)
{
    LR_NEED_CPU_DTYPE("scatter_rows", x);
    const int status = check_ids("scatter_rows", rows, x->shape[0], x);
    if (status != LR_OK)
        return status;
    const size_t bytes = (size_t)x->shape[1] * lr_dtype_size(x->dtype);
    const int32_t *row = rows->data;
#pragma omp parallel for num_threads(lr_threads_for(exec, x->elements)) schedule(static)
    for (int64_t i = 0; i < x->shape[0]; i++)
        memset(lr_at(x, i * x->shape[1]), 0, bytes);
    for (int64_t i = 0; i < rows->elements; i++)
        memcpy(lr_at(x, row[i] * x->shape[1]), lr_at(y, i * y->shape[1]), bytes);
    return LR_OK;
}

/* ---- cast: the only op with f16, which the CPU stores and does not compute in ----------------------------------- */
static const float *cast_in(const lr_tensor *x, int64_t at, int64_t n, float *buffer)
{
    if (x->dtype != LR_F16)
        return lr_row_in(x, at, n, buffer);
    const uint16_t *h = (const uint16_t *)x->data + at;
#pragma omp simd
    for (int64_t i = 0; i < n; i++)
        buffer[i] = lr_f16_to_f32(h[i]);
    return buffer;
}

static void cast_out(const lr_tensor *y, int64_t at, int64_t n, const float *x)
{
    uint16_t *h = (uint16_t *)y->data + at;
    if (y->dtype == LR_F32)
        memmove((float *)y->data + at, x, (size_t)n * sizeof(float));
    else if (y->dtype == LR_BF16) {
#pragma omp simd
        for (int64_t i = 0; i < n; i++)
            h[i] = lr_f32_to_bf16(x[i]); /* not lr_run_to_bf16, which may lose the smallest numbers */
    } else {
#pragma omp simd
        for (int64_t i = 0; i < n; i++)
            h[i] = lr_f32_to_f16(x[i]);
    }
}

int LR_CPU(cast)(lr_exec *exec, lr_tensor *y, const lr_tensor *x)
{
    const lr_runs runs = lr_runs_of(y, lr_tensor_contiguous(y) && lr_tensor_contiguous(x));
    const bool copy = y->dtype == x->dtype;
#pragma omp parallel for num_threads(lr_threads_for(exec, y->elements)) schedule(static)
    for (int64_t i = 0; i < runs.count; i++) {
        float buffer[LR_RUN];
        const int64_t n = lr_run_length(&runs, i), to = lr_run_at(&runs, y, i), from = lr_run_at(&runs, x, i);
        if (copy)
            memmove(lr_at(y, to), lr_at(x, from), (size_t)n * lr_dtype_size(y->dtype));
        else
            cast_out(y, to, n, cast_in(x, from, n, buffer));
    }
    return LR_OK;
}

/* ---- arithmetic ------------------------------------------------------------------------------------------------ */
int LR_CPU(add)(lr_exec *exec, lr_tensor *y, const lr_tensor *a, const lr_tensor *b, double alpha, double beta)
{
    LR_NEED_CPU_DTYPE("add", y);
    const lr_runs runs = lr_runs_of(y, lr_tensor_contiguous(y) && lr_tensor_contiguous(a) && lr_tensor_contiguous(b));
    const float alpha_f = (float)alpha, beta_f = (float)beta;
#pragma omp parallel for num_threads(lr_threads_for(exec, y->elements)) schedule(static)
    for (int64_t i = 0; i < runs.count; i++) {
        float a_run[LR_RUN], b_run[LR_RUN];
        const int64_t n = lr_run_length(&runs, i), to = lr_run_at(&runs, y, i);
        const float *p = lr_row_in(a, lr_run_at(&runs, a, i), n, a_run),
                    *q = lr_row_in(b, lr_run_at(&runs, b, i), n, b_run);
        float *out = lr_row_out(y, to, a_run);
#pragma omp simd
        for (int64_t j = 0; j < n; j++)
            out[j] = alpha_f * p[j] + beta_f * q[j];
        lr_row_done(y, to, n, out);
    }
    return LR_OK;
}

int LR_CPU(mul)(lr_exec *exec, lr_tensor *y, const lr_tensor *a, const lr_tensor *b)
{
    LR_NEED_CPU_DTYPE("mul", y);
    const lr_runs runs = lr_runs_of(y, true);
#pragma omp parallel for num_threads(lr_threads_for(exec, y->elements)) schedule(static)
    for (int64_t i = 0; i < runs.count; i++) {
        float a_run[LR_RUN], b_run[LR_RUN];
        const int64_t n = lr_run_length(&runs, i), at = i * LR_RUN;
        const float *p = lr_row_in(a, at, n, a_run), *q = lr_row_in(b, at, n, b_run);
        float *out = lr_row_out(y, at, a_run);
#pragma omp simd
        for (int64_t j = 0; j < n; j++)
            out[j] = p[j] * q[j];
        lr_row_done(y, at, n, out);
    }
    return LR_OK;
}
