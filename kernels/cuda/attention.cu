/* attention.cu: softmax(scale q k') v over packed sequences of unequal lengths, grouped heads, causal or not: the forward.
 *
 *   s = scale q k', hidden where the mask is   lse = log sum exp s   p = exp(s - lse)   o = p v
 *
 * A block has 64 queries of one head, 16 a warp, and goes through the keys 64 at a time. Queries stay in registers as fragments, so
 * do the sums of the output; scores become probabilities where they lie and are the left operand of the product with v. Tiles of k
 * and v come in turn through a ring of three: while one is worked on the two after it are under way, and one barrier for each tile
 * means both that the next has arrived and that the last may be overwritten. Only the last tile of keys has any to hide. Softmax
 * runs in powers of two with a running maximum; the sum of a row is put together from its four lanes at the end.
 *
 * Rounding: probabilities to 16 bits before they meet v (their sum is of the unrounded), the output once; all else is f32.
 *
 * head_dim          32     64     96    128
 * shared memory     12     24     36     48 KiB a block of 128 threads: the ring, whose third tile holds the queries at first
 *
 * Work: 4 head_dim FLOP and an exponential for each query and key that it sees (n^2 pairs a head, half of them when causal). Bytes:
 * q, k, v, o and lse once, k and v again out of the L2 cache for every 64 queries of a head (a byte for 64 FLOP). Bound: sequences
 * of some hundred tokens and less by memory; longer ones by tensor cores and shared memory about equally, for a warp's 16 rows use
 * a fragment of k or v once: 16 bytes a lane for every two mma, which is all of an A100's dense rate and half of an H100's. At
 * head_dim 32 the exponentials (16 a clock and SM) take as long as an A100's products. None of this was measured on a GPU. */
#include "cuda/attention_tile.h"

