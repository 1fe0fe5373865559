/* activation.c: GELU (exact and by tanh) and SwiGLU, forward and backward.
 *
 * Between a load and a store there is enough arithmetic to do it in vectors, straight from and to memory: the functions
 * of one vector below are inlined into loops over runs. */
#include "cpu/lanes.h"

typedef lr_vec (*unary)(lr_vec x);

/* y = f(x), or y = g f(x), for n elements; y may be x or g. */
static inline __attribute__((always_inline)) void map_run(unary f, int dtype, char *y, const char *g, const char *x,
                                                          int64_t n)
{
    const int64_t size = dtype == LR_F32 ? 4 : 2;
    for (int64_t j = 0; j < n; j += LR_LANES) {
        lr_vec v = f(lr_vec_in(dtype, x + j * size, n - j));
        if (g != NULL)
            v *= lr_vec_in(dtype, g + j * size, n - j);
        lr_vec_out(dtype, y + j * size, n - j, v);
    }
}

/* ---- GELU ------------------------------------------------------------------------------------------------------ */
static inline lr_vec gelu(lr_vec x)
{
    lr_vec density;
    return x * lr_vec_normal(x, &density);
}

static inline lr_vec gelu_slope(lr_vec x)
{
    lr_vec density;
    const lr_vec distribution = lr_vec_normal(x, &density);
    return distribution + x * density;
}

/* sigmoid(2u) of GELU by tanh (constants.h) */
static inline lr_vec tanh_gate(lr_vec x)
{
    return lr_vec_sigmoid(LR_GELU_INNER * x * (1.0f + LR_GELU_CUBIC * x * x));
}

static inline lr_vec tanh_gelu(lr_vec x)
{
    return x * tanh_gate(x);
}

static inline lr_vec tanh_gelu_slope(lr_vec x)
{
    const lr_vec s = tanh_gate(x), slope = LR_GELU_INNER + LR_GELU_SLOPE * x * x; /* d(2u)/dx */
    return s + x * s * (1.0f - s) * slope;
}

int LR_CPU(gelu)(lr_exec *exec, lr_tensor *y, const lr_tensor *x, int64_t approximate)
{
    LR_NEED_CPU_DTYPE("gelu", x);
    const lr_runs runs = lr_runs_of(y, true);
#pragma omp parallel for num_threads(lr_threads_for(exec, 4 * y->elements)) schedule(static)
    for (int64_t i = 0; i < runs.count; i++) {
        const int64_t n = lr_run_length(&runs, i), at = i * LR_RUN;
        if (approximate)
            map_run(tanh_gelu, x->dtype, lr_at(y, at), NULL, lr_at(x, at), n);
        else
            map_run(gelu, x->dtype, lr_at(y, at), NULL, lr_at(x, at), n);
    }
    return LR_OK;
}

int LR_CPU(gelu_backward)(lr_exec *exec, lr_tensor *dx, const lr_tensor *dy, const lr_tensor *x, int64_t approximate)
{
    LR_NEED_CPU_DTYPE("gelu_backward", x);
    const lr_runs runs = lr_runs_of(dx, true);
#pragma omp parallel for num_threads(lr_threads_for(exec, 4 * dx->elements)) schedule(static)
    for (int64_t i = 0; i < runs.count; i++) {
        const int64_t n = lr_run_length(&runs, i), at = i * LR_RUN;
        if (approximate)
            map_run(tanh_gelu_slope, x->dtype, lr_at(dx, at), lr_at(dy, at), lr_at(x, at), n);
        else
            map_run(gelu_slope, x->dtype, lr_at(dx, at), lr_at(dy, at), lr_at(x, at), n);
    }
    return LR_OK;
}

/* ---- SwiGLU ---------------------------------------------------------------------------------------------------- */
/* gu holds gate and up side by side: [T, 2I]. Work is cut into runs of a row of I. */
static lr_runs swiglu_runs(int64_t tokens, int64_t inner)
{
    const int64_t per_row = (inner + LR_RUN - 1) / LR_RUN;
    return (lr_runs){inner, per_row, tokens * per_row, false};
}

/* n elements of y from those at `gate` and, `inner` elements later, those of up. */
static inline void swiglu_run(int dtype, char *y, const char *gate, int64_t inner, int64_t n)
{
    const int64_t size = dtype == LR_F32 ? 4 : 2;
    const char *up = gate + inner * size;
    for (int64_t j = 0; j < n; j += LR_LANES) {
        const lr_vec x = lr_vec_in(dtype, gate + j * size, n - j), u = lr_vec_in(dtype, up + j * size, n - j);
        lr_vec_out(dtype, y + j * size, n - j, x * lr_vec_sigmoid(x) * u);
    }
}

/* The same n elements of both halves of dgu, which may be gu. */
static inline void swiglu_backward_run(int dtype, char *dgate, const char *dy, const char *gate, int64_t inner,
                                       int64_t n)
{
    const int64_t size = dtype == LR_F32 ? 4 : 2;
    const char *up = gate + inner * size;
    char *dup = dgate + inner * size;
    for (int64_t j = 0; j < n; j += LR_LANES) {
        const lr_vec x = lr_vec_in(dtype, gate + j * size, n - j), u = lr_vec_in(dtype, up + j * size, n - j);
        const lr_vec g = lr_vec_in(dtype, dy + j * size, n - j), s = lr_vec_sigmoid(x), silu = x * s;
        lr_vec_out(dtype, dgate + j * size, n - j, g * u * (s + silu * (1.0f - s)));
        lr_vec_out(dtype, dup + j * size, n - j, g * silu);
    }
}

int LR_CPU(swiglu)(lr_exec *exec, lr_tensor *y, const lr_tensor *gu)
{
    LR_NEED_CPU_DTYPE("swiglu", gu);
    const int64_t inner = y->shape[1];
    const lr_runs runs = swiglu_runs(y->shape[0], inner);
#pragma omp parallel for num_threads(lr_threads_for(exec, 4 * y->elements)) schedule(static)
    for (int64_t i = 0; i < runs.count; i++) {
        const int64_t n = lr_run_length(&runs, i), column = i % runs.per_row * LR_RUN, row = i / runs.per_row;
        swiglu_run(gu->dtype, lr_at(y, row * inner + column), lr_at(gu, row * 2 * inner + column), inner, n);
    }
    return LR_OK;
}

int LR_CPU(swiglu_backward)(lr_exec *exec, lr_tensor *dgu, const lr_tensor *dy, const lr_tensor *gu)
{
    LR_NEED_CPU_DTYPE("swiglu_backward", gu);
    const int64_t inner = dy->shape[1];
    const lr_runs runs = swiglu_runs(dy->shape[0], inner);
#pragma omp parallel for num_threads(lr_threads_for(exec, 4 * dy->elements)) schedule(static)
    for (int64_t i = 0; i < runs.count; i++) {
        const int64_t n = lr_run_length(&runs, i), column = i % runs.per_row * LR_RUN, row = i / runs.per_row;
        const int64_t gate = row * 2 * inner + column;
        swiglu_backward_run(gu->dtype, lr_at(dgu, gate), lr_at(dy, row * inner + column), lr_at(gu, gate), inner, n);
    }
    return LR_OK;
}
