/* activation.c: GELU (exact and by tanh) and SwiGLU, forward and backward. */
#include "cpu/vec.h"

/* tanh GELU is x sigmoid(2u), u = sqrt(2/pi) (x + 0.044715 x^3): tanh itself is not needed. */
static inline float tanh_gelu_gate(float x)
{
    return lr_sigmoid(1.5957691216f * x * (1.0f + 0.044715f * x * x));
}

int LR_CPU(gelu)(lr_exec *exec, lr_tensor *y, const lr_tensor *x, int64_t approximate)
{
    LR_NEED_CPU_DTYPE("gelu", x);
    const lr_runs runs = lr_runs_of(y, true);
#pragma omp parallel for num_threads(lr_threads_for(exec, 4 * y->elements)) schedule(static)
    for (int64_t i = 0; i < runs.count; i++) {
        float run[LR_RUN];
        const int64_t n = lr_run_length(&runs, i), at = i * LR_RUN;
        const float *p = lr_row_in(x, at, n, run);
        float *out = lr_row_out(y, at, run);
        if (approximate) {
#pragma omp simd
            for (int64_t j = 0; j < n; j++)
                out[j] = p[j] * tanh_gelu_gate(p[j]);
        } else {
#pragma omp simd
            for (int64_t j = 0; j < n; j++) {
                float density;
                out[j] = p[j] * lr_normal(p[j], &density);
            }
        }
        lr_row_done(y, at, n, out);
    }
    return LR_OK;
}

int LR_CPU(gelu_backward)(lr_exec *exec, lr_tensor *dx, const lr_tensor *dy, const lr_tensor *x, int64_t approximate)
{
    LR_NEED_CPU_DTYPE("gelu_backward", x);
    const lr_runs runs = lr_runs_of(dx, true);
#pragma omp parallel for num_threads(lr_threads_for(exec, 4 * dx->elements)) schedule(static)
    for (int64_t i = 0; i < runs.count; i++) {
        float x_run[LR_RUN], dy_run[LR_RUN];
        const int64_t n = lr_run_length(&runs, i), at = i * LR_RUN;
        const float *p = lr_row_in(x, at, n, x_run), *g = lr_row_in(dy, at, n, dy_run);
        float *out = lr_row_out(dx, at, dy_run);
        if (approximate) {
#pragma omp simd
            for (int64_t j = 0; j < n; j++) {
                const float s = tanh_gelu_gate(p[j]);
                const float slope = 1.5957691216f + 0.2140667f * p[j] * p[j]; /* d(2u)/dx */
                out[j] = g[j] * (s + p[j] * s * (1.0f - s) * slope);
            }
        } else {
#pragma omp simd
            for (int64_t j = 0; j < n; j++) {
                float density;
                const float distribution = lr_normal(p[j], &density);
                out[j] = g[j] * (distribution + p[j] * density);
            }
        }
        lr_row_done(dx, at, n, out);
    }
    return LR_OK;
}

/* gu holds gate and up side by side: [T, 2I]. Work is cut into runs of a row of I. */
static lr_runs swiglu_runs(int64_t tokens, int64_t inner)
{
    const int64_t per_row = (inner + LR_RUN - 1) / LR_RUN;
    return (lr_runs){inner, per_row, tokens * per_row, false};
}

int LR_CPU(swiglu)(lr_exec *exec, lr_tensor *y, const lr_tensor *gu)
{
    LR_NEED_CPU_DTYPE("swiglu", gu);
    const int64_t inner = y->shape[1];
    const lr_runs runs = swiglu_runs(y->shape[0], inner);
#pragma omp parallel for num_threads(lr_threads_for(exec, 4 * y->elements)) schedule(static)
    for (int64_t i = 0; i < runs.count; i++) {
        float gate_run[LR_RUN], up_run[LR_RUN];
        const int64_t n = lr_run_length(&runs, i), column = i % runs.per_row * LR_RUN, row = i / runs.per_row;
        const int64_t gate_at = row * 2 * inner + column, at = row * inner + column;
        const float *gate = lr_row_in(gu, gate_at, n, gate_run), *up = lr_row_in(gu, gate_at + inner, n, up_run);
        float *out = lr_row_out(y, at, up_run);
#pragma omp simd
        for (int64_t j = 0; j < n; j++)
            out[j] = gate[j] * lr_sigmoid(gate[j]) * up[j];
        lr_row_done(y, at, n, out);
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
        float gate_run[LR_RUN], up_run[LR_RUN], dy_run[LR_RUN];
        const int64_t n = lr_run_length(&runs, i), column = i % runs.per_row * LR_RUN, row = i / runs.per_row;
        const int64_t gate_at = row * 2 * inner + column, up_at = gate_at + inner;
        const float *gate = lr_row_in(gu, gate_at, n, gate_run), *up = lr_row_in(gu, up_at, n, up_run);
        const float *g = lr_row_in(dy, row * inner + column, n, dy_run);
        float *dgate = lr_row_out(dgu, gate_at, gate_run), *dup = lr_row_out(dgu, up_at, up_run);
#pragma omp simd
        for (int64_t j = 0; j < n; j++) {
            const float s = lr_sigmoid(gate[j]), silu = gate[j] * s, slope = s + silu * (1.0f - s), u = up[j];
            dgate[j] = g[j] * u * slope;
            dup[j] = g[j] * silu;
        }
        lr_row_done(dgu, gate_at, n, dgate);
        lr_row_done(dgu, up_at, n, dup);
    }
    return LR_OK;
}
