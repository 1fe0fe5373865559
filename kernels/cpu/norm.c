/* norm.c: RMSNorm and LayerNorm with the residual sum fused in, and their backward with the residual's gradient fused
 * in.
 *
 * One row is one thread's work and stays in its cache between the passes over it. Variance is taken about the mean, in
 * a second pass: E[x^2] - E[x]^2 would lose everything where the mean is large. Weights are frozen: they get no
 * gradient. */
#include "cpu/vec.h"
#include <omp.h>

/* Row buffers: per thread FORWARD_ROWS or BACKWARD_ROWS rows of H floats, in scratch. */
enum { FORWARD_ROWS = 2, BACKWARD_ROWS = 3 };
typedef struct lr_rows {
    float *base;
    int64_t stride;
} lr_rows;

static int64_t row_stride(int64_t width)
{
    return (width + 31) / 16 * 16;
}

static int64_t rows_bytes(const lr_exec *exec, int count, const lr_tensor *x)
{
    return (int64_t)sizeof(float) * exec->threads * count * row_stride(x->shape[1]);
}

static inline float *row_buffer(const lr_rows *rows, int thread, int count, int i)
{
    return rows->base + (thread * count + i) * rows->stride;
}

static inline float sum_of(const float *x, int64_t n)
{
    float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
    for (int64_t j = 0; j < n; j++)
        sum += x[j];
    return sum;
}

static inline float squares_about(const float *x, float centre, int64_t n)
{
    float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
    for (int64_t j = 0; j < n; j++)
        sum += (x[j] - centre) * (x[j] - centre);
    return sum;
}

/* The residual sum of one row, as f32 and rounded to what s stores, so that backward sees what forward normalised. */
static const float *residual_row(const lr_tensor *x, const lr_tensor *r, lr_tensor *s, int64_t at, int64_t n,
                                 float *x_row, float *r_row)
{
    const float *p = lr_row_in(x, at, n, x_row);
    if (r == NULL)
        return p;
    const float *q = lr_row_in(r, at, n, r_row);
    float *sum = s != NULL ? lr_row_out(s, at, x_row) : x_row;
#pragma omp simd
    for (int64_t j = 0; j < n; j++)
        sum[j] = p[j] + q[j];
    if (s == NULL || s->dtype == LR_F32)
        return sum;
    lr_row_done(s, at, n, sum);
    return lr_row_in(s, at, n, x_row);
}

/* y[j] = (s[j] - mean) rstd w[j] + b[j], b may be NULL */
static inline void scale_row(float *y, const float *s, float mean, float rstd, const float *w, const float *b,
                             int64_t n)
{
    if (b == NULL) {
#pragma omp simd
        for (int64_t j = 0; j < n; j++)
            y[j] = (s[j] - mean) * rstd * w[j];
    } else {
#pragma omp simd
        for (int64_t j = 0; j < n; j++)
            y[j] = (s[j] - mean) * rstd * w[j] + b[j];
    }
}

/* Both norms: mean NULL is RMSNorm. */
static int norm_forward(const lr_exec *exec, lr_tensor *y, lr_tensor *s, lr_tensor *mean, lr_tensor *rstd,
                        const lr_tensor *x, const lr_tensor *r, const lr_tensor *w, const lr_tensor *b, float eps)
{
    const int64_t tokens = x->shape[0], width = x->shape[1];
    const lr_rows rows = {exec->scratch, row_stride(width)};
    const float *weight = w->data, *bias = b != NULL ? b->data : NULL;
    float *means = mean != NULL ? mean->data : NULL, *rstds = rstd->data;
#pragma omp parallel for num_threads(lr_threads_for(exec, x->elements)) schedule(static)
    for (int64_t t = 0; t < tokens; t++) {
        const int thread = omp_get_thread_num();
        float *row = row_buffer(&rows, thread, FORWARD_ROWS, 0), *other = row_buffer(&rows, thread, FORWARD_ROWS, 1);
        const int64_t at = t * width;
        const float *v = residual_row(x, r, s, at, width, row, other);
        const float centre = means != NULL ? sum_of(v, width) / (float)width : 0.0f;
        const float inverse = 1.0f / sqrtf(squares_about(v, centre, width) / (float)width + eps);
        float *out = lr_row_out(y, t * y->ld, other);
        scale_row(out, v, centre, inverse, weight, bias, width);
        lr_row_done(y, t * y->ld, width, out);
        if (means != NULL)
            means[t] = centre;
        rstds[t] = inverse;
    }
    return LR_OK;
}

/* With n = (s - mean) rstd and g = dy w:  dx = rstd (g - mean(g) - n mean(g n)) + ds;  RMSNorm lacks the term mean(g).
 */
