/* dropout.c: counter-based dropout. The mask is a function of (seed, purpose, step, the token's key, the column), so it
 * is never stored: backward draws it again. Eight columns share one Philox block, 16 bits each. */
#include "check.h"
#include "core/philox.h"
#include "cpu/vec.h"
#ifdef __SSE2__
#include <immintrin.h>
#endif

enum { GROUP = LR_DROPOUT_GROUP, BLOCK = 16 * GROUP };

/* LANES 32-bit words, each in 64 bits for the sake of its products; what stands in the upper halves does not matter.
 * WIDENING_PRODUCT takes two such and gives the 64-bit products of the lower halves: every x86 has an instruction for that which
 * compilers do not find. FRONT and BACK interleave the elements of two vectors. */
#if defined(__AVX512F__)
enum { LANES = 8 };
typedef uint64_t lanes __attribute__((vector_size(8 * LANES)));
#define WIDENING_PRODUCT(a, b) (lanes) _mm512_mul_epu32((__m512i)(a), (__m512i)(b))
#define FRONT 0, 8, 1, 9, 2, 10, 3, 11
#define BACK 4, 12, 5, 13, 6, 14, 7, 15
static const lanes COUNT = {0, 1, 2, 3, 4, 5, 6, 7};
#elif defined(__AVX2__)
enum { LANES = 4 };
typedef uint64_t lanes __attribute__((vector_size(8 * LANES)));
#define WIDENING_PRODUCT(a, b) (lanes) _mm256_mul_epu32((__m256i)(a), (__m256i)(b))
#define FRONT 0, 4, 1, 5
#define BACK 2, 6, 3, 7
static const lanes COUNT = {0, 1, 2, 3};
#else
enum { LANES = 2 };
typedef uint64_t lanes __attribute__((vector_size(8 * LANES)));
#ifdef __SSE2__
#define WIDENING_PRODUCT(a, b) (lanes) _mm_mul_epu32((__m128i)(a), (__m128i)(b))
#else
#define WIDENING_PRODUCT(a, b) (((a)&0xffffffffu) * ((b)&0xffffffffu))
#endif
#define FRONT 0, 2
#define BACK 1, 3
static const lanes COUNT = {0, 1};
#endif

/* Philox4x32-10 as in core/philox.h on the LANES counters (key, c2, c3), (key, c2, c3 + 1), ...: 8 numbers of 16 bits from
 * each, in order, the low half of a word first (on the little-endian machines this runs on). */
static inline void philox_lanes(uint64_t seed, uint64_t key, uint32_t c2, uint32_t c3, uint16_t *numbers)
{
    const lanes zero = {0}, low = zero + 0xffffffffu, m0 = zero + LR_PHILOX_M0, m1 = zero + LR_PHILOX_M1;
    lanes x0 = zero + (key & 0xffffffffu), x1 = zero + (key >> 32), x2 = zero + c2;
    lanes x3 = COUNT + c3;
    uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32);
    for (int round = 0; round < 10; round++) {
        const lanes p0 = WIDENING_PRODUCT(x0, m0), p1 = WIDENING_PRODUCT(x2, m1);
        x0 = (p1 >> 32) ^ x1 ^ k0;
        x2 = (p0 >> 32) ^ x3 ^ k1;
        x1 = p1;
        x3 = p0;
        k0 += LR_PHILOX_K0;
        k1 += LR_PHILOX_K1;
    }
    const lanes first = (x0 & low) | x1 << 32, second = (x2 & low) | x3 << 32;
    const lanes front = LR_SHUFFLE(lanes, first, second, FRONT);
    const lanes back = LR_SHUFFLE(lanes, first, second, BACK);
    memcpy(numbers, &front, sizeof front);
    memcpy(numbers + sizeof front / sizeof *numbers, &back, sizeof back);
}

int LR_CPU(dropout)(lr_exec *exec, lr_tensor *y, const lr_tensor *x, const lr_tensor *keys, double p, int64_t seed,
                    int64_t purpose, int64_t step, double beta)
{
    LR_NEED_CPU_DTYPE("dropout", x);
    const int64_t tokens = x->shape[0], width = x->shape[1];
    lr_dropout_numbers chosen = {0};
    const int status = lr_check_dropout(&chosen, width, p, purpose, step);
    if (status != LR_OK)
        return status;
    const uint32_t threshold = chosen.threshold;
    const float scale = chosen.scale, beta_f = (float)beta;
    const int64_t *key = keys->data;
    const int64_t blocks = (width + BLOCK - 1) / BLOCK;
#pragma omp parallel for num_threads(lr_threads_for(exec, 4 * x->elements)) schedule(static)
    for (int64_t t = 0; t < tokens; t++) {
        for (int64_t block = 0; block < blocks; block++) {
            const int64_t column = block * BLOCK, n = lr_min64(BLOCK, width - column);
            const int64_t from = t * x->ld + column, to = t * y->ld + column;
            uint16_t numbers[BLOCK];
            float x_run[BLOCK], y_run[BLOCK];
            const uint32_t counter = (uint32_t)purpose << 16 | (uint32_t)(column / GROUP);
            for (uint32_t group = 0; group < BLOCK / GROUP; group += LANES)
                philox_lanes((uint64_t)seed, (uint64_t)key[t], (uint32_t)step, counter + group,
                             numbers + group * GROUP);
            const float *in = lr_row_in(x, from, n, x_run);
            float *out = lr_row_out(y, to, x_run);
            if (beta_f == 0.0f) {
#pragma omp simd
                for (int64_t j = 0; j < n; j++)
                    out[j] = numbers[j] >= threshold ? in[j] * scale : 0.0f;
            } else {
                const float *old = lr_row_in(y, to, n, y_run);
#pragma omp simd
                for (int64_t j = 0; j < n; j++)
                    out[j] = (numbers[j] >= threshold ? in[j] * scale : 0.0f) + beta_f * old[j];
            }
            lr_row_done(y, to, n, out);
        }
    }
    return LR_OK;
}
