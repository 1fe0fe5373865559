/* mma_host.h: the host half of mma.h. Operands go through the warp's exchange, so that a lane that stays away is found. Products of
 * 16-bit numbers are exact in f32; they are added in the order of k. */
#ifndef LR_MMA_HOST_H
#define LR_MMA_HOST_H

#include "cuda/simt.h"

namespace simt
{

/* Half `half` of register r of a lane's deposit. */
template <class T> static inline float operand(const deposits &d, int of_lane, int r, int half)
{
    T value;
    memcpy(&value, d.of[of_lane] + 4 * r + 2 * half, sizeof value);
    return to_float(value);
}

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
        uint16_t value[2];
        for (int j = 0; j < 2; j++) {
            const int at_row = transposed ? 2 * q + j : g, at_column = transposed ? g : 2 * q + j;
            T *p = shuffled<T *>(d, m * 8 + at_row);
            p += at_column;
            note_read(row.array(), p, sizeof(T), sizeof(T));
            memcpy(&value[j], p, sizeof value[j]);
        }
        r[m] = value[0] | static_cast<uint32_t>(value[1]) << 16;
    }
}

} // namespace simt

template <class T> static inline void mma_16816(float *d, const uint32_t *a, const uint32_t *b, SIMT_PLACE)
{
    const uint32_t mine[6] = {a[0], a[1], a[2], a[3], b[0], b[1]};
    const simt::deposits all = simt::exchange(0xffffffffu, mine, sizeof mine, false, file, line);
    if (all.lanes != 0xffffffffu)
        simt::fault("mma (line %d): not all 32 lanes take part", line);
    const int g = simt::lane() / 4, q = simt::lane() % 4;
    for (int i = 0; i < 4; i++) {
        const int row = g + 8 * (i / 2), column = 2 * q + i % 2;
        float sum = d[i];
        for (int k = 0; k < 16; k++) {
            const int lane_of_k = k % 8 / 2;
            sum += simt::operand<T>(all, row % 8 * 4 + lane_of_k, row / 8 + 2 * (k / 8), k % 2) *
                   simt::operand<T>(all, column * 4 + lane_of_k, 4 + k / 8, k % 2);
        }
        d[i] = sum;
    }
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
