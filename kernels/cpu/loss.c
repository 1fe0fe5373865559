/* loss.c: losses over f32, their means summed in double. */
#include "cpu/vec.h"

int LR_CPU(mse)(lr_exec *exec, lr_tensor *loss, const lr_tensor *x, const lr_tensor *y)
{
    (void)exec; /* a number a pair: too little to share out */
    const float *p = x->data, *q = y->data;
    const int64_t n = x->shape[0];
    double sum = 0.0;
    for (int64_t i = 0; i < n; i++)
        sum += ((double)p[i] - q[i]) * ((double)p[i] - q[i]);
    *(float *)loss->data = (float)(sum / (double)n);
    return LR_OK;
}

int LR_CPU(mse_backward)(lr_exec *exec, lr_tensor *dx, const lr_tensor *dloss, const lr_tensor *x, const lr_tensor *y)
{
    (void)exec;
    const float *p = x->data, *q = y->data;
    float *out = dx->data;
    const int64_t n = x->shape[0];
    const float factor = 2.0f * *(const float *)dloss->data / (float)n;
#pragma omp simd
    for (int64_t i = 0; i < n; i++)
        out[i] = factor * (p[i] - q[i]);
    return LR_OK;
}

static int check_labels(const char *op, const lr_tensor *labels, int64_t classes)
{
    const int32_t *label = labels->data;
    for (int64_t i = 0; i < labels->shape[0]; i++)
        if (label[i] < 0 || label[i] >= classes)
            return lr_fail(LR_EINVAL, "%s: %s[%lld] is %d, but scores has columns 0 to %lld", op, labels->name,
                           (long long)i, label[i], (long long)classes - 1);
    return LR_OK;
}

int LR_CPU(cross_entropy)(lr_exec *exec, lr_tensor *loss, lr_tensor *lse, const lr_tensor *scores,
                          const lr_tensor *labels)
{
    const int64_t rows = scores->shape[0], width = scores->shape[1];
    const int status = check_labels("cross_entropy", labels, width);
    if (status != LR_OK)
        return status;
    const float *score = scores->data;
    const int32_t *label = labels->data;
    float *lses = lse->data;
#pragma omp parallel for num_threads(lr_threads_for(exec, 4 * scores->elements)) schedule(static)
    for (int64_t i = 0; i < rows; i++) {
        const float *row = score + i * width;
        float highest = row[0], sum = 0.0f;
#pragma omp simd reduction(max : highest)
        for (int64_t j = 0; j < width; j++)
            highest = row[j] > highest ? row[j] : highest;
#pragma omp simd reduction(+ : sum)
        for (int64_t j = 0; j < width; j++)
            sum += lr_exp(row[j] - highest);
        lses[i] = highest + logf(sum);
    }
    double total = 0.0;
    for (int64_t i = 0; i < rows; i++)
        total += (double)lses[i] - score[i * width + label[i]];
    *(float *)loss->data = (float)(total / (double)rows);
    return LR_OK;
}

int LR_CPU(cross_entropy_backward)(lr_exec *exec, lr_tensor *dscores, const lr_tensor *dloss, const lr_tensor *scores,
                                   const lr_tensor *lse, const lr_tensor *labels)
{
    const int64_t rows = scores->shape[0], width = scores->shape[1];
    const int status = check_labels("cross_entropy_backward", labels, width);
    if (status != LR_OK)
        return status;
    const float *score = scores->data, *lses = lse->data, factor = *(const float *)dloss->data / (float)rows;
    const int32_t *label = labels->data;
    float *out = dscores->data;
#pragma omp parallel for num_threads(lr_threads_for(exec, 4 * scores->elements)) schedule(static)
    for (int64_t i = 0; i < rows; i++) {
        const float *row = score + i * width, base = lses[i];
        float *to = out + i * width;
#pragma omp simd
        for (int64_t j = 0; j < width; j++)
            to[j] = factor * lr_exp(row[j] - base);
        to[label[i]] -= factor;
    }
    return LR_OK;
}
