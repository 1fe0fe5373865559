/* optim.c: the gradient's norm, AdamW, and the scale of the loss, over one flat vector of all parameters. */
#include "check.h"
#include "cpu/vec.h"

enum { NORM_CHUNK = 16384 };

/* Partial sums belong to fixed chunks, not to threads: the norm does not depend on the number of threads. */
static int64_t norm_chunks(const lr_tensor *g)
{
    return (g->shape[0] + NORM_CHUNK - 1) / NORM_CHUNK;
}

int64_t LR_CPU(clip_factor_scratch)(const lr_exec *exec, const lr_clip_factor_call *call)
{
    (void)exec;
    return norm_chunks(call->g) * (int64_t)sizeof(double);
}

int LR_CPU(clip_factor)(lr_exec *exec, lr_tensor *factor, lr_tensor *norm, const lr_tensor *g, const lr_tensor *scale,
                        double max_norm)
{
    const int64_t n = g->shape[0], chunks = norm_chunks(g);
    double *partial = exec->scratch;
    const float *x = g->data;
#pragma omp parallel for num_threads(lr_threads_for(exec, n)) schedule(static)
    for (int64_t c = 0; c < chunks; c++) {
        const int64_t end = lr_min64(n, (c + 1) * NORM_CHUNK);
        double sum = 0.0;
#pragma omp simd reduction(+ : sum)
        for (int64_t i = c * NORM_CHUNK; i < end; i++)
            sum += (double)x[i] * x[i];
        partial[c] = sum;
    }
    double total = 0.0;
    for (int64_t c = 0; c < chunks; c++)
        total += partial[c];
    const double unscale = scale != NULL ? 1.0 / *(const float *)scale->data : 1.0;
    const double length = unscale * sqrt(total);
    const double clip = max_norm > 0.0 ? fmin(1.0, max_norm / (length + 1e-6)) : 1.0;
    *(float *)norm->data = (float)length;
    *(float *)factor->data = isfinite(length) ? (float)(unscale * clip) : 0.0f;
    return LR_OK;
}

int LR_CPU(loss_scale)(lr_exec *exec, lr_tensor *scale, lr_tensor *clean, const lr_tensor *norm, double growth,
                       double backoff, int64_t interval)
{
    (void)exec;
    const int status = lr_check_loss_scale(growth, backoff, interval);
    if (status != LR_OK)
        return status;
    float *factor = scale->data, *steps = clean->data;
    if (!isfinite(*(const float *)norm->data)) {
        *factor *= (float)backoff;
        *steps = 0.0f;
    } else if (*steps + 1.0f < (float)interval) {
        *steps += 1.0f;
    } else {
        const float grown = *factor * (float)growth;
        *factor = isfinite(grown) ? grown : *factor;
        *steps = 0.0f;
    }
    return LR_OK;
}

int LR_CPU(adamw)(lr_exec *exec, lr_tensor *p, lr_tensor *m, lr_tensor *v, const lr_tensor *g, const lr_tensor *factor,
                  double lr, double beta1, double beta2, double eps, double weight_decay, int64_t step)
{
    const float gradient_factor = *(const float *)factor->data;
    lr_adamw_numbers k = {0};
    const int status = lr_check_adamw(&k, lr, beta1, beta2, eps, weight_decay, step);
    if (status != LR_OK)
        return status;
    if (gradient_factor == 0.0f) /* the gradient overflowed: this step does not happen */
        return LR_OK;
    float *weight = p->data, *first = m->data, *second = v->data;
    const float *gradient = g->data;
    const int64_t n = p->shape[0];
#pragma omp parallel for simd num_threads(lr_threads_for(exec, 4 * n)) schedule(static) firstprivate(k)
    for (int64_t i = 0; i < n; i++) {
        const float x = gradient[i] * gradient_factor;
        const float m1 = k.b1 * first[i] + k.rest1 * x, v1 = k.b2 * second[i] + k.rest2 * x * x;
        first[i] = m1;
        second[i] = v1;
        weight[i] = k.keep * weight[i] - k.rate * m1 / (sqrtf(v1) * k.correction + k.small);
    }
    return LR_OK;
}
