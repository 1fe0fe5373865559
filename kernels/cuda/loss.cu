/* loss.cu: losses over f32. Means are summed in double, in a fixed order, by one block: there is one number for each pair.
 *
 * Bytes: mse 8 an element, its backward 12; cross_entropy reads the scores twice (the second time out of the cache), its backward
 * moves 8 an element. */
#include "cuda/vec.h"

namespace
{

enum { LOSS_THREADS = 256 };

__global__ void __launch_bounds__(LOSS_THREADS) mse_kernel(float *loss, const float *x, const float *y, int64_t n)
{
    SIMT_SHARED(double, part, MAX_WARPS);
    double sum = 0.0;
    for (int64_t i = threadIdx.x; i < n; i += LOSS_THREADS) {
        const double difference = static_cast<double>(x[i]) - y[i];
        sum += difference * difference;
    }
    sum = block_sum(sum, part);
    if (threadIdx.x == 0)
        *loss = static_cast<float>(sum / static_cast<double>(n));
}

struct mse_backward_body {
    float *dx;
    const float *dloss, *x, *y;
    int64_t count;
    template <bool ALIGNED> __device__ void run(int64_t, int64_t column, int n) const
    {
        float p[EIGHT], q[EIGHT];
        const float factor = 2.0f * *dloss / static_cast<float>(count);
        load8<ALIGNED>(p, x + column, n);
        load8<ALIGNED>(q, y + column, n);
        for (int i = 0; i < EIGHT; i++)
            p[i] = factor * (p[i] - q[i]);
        store8<ALIGNED>(dx + column, p, n);
    }
};

/* lse[row] = log of the sum of e^score, by one block. */
__global__ void __launch_bounds__(LOSS_THREADS) row_lse_kernel(float *lse, const float *scores, int64_t width)
{
    SIMT_SHARED(float, part, MAX_WARPS);
    const float *const row = scores + blockIdx.x * width;
    float highest = -INFINITY, sum = 0.0f;
    for (int64_t i = threadIdx.x; i < width; i += LOSS_THREADS)
        highest = fmaxf(highest, row[i]);
    highest = block_max(highest, part);
    for (int64_t i = threadIdx.x; i < width; i += LOSS_THREADS)
        sum += expf(row[i] - highest);
    sum = block_sum(sum, part);
    if (threadIdx.x == 0)
        lse[blockIdx.x] = highest + logf(sum);
}

__global__ void __launch_bounds__(LOSS_THREADS)
    cross_entropy_kernel(float *loss, const float *lse, const float *scores, const int32_t *labels, int64_t rows,
                         int64_t width, lr_fault *fault)
{
    SIMT_SHARED(double, part, MAX_WARPS);
    double sum = 0.0;
    for (int64_t i = threadIdx.x; i < rows; i += LOSS_THREADS)
        if (in_range(fault, LR_FAULT_CROSS_ENTROPY, i, labels[i], 0, width - 1))
            sum += static_cast<double>(lse[i]) - scores[i * width + labels[i]];
    sum = block_sum(sum, part);
    if (threadIdx.x == 0)
        *loss = static_cast<float>(sum / static_cast<double>(rows));
}

struct cross_entropy_backward_body {
    float *dscores;
    const float *dloss, *scores, *lse;
    const int32_t *labels;
    int64_t rows, width;
    lr_fault *fault;
    template <bool ALIGNED> __device__ void run(int64_t row, int64_t column, int n) const
    {
        const int label = labels[row];
        if (!in_range(fault, LR_FAULT_CROSS_ENTROPY_BACKWARD, row, label, 0, width - 1))
            return;
        float v[EIGHT];
        const float factor = *dloss / static_cast<float>(rows), base = lse[row];
        load8<ALIGNED>(v, scores + row * width + column, n);
        for (int i = 0; i < EIGHT; i++)
            v[i] = factor * (expf(v[i] - base) - (column + i == label ? 1.0f : 0.0f));
        store8<ALIGNED>(dscores + row * width + column, v, n);
    }
};

} // namespace

int lr_cuda_mse(lr_exec *exec, lr_tensor *loss, const lr_tensor *x, const lr_tensor *y)
{
    return simt_launch("mse", mse_kernel, dim3(1), dim3(LOSS_THREADS), 0, stream_of(exec), data_of<float>(loss),
                       data_of<float>(x), data_of<float>(y), x->shape[0]);
}

int lr_cuda_mse_backward(lr_exec *exec, lr_tensor *dx, const lr_tensor *dloss, const lr_tensor *x, const lr_tensor *y)
{
    const mse_backward_body body = {data_of<float>(dx), data_of<float>(dloss), data_of<float>(x), data_of<float>(y),
                                    x->shape[0]};
    return for_each_8(exec, "mse_backward", body, 1, x->shape[0], aligned(1, dx, x, y));
}

int lr_cuda_cross_entropy(lr_exec *exec, lr_tensor *loss, lr_tensor *lse, const lr_tensor *scores,
                          const lr_tensor *labels)
{
    const int64_t rows = scores->shape[0], width = scores->shape[1];
    const int status =
        simt_launch("cross_entropy", row_lse_kernel, dim3(static_cast<unsigned>(rows)), dim3(LOSS_THREADS), 0,
                    stream_of(exec), data_of<float>(lse), data_of<float>(scores), width);
    if (status != LR_OK)
        return status;
    return simt_launch("cross_entropy", cross_entropy_kernel, dim3(1), dim3(LOSS_THREADS), 0, stream_of(exec),
                       data_of<float>(loss), data_of<float>(lse), data_of<float>(scores), data_of<int32_t>(labels),
                       rows, width, exec->fault);
}

int lr_cuda_cross_entropy_backward(lr_exec *exec, lr_tensor *dscores, const lr_tensor *dloss, const lr_tensor *scores,
                                   const lr_tensor *lse, const lr_tensor *labels)
{
    const cross_entropy_backward_body body = {
        data_of<float>(dscores),  data_of<float>(dloss), data_of<float>(scores), data_of<float>(lse),
        data_of<int32_t>(labels), scores->shape[0],      scores->shape[1],       exec->fault};
    return for_each_8(exec, "cross_entropy_backward", body, scores->shape[0], scores->shape[1],
                      aligned(2, dscores, scores));
}
