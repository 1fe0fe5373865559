/* activation.cu: GELU (exact and by tanh) and SwiGLU, forward and backward.
 *
 * Bytes an element of size s, each moved once: gelu 2s, gelu_backward 3s, swiglu 3s, swiglu_backward 5s. With 16-bit tensors the
 * exponential is the hardware's, and some 25 instructions an element leave these bound by memory. */
#include "constants.h"
#include "cuda/vec.h"

namespace
{

/* sigmoid(2u) of GELU by tanh (constants.h) */
template <class T> __device__ __forceinline__ float tanh_gelu_gate(float x)
{
    return sigmoid_for<T>(LR_GELU_INNER * x * (1.0f + LR_GELU_CUBIC * x * x));
}

/* The normal distribution function Phi(x); *density is phi(x). As lr_vec_normal of kernels/cpu/lanes.h. */
template <class T> __device__ __forceinline__ float normal_for(float x, float *density)
{
    const float e = exp_for<T>(-0.5f * x * x), t = 1.0f / (1.0f + LR_NORMAL_SCALE * fabsf(x));
    float p = LR_NORMAL_LEADING;
#define STEP(c) p = p * t + c;
    LR_NORMAL_REST(STEP)
#undef STEP
    const float tail = e * t * p;
    *density = LR_NORMAL_DENSITY * e;
    return x < 0.0f ? tail : 1.0f - tail;
}

template <class T, bool BY_TANH> struct gelu_body {
    T *y;
    const T *x;
    template <bool ALIGNED> __device__ void run(int64_t, int64_t column, int n) const
    {
        float v[EIGHT], density;
        load8<ALIGNED>(v, x + column, n);
        for (int i = 0; i < EIGHT; i++)
            v[i] *= BY_TANH ? tanh_gelu_gate<T>(v[i]) : normal_for<T>(v[i], &density);
        store8<ALIGNED>(y + column, v, n);
    }
};

template <class T, bool BY_TANH> struct gelu_backward_body {
    T *dx;
    const T *dy, *x;
    static __device__ __forceinline__ float slope(float x)
    {
        if (BY_TANH) {
            const float s = tanh_gelu_gate<T>(x);
            const float inner = LR_GELU_INNER + LR_GELU_SLOPE * x * x; /* d(2u)/dx */
            return s + x * s * (1.0f - s) * inner;
        }
        float density;
        const float distribution = normal_for<T>(x, &density);
        return distribution + x * density;
    }
    template <bool ALIGNED> __device__ void run(int64_t, int64_t column, int n) const
    {
        float v[EIGHT], g[EIGHT];
        load8<ALIGNED>(v, x + column, n);
        load8<ALIGNED>(g, dy + column, n);
        for (int i = 0; i < EIGHT; i++)
            g[i] *= slope(v[i]);
        store8<ALIGNED>(dx + column, g, n);
    }
};

/* gu holds gate and up side by side: [T, 2 inner]. */
template <class T> struct swiglu_body {
    T *y;
    const T *gu;
    int64_t inner;
    template <bool ALIGNED> __device__ void run(int64_t row, int64_t column, int n) const
    {
        float gate[EIGHT], up[EIGHT];
        load8<ALIGNED>(gate, gu + row * 2 * inner + column, n);
        load8<ALIGNED>(up, gu + row * 2 * inner + inner + column, n);
        for (int i = 0; i < EIGHT; i++)
            gate[i] = gate[i] * sigmoid_for<T>(gate[i]) * up[i];
        store8<ALIGNED>(y + row * inner + column, gate, n);
    }
};

template <class T> struct swiglu_backward_body {
    T *dgu;
    const T *dy, *gu;
    int64_t inner;
    template <bool ALIGNED> __device__ void run(int64_t row, int64_t column, int n) const
    {
        float gate[EIGHT], up[EIGHT], g[EIGHT];
        const int64_t at = row * 2 * inner + column;
        load8<ALIGNED>(gate, gu + at, n);
        load8<ALIGNED>(up, gu + at + inner, n);
        load8<ALIGNED>(g, dy + row * inner + column, n);
        for (int i = 0; i < EIGHT; i++) {
            const float s = sigmoid_for<T>(gate[i]), silu = gate[i] * s, slope = s + silu * (1.0f - s);
            gate[i] = g[i] * up[i] * slope;
            up[i] = g[i] * silu;
        }
        store8<ALIGNED>(dgu + at, gate, n);
        store8<ALIGNED>(dgu + at + inner, up, n);
    }
};

} // namespace

int lr_cuda_gelu(lr_exec *exec, lr_tensor *y, const lr_tensor *x, int64_t approximate)
{
    return by_dtype(x->dtype, [&](auto t) {
        typedef decltype(t) T;
        const bool even = aligned(1, y, x);
        if (approximate)
            return for_each_8(exec, "gelu", gelu_body<T, true>{data_of<T>(y), data_of<T>(x)}, 1, x->elements, even);
        return for_each_8(exec, "gelu", gelu_body<T, false>{data_of<T>(y), data_of<T>(x)}, 1, x->elements, even);
    });
}

int lr_cuda_gelu_backward(lr_exec *exec, lr_tensor *dx, const lr_tensor *dy, const lr_tensor *x, int64_t approximate)
{
    return by_dtype(x->dtype, [&](auto t) {
        typedef decltype(t) T;
        const bool even = aligned(1, dx, dy, x);
        T *const out = data_of<T>(dx);
        const T *const g = data_of<T>(dy), *const in = data_of<T>(x);
        if (approximate)
            return for_each_8(exec, "gelu_backward", gelu_backward_body<T, true>{out, g, in}, 1, x->elements, even);
        return for_each_8(exec, "gelu_backward", gelu_backward_body<T, false>{out, g, in}, 1, x->elements, even);
    });
}

int lr_cuda_swiglu(lr_exec *exec, lr_tensor *y, const lr_tensor *gu)
{
    const int64_t inner = y->shape[1];
    return by_dtype(gu->dtype, [&](auto t) {
        typedef decltype(t) T;
        const swiglu_body<T> body = {data_of<T>(y), data_of<T>(gu), inner};
        return for_each_8(exec, "swiglu", body, y->shape[0], inner, inner % EIGHT == 0 && aligned(1, y, gu));
    });
}

int lr_cuda_swiglu_backward(lr_exec *exec, lr_tensor *dgu, const lr_tensor *dy, const lr_tensor *gu)
{
    const int64_t inner = dy->shape[1];
    return by_dtype(gu->dtype, [&](auto t) {
        typedef decltype(t) T;
        const swiglu_backward_body<T> body = {data_of<T>(dgu), data_of<T>(dy), data_of<T>(gu), inner};
        return for_each_8(exec, "swiglu_backward", body, dy->shape[0], inner,
                          inner % EIGHT == 0 && aligned(1, dgu, dy, gu));
    });
}
