/* norm.cu: RMSNorm and LayerNorm with the residual sum fused in, and their backward with the residual's gradient fused in.
 *
 * A block has one row, each thread eight elements in each pass. Rows of up to 8192 elements stay in registers between the passes:
 * each byte is read and written once. Longer ones are read again, from the cache. Variance is taken about the mean: E[x^2] - E[x]^2
 * would lose everything where the mean is large. Sums are trees of a fixed shape.
 *
 * Bytes an element of size s: forward 2s, with residual 3s, and s more where the sum is stored; backward 3s, with residual 4s. */
#include "cuda/vec.h"

namespace
{

enum { MAX_THREADS_A_ROW = 1024 };

/* Eight elements of a row for each pass: kept in registers where a pass of the block covers the row (KEPT), else made again by
 * `make`. */
template <bool KEPT> struct memory_of_row {
    float x[EIGHT];
    template <class Make> __device__ __forceinline__ void first(float (&to)[EIGHT], Make make)
    {
        make(to);
        if (KEPT)
            for (int i = 0; i < EIGHT; i++)
                x[i] = to[i];
    }
    template <class Make> __device__ __forceinline__ void again(float (&to)[EIGHT], Make make) const
    {
        if (!KEPT)
            make(to);
        else
            for (int i = 0; i < EIGHT; i++)
                to[i] = x[i];
    }
};

/* f(column, n) for each eight of the row that are this thread's. */
template <class F> __device__ __forceinline__ void for_my_eights(int64_t width, F f)
{
    for (int64_t column = static_cast<int64_t>(threadIdx.x) * EIGHT; column < width;
         column += static_cast<int64_t>(blockDim.x) * EIGHT) {
        if (width - column >= EIGHT) /* see vec.h */
            f(column, static_cast<int>(EIGHT));
        else
            f(column, static_cast<int>(width - column));
    }
}

template <class T> struct norm_operands {
    T *y, *s;             /* s: the residual sum, or NULL */
    float *means, *rstds; /* means NULL: RMSNorm */
    const T *x, *r;       /* r or NULL */
    const float *w, *b;
    int64_t width, y_ld;
    float eps;
};

template <class T, bool ALIGNED, bool KEPT>
__global__ void __launch_bounds__(MAX_THREADS_A_ROW, 1) norm_forward(norm_operands<T> o)
{
    SIMT_SHARED(float, part, MAX_WARPS);
    const int64_t row = blockIdx.x, at = row * o.width;
    const float width = static_cast<float>(o.width);
    memory_of_row<KEPT> kept;
    /* The residual sum rounded to what s stores, so that backward sees what forward normalised. */
    auto sum_of = [&](int64_t column, int n) {
        return [&, column, n](float(&v)[EIGHT]) {
            load8<ALIGNED>(v, o.x + at + column, n);
            if (o.r == nullptr)
                return;
            float r[EIGHT];
            load8<ALIGNED>(r, o.r + at + column, n);
            for (int i = 0; i < EIGHT; i++)
                v[i] = o.s != nullptr ? rounded<T>(v[i] + r[i]) : v[i] + r[i];
        };
    };
    float sum = 0.0f, squares = 0.0f;
    for_my_eights(o.width, [&](int64_t column, int n) {
        float v[EIGHT];
        kept.first(v, sum_of(column, n));
        for (int i = 0; i < EIGHT; i++)
            sum += v[i];
    });
    const float mean = o.means != nullptr ? block_sum(sum, part) / width : 0.0f;
    for_my_eights(o.width, [&](int64_t column, int n) {
        float v[EIGHT];
        kept.again(v, sum_of(column, n));
        for (int i = 0; i < EIGHT; i++)
            squares += i < n ? (v[i] - mean) * (v[i] - mean) : 0.0f;
    });
    const float rstd = 1.0f / sqrtf(block_sum(squares, part) / width + o.eps);
    for_my_eights(o.width, [&](int64_t column, int n) {
        float v[EIGHT], w[EIGHT], b[EIGHT];
        kept.again(v, sum_of(column, n));
        if (o.s != nullptr && o.r != nullptr)
            store8<ALIGNED>(o.s + at + column, v, n);
        load8<ALIGNED>(w, o.w + column, n);
        for (int i = 0; i < EIGHT; i++)
            v[i] = (v[i] - mean) * rstd * w[i];
        if (o.b != nullptr) {
            load8<ALIGNED>(b, o.b + column, n);
            for (int i = 0; i < EIGHT; i++)
                v[i] += b[i];
        }
        store8<ALIGNED>(o.y + row * o.y_ld + column, v, n);
    });
    if (threadIdx.x == 0) {
        if (o.means != nullptr)
            o.means[row] = mean;
        o.rstds[row] = rstd;
    }
}

template <class T> struct norm_backward_operands {
    T *dx;
    const T *dy, *s, *ds; /* ds or NULL; dx may be dy or ds */
    const float *w, *means, *rstds;
    int64_t width, dy_ld;
};

/* With n = (s - mean) rstd and g = dy w:  dx = rstd (g - mean(g) - n mean(g n)) + ds;  RMSNorm lacks the term mean(g). */
template <class T, bool ALIGNED, bool KEPT>
__global__ void __launch_bounds__(MAX_THREADS_A_ROW, 1) norm_backward(norm_backward_operands<T> o)
{
    SIMT_SHARED(float, part, MAX_WARPS);
    const int64_t row = blockIdx.x, at = row * o.width;
    const float mean = o.means != nullptr ? o.means[row] : 0.0f, rstd = o.rstds[row],
                width = static_cast<float>(o.width);
    memory_of_row<KEPT> kept_g, kept_v;
    auto gradient_of = [&](int64_t column, int n) {
        return [&, column, n](float(&g)[EIGHT]) {
            float w[EIGHT];
            load8<ALIGNED>(g, o.dy + row * o.dy_ld + column, n);
            load8<ALIGNED>(w, o.w + column, n);
            for (int i = 0; i < EIGHT; i++)
                g[i] *= w[i];
        };
    };
    auto value_of = [&](int64_t column, int n) {
        return [&, column, n](float(&v)[EIGHT]) {
            load8<ALIGNED>(v, o.s + at + column, n);
            for (int i = 0; i < EIGHT; i++)
                v[i] -= mean;
        };
    };
    float g_sum = 0.0f, gv_sum = 0.0f;
    for_my_eights(o.width, [&](int64_t column, int n) {
        float g[EIGHT], v[EIGHT];
        kept_g.first(g, gradient_of(column, n));
        kept_v.first(v, value_of(column, n));
        for (int i = 0; i < EIGHT; i++) { /* past n, g is 0 */
            g_sum += g[i];
            gv_sum += g[i] * v[i];
        }
    });
    const float g_mean = o.means != nullptr ? block_sum(g_sum, part) / width : 0.0f;
    const float gv_mean = block_sum(gv_sum, part) * rstd * rstd / width;
    for_my_eights(o.width, [&](int64_t column, int n) {
        float g[EIGHT], v[EIGHT], residual[EIGHT];
        kept_g.again(g, gradient_of(column, n));
        kept_v.again(v, value_of(column, n));
        for (int i = 0; i < EIGHT; i++)
            g[i] = rstd * (g[i] - g_mean - v[i] * gv_mean);
        if (o.ds != nullptr) {
            load8<ALIGNED>(residual, o.ds + at + column, n);
            for (int i = 0; i < EIGHT; i++)
                g[i] += residual[i];
        }
        store8<ALIGNED>(o.dx + at + column, g, n);
    });
}

/* One block for each row, of whole warps, with eight elements a thread where the largest block allows it. */
unsigned threads_for(int64_t width)
{
    const int64_t warps = (width + EIGHT * WARP - 1) / (EIGHT * WARP);
    return static_cast<unsigned>(lr_min64(warps * WARP, MAX_THREADS_A_ROW));
}

/* even: every row of every operand is aligned. */
template <class Operands>
int launch(const lr_exec *exec, const char *name, const Operands &o, int64_t rows, bool even,
           void (*aligned_kept)(Operands), void (*aligned_again)(Operands), void (*kept)(Operands),
           void (*again)(Operands))
{
    const bool one_pass = o.width <= static_cast<int64_t>(MAX_THREADS_A_ROW) * EIGHT;
    return simt_launch(name, even ? (one_pass ? aligned_kept : aligned_again) : (one_pass ? kept : again),
                       dim3(static_cast<unsigned>(rows)), dim3(threads_for(o.width)), 0, stream_of(exec), o);
}

int forward(const lr_exec *exec, const char *name, lr_tensor *y, lr_tensor *s, lr_tensor *mean, lr_tensor *rstd,
            const lr_tensor *x, const lr_tensor *r, const lr_tensor *w, const lr_tensor *b, double eps)
{
    const bool even = aligned(2, y, s, x, r) && aligned(1, w, b);
    return by_dtype(x->dtype, [&](auto t) {
        typedef decltype(t) T;
        const norm_operands<T> o = {data_of<T>(y), data_of<T>(s), data_of<float>(mean),   data_of<float>(rstd),
                                    data_of<T>(x), data_of<T>(r), data_of<float>(w),      data_of<float>(b),
                                    x->shape[1],   y->ld,         static_cast<float>(eps)};
        return launch(exec, name, o, x->shape[0], even, norm_forward<T, true, true>, norm_forward<T, true, false>,
                      norm_forward<T, false, true>, norm_forward<T, false, false>);
    });
}

int backward(const lr_exec *exec, const char *name, lr_tensor *dx, const lr_tensor *dy, const lr_tensor *s,
             const lr_tensor *w, const lr_tensor *mean, const lr_tensor *rstd, const lr_tensor *ds)
{
    const bool even = aligned(2, dx, dy, s, ds) && aligned(1, w);
    return by_dtype(s->dtype, [&](auto t) {
        typedef decltype(t) T;
        const norm_backward_operands<T> o = {data_of<T>(dx),       data_of<T>(dy),    data_of<T>(s),
                                             data_of<T>(ds),       data_of<float>(w), data_of<float>(mean),
                                             data_of<float>(rstd), s->shape[1],       dy->ld};
        return launch(exec, name, o, s->shape[0], even, norm_backward<T, true, true>, norm_backward<T, true, false>,
                      norm_backward<T, false, true>, norm_backward<T, false, false>);
    });
}

} // namespace

