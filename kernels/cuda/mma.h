/* mma.h: tensor cores and asynchronous copies by one name on the GPU (PTX of sm_80 and later) and on the host (emulated, fragment
 * by fragment). T is bf16 or f16. All functions but cp_async16 are called by whole warps.
 *
 * Fragments of D[16,8] += A[16,16] B[16,8], with g = lane / 4 and q = lane % 4, two elements a register, the first in its low half:
 *   A: a[0] = A[g][2q, 2q+1]   a[1] = A[g+8][2q, 2q+1]   a[2] = A[g][2q+8, 2q+9]   a[3] = A[g+8][2q+8, 2q+9]
 *   B: b[0] = B[2q, 2q+1][g]   b[1] = B[2q+8, 2q+9][g]
 *   D: d[0], d[1] = D[g][2q, 2q+1]                       d[2], d[3] = D[g+8][2q, 2q+1]     in f32
 *
 * ldmatrix_x4 reads four 8x8 matrices: lane i gives the address of row i % 8 of matrix i / 8 (16 bytes, 16-byte aligned), and gets
 * in r[m] elements [g][2q, 2q+1] of matrix m, or [2q, 2q+1][g] with _trans. ldmatrix_x2 reads two, with the addresses of lanes 0 to
 * 15; those of the others count for nothing but must be in the array.
 *
 *   A of a row-major tile at p, row stride ld:       ldmatrix_x4(a, p + (lane % 16) * ld + (lane / 16) * 8)
 *   B of two n-tiles, from a tile stored [n][k]:     ldmatrix_x4(b, p + (lane % 8 + lane / 16 * 8) * ld + lane / 8 % 2 * 8)
 *                                                    b[0], b[1]: n 0..7; b[2], b[3]: n 8..15
 *   B of two n-tiles, from a tile stored [k][n]:     ldmatrix_x4_trans(b, p + (lane % 16) * ld + (lane / 16) * 8)
 *
 * cp_async16 copies 16 bytes from global to shared memory without a register in between; both are 16-byte aligned. What a thread
 * copied is there for that thread after commit and wait, for others after a barrier that follows. */
#ifndef LR_MMA_H
#define LR_MMA_H

#include "cuda/simt.h"

#ifdef __CUDACC__

static __device__ __forceinline__ uint32_t smem_address(const void *p)
{
    return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

template <class T> static __device__ __forceinline__ void mma_16816(float *d, const uint32_t *a, const uint32_t *b);
template <> __device__ __forceinline__ void mma_16816<bf16>(float *d, const uint32_t *a, const uint32_t *b)
{
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
template <> __device__ __forceinline__ void mma_16816<f16>(float *d, const uint32_t *a, const uint32_t *b)
{
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

template <class T> static __device__ __forceinline__ void ldmatrix_x4(uint32_t *r, smem<T> row)
{
    static_assert(sizeof(T) == 2, "ldmatrix reads 16-bit elements");
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(smem_address(row))
                 : "memory");
}
template <class T> static __device__ __forceinline__ void ldmatrix_x4_trans(uint32_t *r, smem<T> row)
{
    static_assert(sizeof(T) == 2, "ldmatrix reads 16-bit elements");
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(smem_address(row))
                 : "memory");
}
template <class T> static __device__ __forceinline__ void ldmatrix_x2(uint32_t *r, smem<T> row)
{
    static_assert(sizeof(T) == 2, "ldmatrix reads 16-bit elements");
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0,%1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(smem_address(row))
                 : "memory");
}
template <class T> static __device__ __forceinline__ void ldmatrix_x2_trans(uint32_t *r, smem<T> row)
{
    static_assert(sizeof(T) == 2, "ldmatrix reads 16-bit elements");
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0,%1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(smem_address(row))
                 : "memory");
}

template <class T> static __device__ __forceinline__ void cp_async16(T *to, const void *from)
{
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(smem_address(to)), "l"(from) : "memory");
}
/* The same where `take`, else 16 zero bytes; `from` is then not read, but must be an address. */
template <class T> static __device__ __forceinline__ void cp_async16_or_zero(T *to, const void *from, bool take)
{
    const int bytes = take ? 16 : 0;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(smem_address(to)), "l"(from), "r"(bytes)
                 : "memory");
}
/* Close the group of copies this thread began since the last commit. */
static __device__ __forceinline__ void cp_async_commit()
{
    asm volatile("cp.async.commit_group;" ::: "memory");
}
/* Wait until at most the N youngest groups of this thread are still under way. */
template <int N> static __device__ __forceinline__ void cp_async_wait()
{
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

#else
#include "cuda/host/mma_host.h"
#endif

#endif
