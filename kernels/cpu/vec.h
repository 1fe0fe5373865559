/* vec.h: rows of numbers, for the CPU kernels.
 *
 * Kernels compute in f32 whatever the tensors hold. lr_row_in gives a run of elements as f32: in place where the tensor is
 * f32, converted into a buffer where it is bf16. lr_row_out and lr_row_done are its counterpart for results, which are
 * rounded once, to nearest even. So each kernel has one body, a plain loop over floats. A buffer is small enough to stay in
 * the first-level cache, where the extra pass costs little.
 *
 * The functions below have no branch and call nothing, so that loops over them vectorise. */
#ifndef LR_CPU_VEC_H
#define LR_CPU_VEC_H

#include "constants.h"
#include "cpu/cpu.h"
#include <math.h>
#include <string.h>
#ifdef __AVX512BF16__
#include <immintrin.h>
#endif

enum {
    LR_RUN = 2048
}; /* elements an elementwise kernel takes at a time: three runs of f32 are half of a 48 KiB cache */

/* Elements of the vectors a and b by their numbers, which are constants and go on in b where a ends. ids is the type of a vector of
 * such numbers. */
#ifdef __clang__
#define LR_SHUFFLE(ids, a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define LR_SHUFFLE(ids, a, b, ...) __builtin_shuffle(a, b, (ids){__VA_ARGS__})
#endif

/* ---- bf16 ------------------------------------------------------------------------------------------------------ */
static inline void lr_run_from_bf16(float *restrict y, const uint16_t *restrict x, int64_t n)
{
#pragma omp simd
    for (int64_t i = 0; i < n; i++)
        y[i] = lr_bf16_to_f32(x[i]);
}

/* The instruction differs from lr_f32_to_bf16 in one point: numbers below 2^-126 become 0. */
static inline void lr_run_to_bf16(uint16_t *restrict y, const float *restrict x, int64_t n)
{
#ifdef __AVX512BF16__
    int64_t i = 0;
    for (; i + 16 <= n; i += 16) /* stores under a mask take several times as long */
        _mm256_storeu_si256((__m256i *)(y + i), (__m256i)_mm512_cvtneps_pbh(_mm512_loadu_ps(x + i)));
    if (i < n) {
        const __mmask16 rest = (__mmask16)((1u << (n - i)) - 1);
        _mm256_mask_storeu_epi16(y + i, rest, (__m256i)_mm512_cvtneps_pbh(_mm512_maskz_loadu_ps(rest, x + i)));
    }
#else
#pragma omp simd
    for (int64_t i = 0; i < n; i++)
        y[i] = lr_f32_to_bf16(x[i]);
#endif
}

/* ---- runs ------------------------------------------------------------------------------------------------------ */
static inline void *lr_at(const lr_tensor *t, int64_t element)
{
    return (char *)t->data + (size_t)element * (t->dtype == LR_F32 ? 4 : 2);
}

/* Elements [at, at + n) of an f32 or bf16 tensor's memory as f32; buffer has room for n. */
static inline const float *lr_row_in(const lr_tensor *t, int64_t at, int64_t n, float *buffer)
{
    if (t->dtype == LR_F32)
        return (const float *)t->data + at;
    lr_run_from_bf16(buffer, (const uint16_t *)t->data + at, n);
    return buffer;
}

/* Where to put the f32 results of elements [at, ...): call lr_row_done when they are there. */
static inline float *lr_row_out(const lr_tensor *t, int64_t at, float *buffer)
{
    return t->dtype == LR_F32 ? (float *)t->data + at : buffer;
}

static inline void lr_row_done(const lr_tensor *t, int64_t at, int64_t n, const float *result)
{
    if (t->dtype != LR_F32)
        lr_run_to_bf16((uint16_t *)t->data + at, result, n);
}

/* An elementwise op's work, cut into runs of one row each. Where every operand is contiguous, the whole tensor is one
 * row. */
typedef struct lr_runs {
    int64_t width, per_row, count;
    bool flat;
} lr_runs;

