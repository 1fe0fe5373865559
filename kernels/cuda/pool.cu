/* pool.cu: one vector for each sequence, and what loss functions do with such vectors.
 *
 * Bytes: pool reads the pooled tokens' rows once, pool_backward writes every row once. The rest is f32 and small: a row of an
 * embedding is one block's work, l2_normalize 8 bytes an element, its backward 12, row_dot 8, row_scale 8 (12 with beta). */
#include "cuda/vec.h"

namespace
{

enum { POOL_THREADS = 64, ROW_THREADS = 128 };

/* The weight of a sequence's token i of n. */
__device__ __forceinline__ float pool_weight(int mode, int64_t i, int64_t n)
{
    switch (mode) {
    case LR_POOL_CLS:
        return i == 0 ? 1.0f : 0.0f;
    case LR_POOL_MEAN:
        return 1.0f / static_cast<float>(n);
    case LR_POOL_LAST:
        return i == n - 1 ? 1.0f : 0.0f;
    case LR_POOL_MEAN_SQRT:
        return 1.0f / sqrtf(static_cast<float>(n));
    default: /* weights 1..n over their sum */
        return static_cast<float>(2.0 * static_cast<double>(i + 1) /
                                  (static_cast<double>(n) * static_cast<double>(n + 1)));
    }
}

/* Does sequence b lie within the tokens, after the one before it? */
__device__ __forceinline__ bool sequence_fits(lr_fault *fault, lr_fault_place place, const int32_t *cu, int64_t b,
                                              int64_t tokens)
{
    return in_range(fault, place, b, cu[b], 0, tokens - 1) &&
           in_range(fault, place, b + 1, cu[b + 1], cu[b] + 1, tokens);
}

/* A thread sums eight columns over the tokens of sequence blockIdx.x, in their order. */
template <class T, bool ALIGNED>
__global__ void __launch_bounds__(POOL_THREADS)
    pool_kernel(float *y, const T *x, const int32_t *cu, int64_t tokens, int64_t width, int mode, lr_fault *fault)
{
    const int64_t b = blockIdx.x, column = (static_cast<int64_t>(blockIdx.y) * POOL_THREADS + threadIdx.x) * EIGHT;
    if (column >= width || !sequence_fits(fault, LR_FAULT_POOL, cu, b, tokens))
        return;
    const int64_t start = cu[b], n = cu[b + 1] - start;
    const int64_t first = mode == LR_POOL_LAST ? n - 1 : 0, last = mode == LR_POOL_CLS ? 0 : n - 1;
    const int columns = width - column < EIGHT ? static_cast<int>(width - column) : static_cast<int>(EIGHT);
    float sum[EIGHT] = {0.0f}, v[EIGHT];
#pragma unroll 4
    for (int64_t i = first; i <= last; i++) {
        const float weight = pool_weight(mode, i, n);
        load8<ALIGNED>(v, x + (start + i) * width + column, columns);
        for (int j = 0; j < EIGHT; j++)
            sum[j] += weight * v[j];
    }
    store8<ALIGNED>(y + b * width + column, sum, columns);
}

/* Each block writes some of the tokens of sequence blockIdx.x: blockIdx.y, and every gridDim.y-th after it. */
template <class T, bool ALIGNED>
__global__ void __launch_bounds__(POOL_THREADS)
    pool_backward_kernel(T *dx, const float *dy, const int32_t *cu, int64_t tokens, int64_t width, int mode,
                         lr_fault *fault)
{
    const int64_t b = blockIdx.x;
    if (!sequence_fits(fault, LR_FAULT_POOL_BACKWARD, cu, b, tokens))
        return;
    const int64_t start = cu[b], n = cu[b + 1] - start;
    for (int64_t i = blockIdx.y; i < n; i += gridDim.y) {
        const float weight = pool_weight(mode, i, n);
        for (int64_t column = static_cast<int64_t>(threadIdx.x) * EIGHT; column < width;
             column += POOL_THREADS * EIGHT) {
            const int columns = width - column < EIGHT ? static_cast<int>(width - column) : static_cast<int>(EIGHT);
            float g[EIGHT];
            load8<ALIGNED>(g, dy + b * width + column, columns);
            for (int j = 0; j < EIGHT; j++)
                g[j] *= weight;
            store8<ALIGNED>(dx + (start + i) * width + column, g, columns);
        }
    }
}

/* ---- rows of embeddings ------------------------------------------------------------------------------------------------ */
/* a . b, in every thread of the block. */
__device__ __forceinline__ float row_product(const float *a, const float *b, int64_t width, smem<float> part)
{
    float sum = 0.0f;
    for (int64_t i = threadIdx.x; i < width; i += ROW_THREADS)
        sum += a[i] * b[i];
    return block_sum(sum, part);
}

__global__ void __launch_bounds__(ROW_THREADS)
    normalize_kernel(float *y, float *norms, const float *x, int64_t width, float eps)
{
    SIMT_SHARED(float, part, MAX_WARPS);
    const int64_t row = blockIdx.x;
    const float *const in = x + row * width;
    const float norm = sqrtf(row_product(in, in, width, part)), inverse = 1.0f / fmaxf(norm, eps);
    for (int64_t i = threadIdx.x; i < width; i += ROW_THREADS)
        y[row * width + i] = in[i] * inverse;
    if (threadIdx.x == 0)
        norms[row] = norm;
}

/* dx = (dy - y (y . dy)) / |x|; where |x| <= eps the divisor was the constant eps, so dx = dy / eps. */
__global__ void __launch_bounds__(ROW_THREADS)
    normalize_backward_kernel(float *dx, const float *dy, const float *y, const float *norms, int64_t width, float eps)
{
    SIMT_SHARED(float, part, MAX_WARPS);
    const int64_t row = blockIdx.x;
    const float norm = norms[row];
    const bool small = norm <= eps;
    const float along = row_product(dy + row * width, y + row * width, width, part),
                inverse = 1.0f / (small ? eps : norm);
    for (int64_t i = row * width + threadIdx.x; i < (row + 1) * width; i += ROW_THREADS)
        dx[i] = (dy[i] - (small ? 0.0f : y[i] * along)) * inverse;
}

__global__ void __launch_bounds__(ROW_THREADS) row_dot_kernel(float *y, const float *a, const float *b, int64_t width)
{
    SIMT_SHARED(float, part, MAX_WARPS);
    const int64_t row = blockIdx.x;
    const float sum = row_product(a + row * width, b + row * width, width, part);
    if (threadIdx.x == 0)
        y[row] = sum;
}

struct row_scale_body {
    float *y;
    const float *x, *s;
    int64_t width;
    float beta;
    template <bool ALIGNED> __device__ void run(int64_t row, int64_t column, int n) const
    {
        float v[EIGHT], old[EIGHT];
        const float factor = s[row];
        load8<ALIGNED>(v, x + row * width + column, n);
        for (int i = 0; i < EIGHT; i++)
            v[i] *= factor;
        if (beta != 0.0f) {
            load8<ALIGNED>(old, y + row * width + column, n);
            for (int i = 0; i < EIGHT; i++)
                v[i] += beta * old[i];
        }
        store8<ALIGNED>(y + row * width + column, v, n);
    }
};

dim3 rows_of(const lr_tensor *t)
{
    return dim3(static_cast<unsigned>(t->shape[0]));
}

} // namespace