static int norm_backward(const lr_exec *exec, lr_tensor *dx, const lr_tensor *dy, const lr_tensor *s,
                         const lr_tensor *w, const lr_tensor *mean, const lr_tensor *rstd, const lr_tensor *ds)
{
    const int64_t tokens = s->shape[0], width = s->shape[1];
    const lr_rows rows = {exec->scratch, row_stride(width)};
    const float *weight = w->data, *means = mean != NULL ? mean->data : NULL, *rstds = rstd->data;
#pragma omp parallel for num_threads(lr_threads_for(exec, s->elements)) schedule(static)
    for (int64_t t = 0; t < tokens; t++) {
        const int thread = omp_get_thread_num();
        float *dy_row = row_buffer(&rows, thread, BACKWARD_ROWS, 0),
              *s_row = row_buffer(&rows, thread, BACKWARD_ROWS, 1);
        float *ds_row = row_buffer(&rows, thread, BACKWARD_ROWS, 2);
        const int64_t at = t * width;
        const float centre = means != NULL ? means[t] : 0.0f, inverse = rstds[t];
        const float *g = lr_row_in(dy, t * dy->ld, width, dy_row), *v = lr_row_in(s, at, width, s_row);
        float g_sum = 0.0f, gn_sum = 0.0f;
#pragma omp simd reduction(+ : g_sum, gn_sum)
        for (int64_t j = 0; j < width; j++) {
            const float gw = g[j] * weight[j];
            g_sum += gw;
            gn_sum += gw * (v[j] - centre);
        }
        const float g_mean = means != NULL ? g_sum / (float)width : 0.0f;
        const float gn_mean = gn_sum * inverse * inverse / (float)width;
        float *out = lr_row_out(dx, at, dy_row);
        if (ds != NULL) {
            const float *residual = lr_row_in(ds, at, width, ds_row);
#pragma omp simd
            for (int64_t j = 0; j < width; j++)
                out[j] = inverse * (g[j] * weight[j] - g_mean - (v[j] - centre) * gn_mean) + residual[j];
        } else {
#pragma omp simd
            for (int64_t j = 0; j < width; j++)
                out[j] = inverse * (g[j] * weight[j] - g_mean - (v[j] - centre) * gn_mean);
        }
        lr_row_done(dx, at, width, out);
    }
    return LR_OK;
}

int64_t LR_CPU(rms_norm_scratch)(const lr_exec *exec, const lr_rms_norm_call *call)
{
    return rows_bytes(exec, FORWARD_ROWS, call->x);
}

int LR_CPU(rms_norm)(lr_exec *exec, lr_tensor *y, lr_tensor *s, lr_tensor *rstd, const lr_tensor *x, const lr_tensor *r,
                     const lr_tensor *w, double eps)
{
    LR_NEED_CPU_DTYPE("rms_norm", x);
    return norm_forward(exec, y, s, NULL, rstd, x, r, w, NULL, (float)eps);
}

int64_t LR_CPU(rms_norm_backward_scratch)(const lr_exec *exec, const lr_rms_norm_backward_call *call)
{
    return rows_bytes(exec, BACKWARD_ROWS, call->s);
}

int LR_CPU(rms_norm_backward)(lr_exec *exec, lr_tensor *dx, const lr_tensor *dy, const lr_tensor *s, const lr_tensor *w,
                              const lr_tensor *rstd, const lr_tensor *ds)
{
    LR_NEED_CPU_DTYPE("rms_norm_backward", s);
    return norm_backward(exec, dx, dy, s, w, NULL, rstd, ds);
}

int64_t LR_CPU(layer_norm_scratch)(const lr_exec *exec, const lr_layer_norm_call *call)
{
    return rows_bytes(exec, FORWARD_ROWS, call->x);
}

int LR_CPU(layer_norm)(lr_exec *exec, lr_tensor *y, lr_tensor *s, lr_tensor *mean, lr_tensor *rstd, const lr_tensor *x,
                       const lr_tensor *r, const lr_tensor *w, const lr_tensor *b, double eps)
{
    LR_NEED_CPU_DTYPE("layer_norm", x);
    return norm_forward(exec, y, s, mean, rstd, x, r, w, b, (float)eps);
}

int64_t LR_CPU(layer_norm_backward_scratch)(const lr_exec *exec, const lr_layer_norm_backward_call *call)
{
    return rows_bytes(exec, BACKWARD_ROWS, call->s);
}

int LR_CPU(layer_norm_backward)(lr_exec *exec, lr_tensor *dx, const lr_tensor *dy, const lr_tensor *s,
                                const lr_tensor *w, const lr_tensor *mean, const lr_tensor *rstd, const lr_tensor *ds)
{
    LR_NEED_CPU_DTYPE("layer_norm_backward", s);
    return norm_backward(exec, dx, dy, s, w, mean, rstd, ds);
}