int lr_cuda_rms_norm(lr_exec *exec, lr_tensor *y, lr_tensor *s, lr_tensor *rstd, const lr_tensor *x, const lr_tensor *r,
                     const lr_tensor *w, double eps)
{
    return forward(exec, "rms_norm", y, s, nullptr, rstd, x, r, w, nullptr, eps);
}

int lr_cuda_rms_norm_backward(lr_exec *exec, lr_tensor *dx, const lr_tensor *dy, const lr_tensor *s, const lr_tensor *w,
                              const lr_tensor *rstd, const lr_tensor *ds)
{
    return backward(exec, "rms_norm_backward", dx, dy, s, w, nullptr, rstd, ds);
}

int lr_cuda_layer_norm(lr_exec *exec, lr_tensor *y, lr_tensor *s, lr_tensor *mean, lr_tensor *rstd, const lr_tensor *x,
                       const lr_tensor *r, const lr_tensor *w, const lr_tensor *b, double eps)
{
    return forward(exec, "layer_norm", y, s, mean, rstd, x, r, w, b, eps);
}

int lr_cuda_layer_norm_backward(lr_exec *exec, lr_tensor *dx, const lr_tensor *dy, const lr_tensor *s,
                                const lr_tensor *w, const lr_tensor *mean, const lr_tensor *rstd, const lr_tensor *ds)
{
    return backward(exec, "layer_norm_backward", dx, dy, s, w, mean, rstd, ds);
}
