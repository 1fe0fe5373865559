/* philox.h: Philox4x32-10, the counter-based generator of Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2,
 * 3" (SC'11). kernels/cpu/dropout.c has its rounds for vectors of counters, kernels/cuda/dropout.cu for the GPU, both with these
 * constants, hence the same bits. */
#ifndef LR_PHILOX_H
#define LR_PHILOX_H

#include <stdint.h>

/* Two multipliers, and what the two words of the key grow by in each round. */
#define LR_PHILOX_M0 0xD2511F53u
#define LR_PHILOX_M1 0xCD9E8D57u
#define LR_PHILOX_K0 0x9E3779B9u
#define LR_PHILOX_K1 0xBB67AE85u

static inline void lr_philox4x32(uint32_t k0, uint32_t k1, uint32_t c[4])
{
    for (int round = 0; round < 10; round++) {
        const uint64_t p0 = (uint64_t)LR_PHILOX_M0 * c[0], p1 = (uint64_t)LR_PHILOX_M1 * c[2];
        const uint32_t n0 = (uint32_t)(p1 >> 32) ^ c[1] ^ k0, n2 = (uint32_t)(p0 >> 32) ^ c[3] ^ k1;
        c[1] = (uint32_t)p1;
        c[3] = (uint32_t)p0;
        c[0] = n0;
        c[2] = n2;
        k0 += LR_PHILOX_K0;
        k1 += LR_PHILOX_K1;
    }
}

#endif
