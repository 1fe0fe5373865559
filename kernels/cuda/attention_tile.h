/* attention_tile.h: 16-bit tiles in shared memory, and the products of tensor cores that attention is made of.
 *
 * A tile is rows of DIM elements, in chunks of 16 bytes. Rows follow each other without a gap, but where a chunk lies in its row
 * depends on the row's number (`chunk_place`), so that none of these meets a bank twice: the copies into a tile (8 consecutive
 * chunks at a time), ldmatrix (the same chunk of 8 rows that begin at a multiple of 8) and the stores of results (4 bytes a lane, 8
 * rows of one chunk). With 8 k chunks a row, each row begins at bank 0: the chunk's number is xored with the row's, modulo 8. With
 * 8 k + 4, odd rows begin in the middle of the banks: only the other three bits of the row are left to tell apart, of which two go
 * into the chunk's number.
 *
 * A block has four warps; each has 16 rows of the left operand and all columns of the right one. Fragments are mma.h's: the
 * result `d` of a product, rounded and packed, is the left operand of the next one, without a way through shared memory. */
#ifndef LR_CUDA_ATTENTION_TILE_H
#define LR_CUDA_ATTENTION_TILE_H

#include "cuda/attention.h"
#include "cuda/mma.h"
#include <type_traits>

static constexpr int TILE_THREADS = 128, WARP_ROWS = 16, TILE_ROWS = TILE_THREADS / WARP * WARP_ROWS;
static constexpr int CHUNK = 8; /* elements */

/* Where in its row the chunk `chunk` lies. Depends on row % 8 alone. */
template <int DIM> static __device__ __forceinline__ int chunk_place(int row, int chunk)
{
    static_assert(DIM % 32 == 0, "a row is a whole number of quarters of the banks");
    return DIM % 64 == 0 ? chunk ^ (row & 7) : chunk ^ (row >> 1 & 3);
}

/* Begin to copy rows of a head from global memory, ROWS of them, of which `present` are there; the others become 0. Four or eight
 * lanes read a row side by side, so that what differs from one copy of a thread to its next is a constant or a multiple of ld. */
template <int DIM, int ROWS, class T>
static __device__ __forceinline__ void copy_tile(smem<T> tile, const T *from, int64_t ld, int present)
{
    constexpr int LANES = DIM % 64 == 0 ? 8 : 4, ROWS_AT_ONCE = TILE_THREADS / LANES;
    static_assert(ROWS % ROWS_AT_ONCE == 0, "every thread copies as many chunks");
    const int row = static_cast<int>(threadIdx.x) / LANES, chunk = static_cast<int>(threadIdx.x) % LANES;
    const smem<T> to = tile + (row * DIM + chunk_place<DIM>(row, chunk) * CHUNK);
    from += row * ld + chunk * CHUNK;
#pragma unroll
    for (int i = 0; i < ROWS; i += ROWS_AT_ONCE) {
#pragma unroll
        for (int j = 0; j < DIM; j += LANES * CHUNK)
            cp_async16_or_zero(to + (i * DIM + j), from + j, row + i < present);
        from += ROWS_AT_ONCE * ld;
    }
}

/* ---- fragments --------------------------------------------------------------------------------------------------------- */
/* The row and chunk of a lane's address in ldmatrix, in a tile of 16 by 16. */
struct lane_place {
    int row, chunk;
};
/* For a left operand, and for a right one whose rows are the depth (then with _trans). */
static __device__ __forceinline__ lane_place down_the_rows()
{
    const int lane = static_cast<int>(threadIdx.x % WARP);
    return {lane % 16, lane / 16};
}
/* For a right operand whose columns are the depth. */
static __device__ __forceinline__ lane_place along_the_rows()
{
    const int lane = static_cast<int>(threadIdx.x % WARP);
    return {lane % 8 + lane / 16 * 8, lane / 8 % 2};
}

/* A lane's address for the 16 by 16 elements at (row, 16 column) of a tile; row is a multiple of 8. */
template <int DIM, class T>
static __device__ __forceinline__ smem<T> fragment_at(smem<T> tile, lane_place lane, int row, int column)
{
    /* chunk_place(row + lane.row, 2 column + lane.chunk), in such a form that all but the lane's part is a constant */
    const int place = 2 * column ^ chunk_place<DIM>(lane.row, lane.chunk);
    return tile + (row * DIM + lane.row * DIM + place * CHUNK);
}

/* The 16 rows of this warp as left operands: fragment i holds columns 16 i to 16 i + 15. */
template <int DIM, class T>
static __device__ __forceinline__ void load_left(uint32_t (&a)[DIM / 16][4], smem<T> tile, int row)
{
    const lane_place lane = down_the_rows();
#pragma unroll
    for (int i = 0; i < DIM / 16; i++)
        ldmatrix_x4(a[i], fragment_at<DIM>(tile, lane, row, i));
}

/* d[16, N] += a[16, 16] b', b' being columns 16 i to 16 i + 15 of N rows of a tile. */
template <int DIM, int N, class T>
static __device__ __forceinline__ void multiply_by_rows(float (&d)[N / 8][4], const uint32_t (&a)[4], smem<T> tile,
                                                        lane_place lane, int i)
{
#pragma unroll
    for (int n = 0; n < N / 16; n++) {
        uint32_t b[4];
        ldmatrix_x4(b, fragment_at<DIM>(tile, lane, n * 16, i));
        mma_16816<T>(d[2 * n], a, b);
        mma_16816<T>(d[2 * n + 1], a, b + 2);
    }
}