int lr_cuda_pool(lr_exec *exec, lr_tensor *y, const lr_tensor *x, const lr_tensor *cu, int64_t mode)
{
    const int status = lr_check_pool_mode("pool", mode);
    if (status != LR_OK)
        return status;
    const int64_t width = x->shape[1];
    const dim3 grid(static_cast<unsigned>(y->shape[0]), blocks_for(width, POOL_THREADS * EIGHT));
    return by_dtype(x->dtype, [&](auto t) {
        typedef decltype(t) T;
        return simt_launch("pool", aligned(2, x, y) ? pool_kernel<T, true> : pool_kernel<T, false>, grid,
                           dim3(POOL_THREADS), 0, stream_of(exec), data_of<float>(y), data_of<T>(x),
                           data_of<int32_t>(cu), x->shape[0], width, static_cast<int>(mode), exec->fault);
    });
}

int lr_cuda_pool_backward(lr_exec *exec, lr_tensor *dx, const lr_tensor *dy, const lr_tensor *cu, int64_t mode)
{
    const int status = lr_check_pool_mode("pool_backward", mode);
    if (status != LR_OK)
        return status;
    const int64_t tokens = dx->shape[0], sequences = dy->shape[0];
    const int64_t each = lr_min64((tokens + sequences - 1) / sequences,
                                  1024); /* blocks for a sequence: as many as it has tokens, on average */
    const dim3 grid(static_cast<unsigned>(sequences), static_cast<unsigned>(each));
    return by_dtype(dx->dtype, [&](auto t) {
        typedef decltype(t) T;
        return simt_launch("pool_backward",
                           aligned(2, dx, dy) ? pool_backward_kernel<T, true> : pool_backward_kernel<T, false>, grid,
                           dim3(POOL_THREADS), 0, stream_of(exec), data_of<T>(dx), data_of<float>(dy),
                           data_of<int32_t>(cu), tokens, dx->shape[1], static_cast<int>(mode), exec->fault);
    });
}

int lr_cuda_l2_normalize(lr_exec *exec, lr_tensor *y, lr_tensor *norm, const lr_tensor *x, double eps)
{
    return simt_launch("l2_normalize", normalize_kernel, rows_of(x), dim3(ROW_THREADS), 0, stream_of(exec),
                       data_of<float>(y), data_of<float>(norm), data_of<float>(x), x->shape[1], eps);
}

int lr_cuda_l2_normalize_backward(lr_exec *exec, lr_tensor *dx, const lr_tensor *dy, const lr_tensor *y,
                                  const lr_tensor *norm, double eps)
{
    return simt_launch("l2_normalize_backward", normalize_backward_kernel, rows_of(y), dim3(ROW_THREADS), 0,
                       stream_of(exec), data_of<float>(dx), data_of<float>(dy), data_of<float>(y), data_of<float>(norm),
                       y->shape[1], eps);
}

int lr_cuda_row_dot(lr_exec *exec, lr_tensor *y, const lr_tensor *a, const lr_tensor *b)
{
    return simt_launch("row_dot", row_dot_kernel, rows_of(a), dim3(ROW_THREADS), 0, stream_of(exec), data_of<float>(y),
                       data_of<float>(a), data_of<float>(b), a->shape[1]);
}

int lr_cuda_row_scale(lr_exec *exec, lr_tensor *y, const lr_tensor *x, const lr_tensor *s, double beta)
{
    const row_scale_body body = {data_of<float>(y), data_of<float>(x), data_of<float>(s), x->shape[1],
                                 static_cast<float>(beta)};
    return for_each_8(exec, "row_scale", body, x->shape[0], x->shape[1], aligned(2, y, x));
}
