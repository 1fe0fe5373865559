/* vec.h: what the simple kernels are made of: eight neighbouring elements at a time, as f32, whatever the tensor holds.
 *
 * An elementwise op is a Body: a struct of pointers and numbers with
 *     template <bool ALIGNED> __device__ void run(int64_t row, int64_t column, int n) const
 * that does elements [column, column + n) of a row, n = 8 but at a row's end. for_each_8 gives every eight elements a thread. Where each row
 * of each operand begins at a multiple of 16 bytes (ALIGNED) the eight are loaded and stored 16 bytes at a time: consecutive threads then
 * read consecutive 16 bytes, which is what a GPU's memory is fastest at. Elsewhere, and at the end of a row, they go one by one. */
#ifndef LR_CUDA_VEC_H
#define LR_CUDA_VEC_H

#include "cuda/cuda.h"
#include "cuda/simt.h"

enum { EIGHT = 8, THREADS = 256 };

/* 16 bytes: the widest load there is. */
template <class T> struct alignas(16) packet {
    T v[16 / sizeof(T)];
};

/* x[0..n) = p[0..n) as f32; the rest of x is 0. */
template <bool ALIGNED, class T> static __device__ __forceinline__ void load8(float (&x)[EIGHT], const T *p, int n)
{
    constexpr int PER_PACKET = 16 / sizeof(T);
    if (ALIGNED && n == EIGHT) {
#pragma unroll
        for (int i = 0; i < EIGHT / PER_PACKET; i++) {
            const packet<T> part = reinterpret_cast<const packet<T> *>(p)[i];
#pragma unroll
            for (int j = 0; j < PER_PACKET; j++)
                x[i * PER_PACKET + j] = to_float(part.v[j]);
        }
    } else {
#pragma unroll
        for (int i = 0; i < EIGHT; i++)
            x[i] = i < n ? to_float(p[i]) : 0.0f;
    }
}

template <bool ALIGNED, class T> static __device__ __forceinline__ void store8(T *p, const float (&x)[EIGHT], int n)
{
    constexpr int PER_PACKET = 16 / sizeof(T);
    if (ALIGNED && n == EIGHT) {
#pragma unroll
        for (int i = 0; i < EIGHT / PER_PACKET; i++) {
            packet<T> part;
#pragma unroll
            for (int j = 0; j < PER_PACKET; j++)
                part.v[j] = from_float<T>(x[i * PER_PACKET + j]);
            reinterpret_cast<packet<T> *>(p)[i] = part;
        }
    } else {
#pragma unroll
        for (int i = 0; i < EIGHT; i++)
            if (i < n)
                p[i] = from_float<T>(x[i]);
    }
}

/* x as a tensor of T stores it. */
template <class T> static __device__ __forceinline__ float rounded(float x)
{
    return to_float(from_float<T>(x));
}

/* ---- functions --------------------------------------------------------------------------------------------------------- */
/* e^x as exactly as T is worth it. */
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
    body.template run<ALIGNED>(row, column, rest < EIGHT ? static_cast<int>(rest) : static_cast<int>(EIGHT));
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
/* Is low <= value <= high? If not, say so for the host. */
static __device__ __forceinline__ bool in_range(lr_fault *fault, lr_fault_place place, int64_t index, int value,
                                                int64_t low, int64_t high)
{
    if (value >= low && value <= high)
        return true;
    *fault = {place, static_cast<int32_t>(index), value, static_cast<int32_t>(low), static_cast<int32_t>(high)};
    return false;
}

#endif