/* d[16, N] = a[16, DIM] b', b the N rows of a tile. */
template <int DIM, int N, class T>
static __device__ __forceinline__ void product_with_rows(float (&d)[N / 8][4], const uint32_t (&a)[DIM / 16][4],
                                                         smem<T> tile)
{
    const lane_place lane = along_the_rows();
#pragma unroll
    for (int n = 0; n < N / 8; n++)
        d[n][0] = d[n][1] = d[n][2] = d[n][3] = 0.0f;
#pragma unroll
    for (int i = 0; i < DIM / 16; i++)
        multiply_by_rows<DIM, N>(d, a[i], tile, lane, i);
}

/* The same with a left operand that stays in shared memory: 16 rows of a tile from `row` on. */
template <int DIM, int N, class T>
static __device__ __forceinline__ void product_of_rows(float (&d)[N / 8][4], smem<T> left, int row, smem<T> tile)
{
    const lane_place lane = along_the_rows(), left_lane = down_the_rows();
#pragma unroll
    for (int n = 0; n < N / 8; n++)
        d[n][0] = d[n][1] = d[n][2] = d[n][3] = 0.0f;
#pragma unroll
    for (int i = 0; i < DIM / 16; i++) {
        uint32_t a[4];
        ldmatrix_x4(a, fragment_at<DIM>(left, left_lane, row, i));
        multiply_by_rows<DIM, N>(d, a, tile, lane, i);
    }
}

/* d[16, DIM] += a[16, N] b, b the N rows of a tile, a a product's result: rounded to T here. */
template <int DIM, int N, class T>
static __device__ __forceinline__ void add_product(float (&d)[DIM / 8][4], const float (&a)[N / 8][4], smem<T> tile)
{
    const lane_place lane = down_the_rows();
#pragma unroll
    for (int i = 0; i < N / 16; i++) {
        const uint32_t left[4] = {pack2<T>(a[2 * i][0], a[2 * i][1]), pack2<T>(a[2 * i][2], a[2 * i][3]),
                                  pack2<T>(a[2 * i + 1][0], a[2 * i + 1][1]),
                                  pack2<T>(a[2 * i + 1][2], a[2 * i + 1][3])};
#pragma unroll
        for (int n = 0; n < DIM / 16; n++) {
            uint32_t b[4];
            ldmatrix_x4_trans(b, fragment_at<DIM>(tile, lane, i * 16, n));
            mma_16816<T>(d[2 * n], left, b);
            mma_16816<T>(d[2 * n + 1], left, b + 2);
        }
    }
}

/* ---- results ----------------------------------------------------------------------------------------------------------- */
/* Sum and maximum over the four lanes that share a row of a result. */
static __device__ __forceinline__ float quad_sum(float x)
{
    x += __shfl_xor_sync(ALL_LANES, x, 1);
    return x + __shfl_xor_sync(ALL_LANES, x, 2);
}
static __device__ __forceinline__ float quad_max(float x)
{
    x = fmaxf(x, __shfl_xor_sync(ALL_LANES, x, 1));
    return fmaxf(x, __shfl_xor_sync(ALL_LANES, x, 2));
}

/* The first `present` of 16 rows of a head = d, times the factor of the lane's upper and lower row. By way of `room`, 16 rows of
 * shared memory that nobody else uses, so that global memory is written 16 bytes a lane. */
template <int DIM, class T>
static __device__ __forceinline__ void store_rows(T *to, int64_t ld, int present, const float (&d)[DIM / 8][4],
                                                  float upper, float lower, smem<T> room)
{
    constexpr int CHUNKS = DIM / CHUNK;
    const int lane = static_cast<int>(threadIdx.x % WARP), row = lane / 4, pair = lane % 4;
#pragma unroll
    for (int n = 0; n < CHUNKS; n++) {
        const smem<uint32_t> pairs =
            smem_cast<uint32_t>(room + (row * DIM + chunk_place<DIM>(row, n) * CHUNK + pair * 2));
        pairs[0] = pack2<T>(d[n][0] * upper, d[n][1] * upper);
        pairs[8 * DIM / 2] = pack2<T>(d[n][2] * lower, d[n][3] * lower);
    }
    __syncwarp();
#pragma unroll
    for (int i = 0; i < 16 * CHUNKS / WARP; i++) {
        const int n = i * WARP + lane, of_row = n / CHUNKS, chunk = n % CHUNKS;
        if (of_row < present) {
            const uint4 eight = smem_cast<uint4>(room + (of_row * DIM + chunk_place<DIM>(of_row, chunk) * CHUNK))[0];
            __stwb(reinterpret_cast<uint4 *>(to + of_row * ld + chunk * CHUNK), eight);
        }
    }
    __syncwarp(); /* before room is written again */
}

/* The host's side: tiled(dim) with a constant dim where there are tiles for it, of 16-bit rows in whole chunks; else plain(). */
template <class T, class Tiled, class Plain> int by_head_dim(int dim, bool chunks, Tiled tiled, Plain plain)
{
    if constexpr (sizeof(T) == 2) {
        switch (chunks ? dim : 0) {
        case 32:
            return tiled(std::integral_constant<int, 32>());
        case 64:
            return tiled(std::integral_constant<int, 64>());
        case 96:
            return tiled(std::integral_constant<int, 96>());
        case 128:
            return tiled(std::integral_constant<int, 128>());
        }
    }
    return plain();
}

#endif
