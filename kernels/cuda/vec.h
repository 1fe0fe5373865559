/* vec.h: what the simple kernels are made of: eight neighbouring elements at a time, as f32, whatever the tensor holds.
 *
 * An elementwise op is a Body: a struct of pointers and numbers with
 *     template <bool ALIGNED> __device__ void run(int64_t row, int64_t column, int n) const
 * that does elements [column, column + n) of a row, n = 8 but at a row's end. for_each_8 gives every eight elements a thread. Where
 * each row of each operand begins at a multiple of 16 bytes (ALIGNED) the eight are loaded and stored 16 bytes at a time:
 * consecutive threads then read consecutive 16 bytes, which is what a GPU's memory is fastest at. Elsewhere, and at the end of a
 * row, they go one by one.
 *
 * The test whether there are eight is made once, around the body and not in each load: with a branch before each load, the first
 * load would have to arrive before the second is issued. */
#ifndef LR_CUDA_VEC_H
#define LR_CUDA_VEC_H

#include "cuda/cuda.h"
#include "cuda/simt.h"

enum { EIGHT = 8, THREADS = 256 };

/* The widest accesses there are, 16 bytes. Sixteen-bit numbers travel as words: as structs of eight they would be stored one by
 * one. */
static __device__ __forceinline__ void load_aligned(float (&x)[EIGHT], const float *p)
{
    const float4 low = reinterpret_cast<const float4 *>(p)[0], high = reinterpret_cast<const float4 *>(p)[1];
    x[0] = low.x, x[1] = low.y, x[2] = low.z, x[3] = low.w;
    x[4] = high.x, x[5] = high.y, x[6] = high.z, x[7] = high.w;
}
template <class T> static __device__ __forceinline__ void load_aligned(float (&x)[EIGHT], const T *p)
{
    const uint4 words = *reinterpret_cast<const uint4 *>(p);
    const float2 a = unpack2<T>(words.x), b = unpack2<T>(words.y), c = unpack2<T>(words.z), d = unpack2<T>(words.w);
    x[0] = a.x, x[1] = a.y, x[2] = b.x, x[3] = b.y;
    x[4] = c.x, x[5] = c.y, x[6] = d.x, x[7] = d.y;
}

/* By an intrinsic: nvcc splits a plain store of 16 bytes where it cannot prove that nothing aliases it. */
static __device__ __forceinline__ void store_aligned(float *p, const float (&x)[EIGHT])
{
    __stwb(reinterpret_cast<float4 *>(p), make_float4(x[0], x[1], x[2], x[3]));
    __stwb(reinterpret_cast<float4 *>(p) + 1, make_float4(x[4], x[5], x[6], x[7]));
}
template <class T> static __device__ __forceinline__ void store_aligned(T *p, const float (&x)[EIGHT])
{
    const uint4 words =
        make_uint4(pack2<T>(x[0], x[1]), pack2<T>(x[2], x[3]), pack2<T>(x[4], x[5]), pack2<T>(x[6], x[7]));
    __stwb(reinterpret_cast<uint4 *>(p), words);
}

/* x[0..n) = p[0..n) as f32; the rest of x is 0. */
template <bool ALIGNED, class T> static __device__ __forceinline__ void load8(float (&x)[EIGHT], const T *p, int n)
{
    if (ALIGNED && n == EIGHT) {
        load_aligned(x, p);
        return;
    }
#pragma unroll
    for (int i = 0; i < EIGHT; i++)
        x[i] = i < n ? to_float(p[i]) : 0.0f;
}

template <bool ALIGNED, class T> static __device__ __forceinline__ void store8(T *p, const float (&x)[EIGHT], int n)
{
    if (ALIGNED && n == EIGHT) {
        store_aligned(p, x);
        return;
    }
#pragma unroll
    for (int i = 0; i < EIGHT; i++)
        if (i < n)
            p[i] = from_float<T>(x[i]);
}

/* x as a tensor of T stores it. */
template <class T> static __device__ __forceinline__ float rounded(float x)
{
    return to_float(from_float<T>(x));
}

