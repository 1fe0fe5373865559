/* dropout.cu: counter-based dropout with the CPU's masks, bit for bit (kernels/cpu/dropout.c): eight neighbouring columns share one
 * Philox block, 16 bits each, and those eight are one thread's work.
 *
 * Bytes an element of size s: 2s, 3s with beta. Philox is some 80 integer instructions for eight elements, so the kernel is limited
 * by memory. */
#include "core/philox.h"
#include "cuda/vec.h"

namespace
{

/* lr_philox4x32 of core/philox.h, on the GPU. */
__device__ __forceinline__ void philox4x32(uint32_t k0, uint32_t k1, uint32_t (&c)[4])
{
#pragma unroll
    for (int round = 0; round < 10; round++) {
        const uint64_t p0 = static_cast<uint64_t>(LR_PHILOX_M0) * c[0], p1 = static_cast<uint64_t>(LR_PHILOX_M1) * c[2];
        const uint32_t n0 = static_cast<uint32_t>(p1 >> 32) ^ c[1] ^ k0,
                       n2 = static_cast<uint32_t>(p0 >> 32) ^ c[3] ^ k1;
        c[1] = static_cast<uint32_t>(p1);
        c[3] = static_cast<uint32_t>(p0);
        c[0] = n0;
        c[2] = n2;
        k0 += LR_PHILOX_K0;
        k1 += LR_PHILOX_K1;
    }
}

template <class T> struct dropout_body {
    T *y;
    const T *x;
    const int64_t *keys;
    int64_t y_ld, x_ld;
    uint32_t seed_low, seed_high, step, purpose, threshold;
    float scale, beta;
    template <bool ALIGNED> __device__ void run(int64_t row, int64_t column, int n) const
    {
        const uint64_t key = static_cast<uint64_t>(keys[row]);
        uint32_t c[4] = {static_cast<uint32_t>(key), static_cast<uint32_t>(key >> 32), step,
                         purpose << 16 | static_cast<uint32_t>(column / EIGHT)};
        philox4x32(seed_low, seed_high, c);
        float v[EIGHT], old[EIGHT];
        load8<ALIGNED>(v, x + row * x_ld + column, n);
#pragma unroll
        for (int i = 0; i < EIGHT; i++) {
            const uint32_t number = i % 2 != 0 ? c[i / 2] >> 16 : c[i / 2] & 0xffff;
            v[i] = number >= threshold ? v[i] * scale : 0.0f;
        }
        if (beta != 0.0f) {
            load8<ALIGNED>(old, y + row * y_ld + column, n);
            for (int i = 0; i < EIGHT; i++)
                v[i] += beta * old[i];
        }
        store8<ALIGNED>(y + row * y_ld + column, v, n);
    }
};

} // namespace

int lr_cuda_dropout(lr_exec *exec, lr_tensor *y, const lr_tensor *x, const lr_tensor *keys, double p, int64_t seed,
                    int64_t purpose, int64_t step, double beta)
{
    lr_dropout_numbers numbers = {};
    const int status = lr_check_dropout(&numbers, x->shape[1], p, purpose, step);
    if (status != LR_OK)
        return status;
    return by_dtype(x->dtype, [&](auto t) {
        typedef decltype(t) T;
        const uint64_t bits = static_cast<uint64_t>(seed);
        const dropout_body<T> body = {data_of<T>(y),
                                      data_of<T>(x),
                                      data_of<int64_t>(keys),
                                      y->ld,
                                      x->ld,
                                      static_cast<uint32_t>(bits),
                                      static_cast<uint32_t>(bits >> 32),
                                      static_cast<uint32_t>(step),
                                      static_cast<uint32_t>(purpose),
                                      numbers.threshold,
                                      numbers.scale,
                                      static_cast<float>(beta)};
        return for_each_8(exec, "dropout", body, x->shape[0], x->shape[1], aligned(2, y, x));
    });
}
