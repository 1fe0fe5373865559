/* mma_host.h: the host half of mma.h. Operands go through the warp's exchange, so that a lane that does not take part is found.
 * Products of 16-bit numbers are exact in f32; they are added in the order of k. */
#ifndef LR_MMA_HOST_H
#define LR_MMA_HOST_H

#include "cuda/simt.h"

namespace simt
{

/* Lane `lane` gets elements [g][2q], [g][2q+1] (or their transposes) of each matrix. */
template <class T>
static inline void ldmatrix(uint32_t *r, smem<T> row, int matrices, bool transposed, const char *file, int line)
{
    static_assert(sizeof(T) == 2, "ldmatrix reads 16-bit elements");
    T *const mine = row.address();
    if (reinterpret_cast<uintptr_t>(mine) % 16 != 0)
        fault("ldmatrix: a row's address is not a multiple of 16 (line %d)", line);
    const deposits d = exchange(0xffffffffu, &mine, sizeof mine, false, file, line);
    const int g = lane() / 4, q = lane() % 4;
    for (int m = 0; m < matrices; m++) {
        if (!transposed) {
            const T *p = shuffled<T *>(d, m * 8 + g) + 2 * q;
            note_read(row.array(), p, 2 * sizeof(T), sizeof(T));
            memcpy(&r[m], p, sizeof r[m]);
            continue;
        }
        uint16_t value[2];
        for (int j = 0; j < 2; j++) {
            const T *p = shuffled<T *>(d, m * 8 + 2 * q + j) + g;
            note_read(row.array(), p, sizeof(T), sizeof(T));
            memcpy(&value[j], p, sizeof value[j]);
        }
        r[m] = value[0] | static_cast<uint32_t>(value[1]) << 16;
    }
}

} // namespace simt

template <class T> static inline void mma_16816(float *d, const uint32_t *a, const uint32_t *b, SIMT_PLACE)
{
    float mine[12]; /* the elements of a[0] to a[3], then of b[0] and b[1] */
    for (int i = 0; i < 6; i++) {
        const float2 two = unpack2<T>(i < 4 ? a[i] : b[i - 4]);
        mine[2 * i] = two.x;
        mine[2 * i + 1] = two.y;
    }
    const simt::deposits all = simt::exchange(0xffffffffu, mine, sizeof mine, false, file, line);
    if (all.lanes != 0xffffffffu)
        simt::fault("mma (line %d): not all 32 lanes take part", line);
    const int g = simt::lane() / 4, q = simt::lane() % 4;
    float rows[2][16],
        columns[2][16]; /* A[g], A[g + 8]; B[][2q], B[][2q + 1]: two neighbours in k come from one lane */
    for (int k = 0; k < 16; k += 2)
        for (int i = 0; i < 2; i++) {
            const int pair = k % 8 / 2, upper = k / 8;
            memcpy(&rows[i][k], all.of[g * 4 + pair] + (4 * upper + 2 * i) * sizeof(float), 2 * sizeof(float));
            memcpy(&columns[i][k], all.of[(2 * q + i) * 4 + pair] + (8 + 2 * upper) * sizeof(float), 2 * sizeof(float));
        }
    for (int i = 0; i < 4; i++)
        for (int k = 0; k < 16; k++)
            d[i] += rows[i / 2][k] * columns[i % 2][k];
}

template <class T> static inline void ldmatrix_x4(uint32_t *r, smem<T> row, SIMT_PLACE)
{
    simt::ldmatrix(r, row, 4, false, file, line);
}
template <class T> static inline void ldmatrix_x4_trans(uint32_t *r, smem<T> row, SIMT_PLACE)
{
    simt::ldmatrix(r, row, 4, true, file, line);
}
template <class T> static inline void ldmatrix_x2(uint32_t *r, smem<T> row, SIMT_PLACE)
{
    simt::ldmatrix(r, row, 2, false, file, line);
}
template <class T> static inline void ldmatrix_x2_trans(uint32_t *r, smem<T> row, SIMT_PLACE)
{
    simt::ldmatrix(r, row, 2, true, file, line);
}

template <class T> static inline void cp_async16(smem<T> to, const void *from)
{
    simt::copy_begin(to.array(), to.address(), from);
}
template <class T> static inline void cp_async16_or_zero(smem<T> to, const void *from, bool take)
{
    simt::copy_begin(to.array(), to.address(), take ? from : nullptr);
}
static inline void cp_async_commit()
{
    simt::copy_commit();
}
template <int N> static inline void cp_async_wait()
{
    simt::copy_wait(N);
}

#endif