static inline lr_runs lr_runs_of(const lr_tensor *t, bool flat)
{
    const int64_t width = flat ? t->elements : t->shape[1], per_row = (width + LR_RUN - 1) / LR_RUN;
    return (lr_runs){width, per_row, flat ? per_row : t->shape[0] * per_row, flat};
}

/* Run i: its first element in t (whose rows may be strided), and its length. */
static inline int64_t lr_run_at(const lr_runs *r, const lr_tensor *t, int64_t i)
{
    return i / r->per_row * (r->flat ? 0 : t->ld) + i % r->per_row * LR_RUN;
}

static inline int64_t lr_run_length(const lr_runs *r, int64_t i)
{
    return lr_min64(LR_RUN, r->width - i % r->per_row * LR_RUN);
}

/* Threads worth waking for `elements` of work: below some 16 thousand the wake-up costs more than it saves. */
static inline int lr_threads_for(const lr_exec *exec, int64_t elements)
{
    const int64_t n = elements / 8192;
    return n < 1 ? 1 : (int)lr_min64(n, exec->threads);
}

/* The CPU computes in f32 or bf16. */
#define LR_NEED_CPU_DTYPE(op, t)                                                                                       \
    do {                                                                                                               \
        if ((t)->dtype == LR_F16)                                                                                      \
            return lr_fail(LR_EUNSUPPORTED,                                                                            \
                           "%s: '%s' is f16; fp16 compute needs a GPU, on the CPU use precision bf16 or fp32", op,     \
                           (t)->name);                                                                                 \
    } while (0)

/* cu must rise from 0 to `tokens` by 1 to max_length a sequence: every kernel that walks sequences relies on it. */
static inline int lr_check_cu(const char *op, const lr_tensor *cu, int64_t tokens, int64_t max_length)
{
    const int32_t *c = cu->data;
    const int64_t n = cu->shape[0] - 1;
    if (c[0] != 0 || c[n] != tokens)
        return lr_fail(LR_EINVAL, "%s: %s runs from %d to %d, expected 0 to %lld (the tokens)", op, cu->name, c[0],
                       c[n], (long long)tokens);
    for (int64_t i = 0; i < n; i++)
        if (c[i + 1] <= c[i] || (int64_t)c[i + 1] - c[i] > max_length)
            return lr_fail(LR_EINVAL, "%s: sequence %lld has %lld tokens (%s), expected 1 to %lld", op, (long long)i,
                           (long long)c[i + 1] - c[i], cu->name, (long long)max_length);
    return LR_OK;
}

/* ---- functions ------------------------------------------------------------------------------------------------- */
/* e^x to 1.5 units in the last place; 0 below 2^-125, inf above the largest float, NaN for NaN. The polynomial is
 * ours: Chebyshev interpolation of (e^r - 1 - r) / r^2 on |r| <= ln(2)/2. */
static inline float lr_exp(float x)
{
    const float magic = 0x1.8p23f; /* adding it rounds to an integer and leaves that integer in the low bits */
    float z = x > 88.7228f ? 88.7228f : x;
    z = z < -87.3365f ? -87.3365f : z;
    const float shifted = z * LR_LOG2_E + magic, n = shifted - magic;
    const float r = (z - n * 0x1.62e4p-1f) - n * 1.42860677e-6f; /* ln 2 in two parts */
    float p = 1.392621347e-3f;
    p = p * r + 8.363202972e-3f;
    p = p * r + 4.166655444e-2f;
    p = p * r + 1.666657685e-1f;
    p = p * r + 0.5f;
    p = p * r * r + r + 1.0f;
    /* 2^n in two factors, for n = 128 */
    const uint32_t k = lr_bits(shifted) - lr_bits(magic);
    const float y = p * lr_float((k + 126) << 23) * 2.0f;
    const float low = x < -87.3365f ? 0.0f : y;
    return x > 88.7228f ? INFINITY : low;
}

#endif