namespace
{

constexpr int KEYS = 64, RING = 3;

__device__ __forceinline__ int next_in_ring(int stage)
{
    return stage + 1 == RING ? 0 : stage + 1;
}

/* One row of a query as the two rows of a lane are kept: its running maximum (of unscaled scores) and this lane's part of the sum.
 * */
struct softmax_row {
    float highest, total;
};

/* Turn scores into probabilities relative to the highest yet seen, and bring what was summed before to that. */
template <int DIM>
__device__ __forceinline__ void softmax_step(float (&s)[KEYS / 8][4], float (&o)[DIM / 8][4], softmax_row (&rows)[2],
                                             float factor)
{
#pragma unroll
    for (int half = 0; half < 2; half++) {
        softmax_row &row = rows[half];
        float highest = row.highest;
#pragma unroll
        for (int n = 0; n < KEYS / 8; n++)
            highest = fmaxf(highest, fmaxf(s[n][2 * half], s[n][2 * half + 1]));
        highest = quad_max(highest);
        const float shrink = fast_exp2((row.highest - highest) * factor), offset = highest * factor;
        float sum = 0.0f;
#pragma unroll
        for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
            for (int i = 2 * half; i < 2 * half + 2; i++) {
                s[n][i] = fast_exp2(s[n][i] * factor - offset);
                sum += s[n][i];
            }
        row.total = row.total * shrink + sum;
        row.highest = highest;
#pragma unroll
        for (int n = 0; n < DIM / 8; n++) {
            o[n][2 * half] *= shrink;
            o[n][2 * half + 1] *= shrink;
        }
    }
}

template <class T, int DIM>
__global__ void __launch_bounds__(TILE_THREADS, DIM > 64 ? 2 : 3) attention_kernel(const attention_operands<T> a)
{
    SIMT_DYNAMIC_SHARED(T, ring);
    constexpr int STAGE = KEYS * DIM;
    static_assert(KEYS == TILE_ROWS, "the queries fit where a tile of keys does");
    const attention_batch &batch = a.batch;
    const int head = static_cast<int>(blockIdx.x) % batch.heads;
    sequence_tile tile;
    if (!find_tile<TILE_ROWS>(batch, blockIdx.x / static_cast<unsigned>(batch.heads), head == 0, &tile))
        return;
    /* Causal: the later the queries, the more keys they see. Those come first, so that no long block is left at the end. */
    const int first = (tile.count - 1 - tile.number) * TILE_ROWS, left = tile.length - first;
    const int visible = batch.causal ? min(tile.length, first + TILE_ROWS) : tile.length;
    const int tiles = (visible + KEYS - 1) / KEYS, column = head * DIM, kv_column = head / batch.group * DIM;
    auto copy_keys = [&](int stage, const head_rows<const T> &rows, int j) {
        if (j < tiles)
            copy_tile<DIM, KEYS>(ring + stage * STAGE, rows.at(tile.start + j * KEYS, kv_column), rows.ld,
                                 tile.length - j * KEYS);
        cp_async_commit();
    };
    copy_tile<DIM, TILE_ROWS>(ring + 2 * STAGE, a.q.at(tile.start + first, column), a.q.ld, left);
    copy_keys(0, a.k, 0);
    copy_keys(1, a.v, 0);

    const int lane = static_cast<int>(threadIdx.x % WARP);
    const int row = static_cast<int>(threadIdx.x / WARP) * WARP_ROWS; /* of the warp, within the tile */
    const bool busy = row < left; /* else the sequence ends before this warp's rows */
    uint32_t q[DIM / 16][4];
    cp_async_wait<1>();
    __syncthreads();
    load_left<DIM>(q, ring + 2 * STAGE, row);
    /* The maximum of scaled scores is that of the scores only where the scale is positive. */
    if (batch.scale < 0.0f) {
#pragma unroll
        for (int i = 0; i < DIM / 16; i++)
#pragma unroll
            for (int j = 0; j < 4; j++)
                q[i][j] ^= 0x80008000u;
    }
    const float factor = fabsf(batch.scale) * LR_LOG2_E;

    float o[DIM / 8][4] = {};
    softmax_row rows[2] = {{-INFINITY, 0.0f}, {-INFINITY, 0.0f}};
    for (int j = 0, stage = 0; j < tiles; j++) {
        float s[KEYS / 8][4];
        cp_async_wait<1>();
        __syncthreads(); /* k has arrived; the tile before it has been read */
        copy_keys(next_in_ring(next_in_ring(stage)), a.k, j + 1);
        if (busy) {
            product_with_rows<DIM, KEYS>(s, q, ring + stage * STAGE);
            if (j == tiles - 1) {
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    const int query = first + row + lane / 4 + i / 2 * 8;
                    const int end = batch.causal ? min(query + 1, tile.length) : tile.length;
#pragma unroll
                    for (int n = 0; n < KEYS / 8; n++)
                        if (j * KEYS + n * 8 + lane % 4 * 2 + i % 2 >= end)
                            s[n][i] = -INFINITY;
                }
            }
            softmax_step<DIM>(s, o, rows, factor);
        }
        stage = next_in_ring(stage);
        cp_async_wait<1>();
        __syncthreads(); /* v has arrived, k has been read */
        copy_keys(next_in_ring(next_in_ring(stage)), a.v, j + 1);
        if (busy)
            add_product<DIM, KEYS>(o, s, ring + stage * STAGE);
        stage = next_in_ring(stage);
    }
    __syncthreads(); /* the ring is free */
    if (!busy)
        return;
    float inverse[2];
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const float total = quad_sum(rows[half].total);
        const int query = row + lane / 4 + half * 8;
        inverse[half] = 1.0f / total;
        if (lane % 4 == 0 && query < left)
            a.lse[(tile.start + first + query) * batch.heads + head] =
                LR_LN_2 * (rows[half].highest * factor + log2f(total));
    }
    store_rows<DIM>(a.o.at(tile.start + first + row, column), a.o.ld, left - row, o, inverse[0], inverse[1],
                    ring + row * DIM);
}

template <class T, int DIM> int launch(simt_stream stream, const attention_operands<T> &a)
{
    return simt_launch("attention", attention_kernel<T, DIM>, attention_grid<TILE_ROWS>(a.batch, a.batch.heads),
                       dim3(TILE_THREADS), RING * KEYS * DIM * sizeof(T), stream, a);
}

} // namespace

int lr_cuda_attention(lr_exec *exec, lr_tensor *o, lr_tensor *lse, const lr_tensor *q, const lr_tensor *k,
                      const lr_tensor *v, const lr_tensor *cu, int64_t head_dim, int64_t max_length, double scale,
                      int64_t causal)
{
    attention_batch batch;
    const int status = attention_batch_of(&batch, exec, "attention", LR_FAULT_ATTENTION, q, k, lse, cu, head_dim,
                                          max_length, scale, causal);
    if (status != LR_OK)
        return status;
    return by_dtype(q->dtype, [&](auto t) {
        typedef decltype(t) T;
        const attention_operands<T> a = {batch,
                                         rows_of_heads<T>(o),
                                         data_of<float>(lse),
                                         rows_of_heads<const T>(q),
                                         rows_of_heads<const T>(k),
                                         rows_of_heads<const T>(v)};
        const simt_stream stream = stream_of(exec);
        return by_head_dim<T>(
            batch.dim, aligned(2, o, q, k, v), [&](auto dim) { return launch<T, decltype(dim)::value>(stream, a); },
            [&] { return attention_plain(stream, a); });
    });
}
