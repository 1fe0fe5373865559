/* optim.cu: the gradient's norm, AdamW, and the scale of the loss, over one flat vector of all parameters. Factor and scale stay on
 * the device, so a step never waits for the host.
 *
 * Bytes an element: clip_factor 4, adamw 28 (p, m, v read and written, g read), loss_scale none. Partial sums are double and belong
 * to fixed chunks. */
#include "cuda/vec.h"

namespace
{

enum { NORM_THREADS = 256 };
constexpr int64_t NORM_CHUNK = LR_CUDA_NORM_CHUNK;

__global__ void __launch_bounds__(NORM_THREADS) square_sums(double *partial, const float *g, int64_t n)
{
    SIMT_SHARED(double, part, MAX_WARPS);
    const int64_t begin = static_cast<int64_t>(blockIdx.x) * NORM_CHUNK, end = min(begin + NORM_CHUNK, n);
    double sum = 0.0;
    for (int64_t i = begin + threadIdx.x; i < end; i += NORM_THREADS)
        sum += static_cast<double>(g[i]) * g[i];
    sum = block_sum(sum, part);
    if (threadIdx.x == 0)
        partial[blockIdx.x] = sum;
}

/* norm = |g| / scale; factor = min(1, max_norm / norm) / scale, or 0 where the norm is not finite. */
__global__ void __launch_bounds__(NORM_THREADS)
    clip_kernel(float *factor, float *norm, const double *partial, int64_t chunks, const float *scale, double max_norm)
{
    SIMT_SHARED(double, part, MAX_WARPS);
    double sum = 0.0;
    for (int64_t i = threadIdx.x; i < chunks; i += NORM_THREADS)
        sum += partial[i];
    sum = block_sum(sum, part);
    if (threadIdx.x != 0)
        return;
    const double unscale = scale != nullptr ? 1.0 / *scale : 1.0;
    const double length = unscale * sqrt(sum);
    const double clip = max_norm > 0.0 ? fmin(1.0, max_norm / (length + 1e-6)) : 1.0;
    *norm = static_cast<float>(length);
    *factor = length - length == 0.0 ? static_cast<float>(unscale * clip) : 0.0f; /* inf - inf is NaN */
}

__global__ void loss_scale_kernel(float *scale, float *clean, const float *norm, float growth, float backoff,
                                  float interval)
{
    const float grown = *scale * growth;
    if (*norm - *norm != 0.0f) { /* inf or NaN */
        *scale *= backoff;
        *clean = 0.0f;
    } else if (*clean + 1.0f < interval) {
        *clean += 1.0f;
    } else {
        *scale = grown - grown == 0.0f ? grown : *scale;
        *clean = 0.0f;
    }
}

struct adamw_body {
    float *p, *m, *v;
    const float *g, *factor;
    lr_adamw_numbers k;
    template <bool ALIGNED> __device__ void run(int64_t, int64_t column, int n) const
    {
        const float gradient_factor = *factor;
        if (gradient_factor == 0.0f) /* the gradient overflowed: this step does not happen */
            return;
        float weight[EIGHT], first[EIGHT], second[EIGHT], x[EIGHT];
        load8<ALIGNED>(weight, p + column, n);
        load8<ALIGNED>(first, m + column, n);
        load8<ALIGNED>(second, v + column, n);
        load8<ALIGNED>(x, g + column, n);
        for (int i = 0; i < EIGHT; i++) {
            x[i] *= gradient_factor;
            first[i] = k.b1 * first[i] + k.rest1 * x[i];
            second[i] = k.b2 * second[i] + k.rest2 * x[i] * x[i];
            weight[i] = k.keep * weight[i] - k.rate * first[i] / (sqrtf(second[i]) * k.correction + k.small);
        }
        store8<ALIGNED>(m + column, first, n);
        store8<ALIGNED>(v + column, second, n);
        store8<ALIGNED>(p + column, weight, n);
    }
};

} // namespace

int lr_cuda_clip_factor(lr_exec *exec, lr_tensor *factor, lr_tensor *norm, const lr_tensor *g, const lr_tensor *scale,
                        double max_norm)
{
    const int64_t n = g->shape[0];
    const unsigned chunks = blocks_for(n, NORM_CHUNK);
    double *partial = static_cast<double *>(exec->scratch);
    const int status = simt_launch("clip_factor", square_sums, dim3(chunks), dim3(NORM_THREADS), 0, stream_of(exec),
                                   partial, data_of<float>(g), n);
    if (status != LR_OK)
        return status;
    return simt_launch("clip_factor", clip_kernel, dim3(1), dim3(NORM_THREADS), 0, stream_of(exec),
                       data_of<float>(factor), data_of<float>(norm), partial, static_cast<int64_t>(chunks),
                       scale != nullptr ? data_of<const float>(scale) : nullptr, max_norm);
}

int lr_cuda_loss_scale(lr_exec *exec, lr_tensor *scale, lr_tensor *clean, const lr_tensor *norm, double growth,
                       double backoff, int64_t interval)
{
    const int status = lr_check_loss_scale(growth, backoff, interval);
    if (status != LR_OK)
        return status;
    return simt_launch("loss_scale", loss_scale_kernel, dim3(1), dim3(1), 0, stream_of(exec), data_of<float>(scale),
                       data_of<float>(clean), data_of<const float>(norm), static_cast<float>(growth),
                       static_cast<float>(backoff), static_cast<float>(interval));
}

int lr_cuda_adamw(lr_exec *exec, lr_tensor *p, lr_tensor *m, lr_tensor *v, const lr_tensor *g, const lr_tensor *factor,
                  double lr, double beta1, double beta2, double eps, double weight_decay, int64_t step)
{
    lr_adamw_numbers numbers = {};
    const int status = lr_check_adamw(&numbers, lr, beta1, beta2, eps, weight_decay, step);
    if (status != LR_OK)
        return status;
    const adamw_body body = {data_of<float>(p), data_of<float>(m),      data_of<float>(v),
                             data_of<float>(g), data_of<float>(factor), numbers};
    return for_each_8(exec, "adamw", body, 1, p->shape[0], aligned(1, p, m, v, g));
}