/* ---- functions --------------------------------------------------------------------------------------------------------- */
/* e^x, as accurate as a result of type T can hold. */
template <class T> static __device__ __forceinline__ float exp_for(float x)
{
    return fast_exp(x);
}
template <> __device__ __forceinline__ float exp_for<float>(float x)
{
    return expf(x);
}

template <class T> static __device__ __forceinline__ float sigmoid_for(float x)
{
    return 1.0f / (1.0f + exp_for<T>(-x));
}

/* ---- one thread for every eight elements -------------------------------------------------------------------------------- */
template <bool ALIGNED, class Body>
static __global__ void __launch_bounds__(THREADS) eights(Body body, int64_t width, int64_t per_row, int64_t total)
{
    const int64_t i = static_cast<int64_t>(blockIdx.x) * THREADS + threadIdx.x;
    if (i >= total)
        return;
    const int64_t row = per_row == total ? 0 : i / per_row; /* a 64-bit division costs some hundred instructions */
    const int64_t column = (i - row * per_row) * EIGHT;
    const int64_t rest = width - column;
    if (rest >= EIGHT)
        body.template run<ALIGNED>(row, column, static_cast<int>(EIGHT));
    else
        body.template run<false>(row, column, static_cast<int>(rest));
}

static inline simt_stream stream_of(const lr_exec *exec)
{
    return reinterpret_cast<simt_stream>(exec->stream);
}

static inline unsigned blocks_for(int64_t work, int64_t per_block)
{
    return static_cast<unsigned>((work + per_block - 1) / per_block);
}

template <class Body>
static int for_each_8(const lr_exec *exec, const char *name, const Body &body, int64_t rows, int64_t width,
                      bool aligned)
{
    const int64_t per_row = (width + EIGHT - 1) / EIGHT, total = rows * per_row;
    return simt_launch(name, aligned ? eights<true, Body> : eights<false, Body>, dim3(blocks_for(total, THREADS)),
                       dim3(THREADS), 0, stream_of(exec), body, width, per_row, total);
}

/* ---- operands ---------------------------------------------------------------------------------------------------------- */
/* Each of `rows` rows of every t begins at a multiple of 16 bytes, and of eight elements. */
static inline bool aligned(int64_t rows, const lr_tensor *t)
{
    return t == nullptr || (reinterpret_cast<uintptr_t>(t->data) % 16 == 0 && (rows == 1 || t->ld % EIGHT == 0));
}
template <class... Rest> static bool aligned(int64_t rows, const lr_tensor *t, const Rest *...rest)
{
    return aligned(rows, t) && aligned(rows, rest...);
}

/* The rows an elementwise op runs over: where every operand is contiguous, the whole tensor is one row. */
struct extent {
    int64_t rows, width;
};
template <class... Tensors> static extent extent_of(const lr_tensor *first, const Tensors *...rest)
{
    if (lr_tensor_contiguous(first) && (lr_tensor_contiguous(rest) && ... && true))
        return {1, first->elements};
    return {first->shape[0], first->shape[1]};
}

template <class T> static T *data_of(const lr_tensor *t)
{
    return t != nullptr ? static_cast<T *>(t->data) : nullptr;
}

/* f(T()) for the type that a tensor's dtype stands for. */
template <class F> static int by_dtype(int dtype, F f)
{
    switch (dtype) {
    case LR_F32:
        return f(float());
    case LR_BF16:
        return f(bf16());
    default:
        return f(f16());
    }
}

/* ---- numbers from the device ------------------------------------------------------------------------------------------- */
/* Is low <= value <= high? If not, the fault is recorded for the host. Where several threads record one, the last write of each
 * number stays. */
static __device__ __forceinline__ bool in_range(lr_fault *fault, lr_fault_place place, int64_t index, int value,
                                                int64_t low, int64_t high)
{
    if (value >= low && value <= high)
        return true;
    *fault = {place, static_cast<int32_t>(index), value, static_cast<int32_t>(low), static_cast<int32_t>(high)};
    return false;
}

#endif
