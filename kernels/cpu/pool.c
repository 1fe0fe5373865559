/* pool.c: one vector a sequence, and what loss functions do with such vectors. Everything here is f32 but pool's input:
 * the work is small and its precision is the loss's. */
#include "check.h"
#include "cpu/vec.h"

static int check_pool(const char *op, const lr_tensor *cu, int64_t tokens, int64_t mode)
{
    const int status = lr_check_pool_mode(op, mode);
    return status == LR_OK ? lr_check_cu(op, cu, tokens, INT32_MAX) : status;
}

/* The weight of a sequence's token i of n. */
static inline float pool_weight(int64_t mode, int64_t i, int64_t n)
{
    switch (mode) {
    case LR_POOL_CLS:
        return i == 0 ? 1.0f : 0.0f;
    case LR_POOL_MEAN:
        return 1.0f / (float)n;
    case LR_POOL_LAST:
        return i == n - 1 ? 1.0f : 0.0f;
    case LR_POOL_MEAN_SQRT:
        return 1.0f / sqrtf((float)n);
    default: /* weights 1..n over their sum */
        return (float)(2.0 * (double)(i + 1) / ((double)n * (double)(n + 1)));
    }
}

int LR_CPU(pool)(lr_exec *exec, lr_tensor *y, const lr_tensor *x, const lr_tensor *cu, int64_t mode)
{
    LR_NEED_CPU_DTYPE("pool", x);
    const int status = check_pool("pool", cu, x->shape[0], mode);
    if (status != LR_OK)
        return status;
    const int64_t width = x->shape[1];
    const int32_t *start = cu->data;
    float *out = y->data;
#pragma omp parallel for num_threads(lr_threads_for(exec, x->elements)) schedule(dynamic)
    for (int64_t b = 0; b < y->shape[0]; b++) {
        const int64_t n = start[b + 1] - start[b];
        const int64_t first = mode == LR_POOL_LAST ? n - 1 : 0, last = mode == LR_POOL_CLS ? 0 : n - 1;
        for (int64_t column = 0; column < width; column += LR_RUN) {
            const int64_t run = lr_min64(LR_RUN, width - column);
            float buffer[LR_RUN], *sum = out + b * width + column;
            memset(sum, 0, (size_t)run * sizeof *sum);
            for (int64_t i = first; i <= last; i++) {
                const float weight = pool_weight(mode, i, n);
                const float *row = lr_row_in(x, (start[b] + i) * x->ld + column, run, buffer);
#pragma omp simd
                for (int64_t j = 0; j < run; j++)
                    sum[j] += weight * row[j];
            }
        }
    }
    return LR_OK;
}

int LR_CPU(pool_backward)(lr_exec *exec, lr_tensor *dx, const lr_tensor *dy, const lr_tensor *cu, int64_t mode)
{
    LR_NEED_CPU_DTYPE("pool_backward", dx);
    const int status = check_pool("pool_backward", cu, dx->shape[0], mode);
    if (status != LR_OK)
        return status;
    const int64_t width = dx->shape[1];
    const int32_t *start = cu->data;
    const float *g = dy->data;
#pragma omp parallel for num_threads(lr_threads_for(exec, dx->elements)) schedule(dynamic)
    for (int64_t b = 0; b < dy->shape[0]; b++) {
        const int64_t n = start[b + 1] - start[b];
        for (int64_t i = 0; i < n; i++) {
            const float weight = pool_weight(mode, i, n);
            for (int64_t column = 0; column < width; column += LR_RUN) {
                const int64_t run = lr_min64(LR_RUN, width - column), at = (start[b] + i) * width + column;
                float buffer[LR_RUN], *out = lr_row_out(dx, at, buffer);
                const float *in = g + b * width + column;
#pragma omp simd
                for (int64_t j = 0; j < run; j++)
                    out[j] = weight * in[j];
                lr_row_done(dx, at, run, out);
            }
        }
    }
    return LR_OK;
}

/* ---- rows of embeddings ---------------------------------------------------------------------------------------- */
static inline float dot(const float *a, const float *b, int64_t n)
{
    float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
    for (int64_t j = 0; j < n; j++)
        sum += a[j] * b[j];
    return sum;
}

int LR_CPU(l2_normalize)(lr_exec *exec, lr_tensor *y, lr_tensor *norm, const lr_tensor *x, double eps)
{
    const int64_t rows = x->shape[0], width = x->shape[1];
    const float *in = x->data;
    float *out = y->data, *norms = norm->data;
#pragma omp parallel for num_threads(lr_threads_for(exec, x->elements)) schedule(static)
    for (int64_t i = 0; i < rows; i++) {
        const float *row = in + i * width;
        norms[i] = sqrtf(dot(row, row, width));
        const float inverse = 1.0f / fmaxf(norms[i], (float)eps);
        float *to = out + i * width;
#pragma omp simd
        for (int64_t j = 0; j < width; j++)
            to[j] = row[j] * inverse;
    }
    return LR_OK;
}

/* dx = (dy - y (y . dy)) / |x|; where |x| <= eps the divisor was the constant eps, so dx = dy / eps. */
int LR_CPU(l2_normalize_backward)(lr_exec *exec, lr_tensor *dx, const lr_tensor *dy, const lr_tensor *y,
                                  const lr_tensor *norm, double eps)
{
    const int64_t rows = y->shape[0], width = y->shape[1];
    const float *g = dy->data, *unit = y->data, *norms = norm->data;
    float *out = dx->data;
#pragma omp parallel for num_threads(lr_threads_for(exec, y->elements)) schedule(static)
    for (int64_t i = 0; i < rows; i++) {
        const float *g_row = g + i * width, *y_row = unit + i * width;
        const bool small = norms[i] <= (float)eps;
        const float along = small ? 0.0f : dot(g_row, y_row, width), inverse = 1.0f / (small ? (float)eps : norms[i]);
        float *to = out + i * width;
#pragma omp simd
        for (int64_t j = 0; j < width; j++)
            to[j] = (g_row[j] - y_row[j] * along) * inverse;
    }
    return LR_OK;
}

int LR_CPU(row_dot)(lr_exec *exec, lr_tensor *y, const lr_tensor *a, const lr_tensor *b)
{
    const int64_t rows = a->shape[0], width = a->shape[1];
    const float *p = a->data, *q = b->data;
    float *out = y->data;
#pragma omp parallel for num_threads(lr_threads_for(exec, a->elements)) schedule(static)
    for (int64_t i = 0; i < rows; i++)
        out[i] = dot(p + i * width, q + i * width, width);
    return LR_OK;
}

int LR_CPU(row_scale)(lr_exec *exec, lr_tensor *y, const lr_tensor *x, const lr_tensor *s, double beta)
{
    const int64_t rows = x->shape[0], width = x->shape[1];
    const float *in = x->data, *scale = s->data, beta_f = (float)beta;
    float *out = y->data;
#pragma omp parallel for num_threads(lr_threads_for(exec, x->elements)) schedule(static)
    for (int64_t i = 0; i < rows; i++) {
        const float *row = in + i * width, factor = scale[i];
        float *to = out + i * width;
        if (beta_f == 0.0f) {
#pragma omp simd
            for (int64_t j = 0; j < width; j++)
                to[j] = factor * row[j];
        } else {
#pragma omp simd
            for (int64_t j = 0; j < width; j++)
                to[j] = factor * row[j] + beta_f * to[j];
        }
    }
    return LR_OK;
}
