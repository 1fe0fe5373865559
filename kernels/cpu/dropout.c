/* dropout.c: counter-based dropout. The mask is a function of (seed, purpose, step, the token's key, the column), so it
 * is never stored: backward draws it again. Eight columns share one Philox block, 16 bits each. */
#include "cpu/vec.h"

enum { LANES = 16, GROUP = 8, BLOCK = LANES * GROUP };

typedef union lr_mask_numbers {
    uint32_t words[LANES * 4];
    uint16_t halves[BLOCK]; /* low half first, on the little-endian machines this runs on */
} lr_mask_numbers;

/* Philox4x32-10 as in core/philox.h on LANES counters that differ in their last word: c3, c3 + 1, ... */
static inline void philox_lanes(uint64_t seed, uint64_t key, uint32_t c2, uint32_t c3, lr_mask_numbers *out)
{
    uint32_t x0[LANES], x1[LANES], x2[LANES], x3[LANES];
    uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32);
#pragma omp simd
    for (uint32_t i = 0; i < LANES; i++) {
        x0[i] = (uint32_t)key;
        x1[i] = (uint32_t)(key >> 32);
        x2[i] = c2;
        x3[i] = c3 + i;
    }
    for (int round = 0; round < 10; round++) {
#pragma omp simd
        for (int i = 0; i < LANES; i++) {
            const uint64_t p0 = (uint64_t)0xD2511F53u * x0[i], p1 = (uint64_t)0xCD9E8D57u * x2[i];
            x0[i] = (uint32_t)(p1 >> 32) ^ x1[i] ^ k0;
            x2[i] = (uint32_t)(p0 >> 32) ^ x3[i] ^ k1;
            x1[i] = (uint32_t)p1;
            x3[i] = (uint32_t)p0;
        }
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    for (int i = 0; i < LANES; i++) {
        out->words[4 * i] = x0[i];
        out->words[4 * i + 1] = x1[i];
        out->words[4 * i + 2] = x2[i];
        out->words[4 * i + 3] = x3[i];
    }
}

int LR_CPU(dropout)(lr_exec *exec, lr_tensor *y, const lr_tensor *x, const lr_tensor *keys, double p, int64_t seed,
                    int64_t purpose, int64_t step, double beta)
{
    LR_NEED_CPU_DTYPE("dropout", x);
    const int64_t tokens = x->shape[0], width = x->shape[1];
    if (!(p >= 0.0 && p <= 1.0))
        return lr_fail(LR_EINVAL, "dropout: p is %g, expected 0 to 1", p);
    if (purpose < 0 || purpose > 0xffff || step < 0 || step > UINT32_MAX)
        return lr_fail(LR_EINVAL, "dropout: purpose %lld and step %lld must fit 16 and 32 bits", (long long)purpose,
                       (long long)step);
    if ((width - 1) / GROUP > 0xffff)
        return lr_fail(LR_EUNSUPPORTED, "dropout: rows of %lld are wider than the mask's counter allows (%d)",
                       (long long)width, 0x10000 * GROUP);
    const uint32_t threshold = (uint32_t)lround(p * 65536.0);
    const float scale = threshold < 65536 ? 65536.0f / (float)(65536 - threshold) : 0.0f, beta_f = (float)beta;
    const int64_t *key = keys->data;
    const int64_t blocks = (width + BLOCK - 1) / BLOCK;
#pragma omp parallel for num_threads(lr_threads_for(exec, 4 * x->elements)) schedule(static)
    for (int64_t t = 0; t < tokens; t++) {
        for (int64_t block = 0; block < blocks; block++) {
            const int64_t column = block * BLOCK, n = lr_min64(BLOCK, width - column), at = t * width + column;
            lr_mask_numbers numbers;
            float x_run[BLOCK], y_run[BLOCK];
            philox_lanes((uint64_t)seed, (uint64_t)key[t], (uint32_t)step,
                         (uint32_t)purpose << 16 | (uint32_t)(column / GROUP), &numbers);
            const float *in = lr_row_in(x, at, n, x_run);
            float *out = lr_row_out(y, at, x_run);
            if (beta_f == 0.0f) {
#pragma omp simd
                for (int64_t j = 0; j < n; j++)
                    out[j] = numbers.halves[j] >= threshold ? in[j] * scale : 0.0f;
            } else {
                const float *old = lr_row_in(y, at, n, y_run);
#pragma omp simd
                for (int64_t j = 0; j < n; j++)
                    out[j] = (numbers.halves[j] >= threshold ? in[j] * scale : 0.0f) + beta_f * old[j];
            }
            lr_row_done(y, at, n, out);
        }
    }
    return LR_OK;
}
