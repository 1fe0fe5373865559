/* attention_backward.cu: the gradients of attention (attention.cu), in two passes, so that every sum has one writer and one order.
 *
 *   s = scale log2(e) q k'   p = 2^(s - lse)   dp = do v'   ds = p (dp - sum(do o))   dq = scale ds k   dk = scale ds' q   dv = p' do
 *
 * The pass over queries: a block has 64 queries of one head, q and do in registers as fragments, and goes through k and v 32 rows
 * at a time, in a ring of four. It makes dq, and each query's lse and sum(do o) for the other pass.
 *
 * The pass over keys: a block has 64 keys of one head of k and v, both in shared memory, and goes through q and do of all query
 * heads of its group, 32 rows at a time, in a ring of three. Scores are transposed there (keys are the rows), so that p' and ds'
 * come out of one product as the left operands of the next. Both passes make the probabilities again: seven products where five
 * would do, which is the price of needing no atomics.
 *
 * Rounding: p and ds to 16 bits before they meet do, k and q; dq, dk, dv once; all else is f32.
 *
 * head_dim                    32     64     96    128
 * shared memory, queries      16     32     48     64 KiB a block of 128 threads
 * shared memory, keys      20.75  40.75  60.75  80.75 KiB: two blocks fit into the 164 KiB of an A100
 *
 * Work for each query and key that it sees: 6 head_dim FLOP in the pass over queries, 8 in the one over keys, an exponential in
 * each. Bytes: queries q, do, o, dq and lse once, k and v from the L2 cache for every 64 queries of a head; keys k, v, dk, dv once,
 * q and do from the L2 cache for every 64 keys of a head of k and v. Bound: as in the forward, short sequences by memory; long ones
 * by shared memory. With head_dim 128 and 32 rows of the other side, the pass over queries reads 48 fragments of 512 bytes a warp
 * for 96 mma, as fast as an A100 multiplies; the one over keys 80 (64, and k and v once more, which registers do not hold) for 128
 * mma, four fifths of that. None of this was measured on a GPU. */
#include "cuda/attention_tile.h"

namespace
{

constexpr int STEP = 32; /* rows of the other side at a time */

/* ---- the pass over queries --------------------------------------------------------------------------------------------- */
constexpr int QUERY_RING = 4;

template <class T, int DIM>
__global__ void __launch_bounds__(TILE_THREADS, DIM > 64 ? 2 : 3) queries_kernel(const attention_backward_operands<T> a)
{
    SIMT_DYNAMIC_SHARED(T, ring);
    constexpr int STAGE = 2 * STEP * DIM, HALF = STEP * DIM;
    static_assert(STAGE == TILE_ROWS * DIM, "a stage has room for a tile of q, do or o");
    const attention_batch &batch = a.batch;
    const int head = static_cast<int>(blockIdx.x) % batch.heads;
    sequence_tile tile;
    if (!find_tile<TILE_ROWS>(batch, blockIdx.x / static_cast<unsigned>(batch.heads), head == 0, &tile))
        return;
    const int number = tile.count - 1 - tile.number; /* causal: those that see most first */
    const int first = number * TILE_ROWS, left = tile.length - first;
    const int visible = batch.causal ? min(tile.length, first + TILE_ROWS) : tile.length;
    const int steps = (visible + STEP - 1) / STEP, column = head * DIM, kv_column = head / batch.group * DIM;
    /* Step j is in stage (j + 3) % 4: the first in the one that the block's own rows leave free. */
    auto copy_keys = [&](int j) {
        if (j < steps) {
            const smem<T> stage = ring + (j + 3) % QUERY_RING * STAGE;
            const int64_t row = tile.start + j * STEP;
            copy_tile<DIM, STEP>(stage, a.k.at(row, kv_column), a.k.ld, tile.length - j * STEP);
            copy_tile<DIM, STEP>(stage + HALF, a.v.at(row, kv_column), a.v.ld, tile.length - j * STEP);
        }
        cp_async_commit();
    };
    copy_tile<DIM, TILE_ROWS>(ring, a.q.at(tile.start + first, column), a.q.ld, left);
    copy_tile<DIM, TILE_ROWS>(ring + STAGE, a.d_o.at(tile.start + first, column), a.d_o.ld, left);
    copy_tile<DIM, TILE_ROWS>(ring + 2 * STAGE, a.o.at(tile.start + first, column), a.o.ld, left);
    cp_async_commit();
    copy_keys(0);

    const int lane = static_cast<int>(threadIdx.x % WARP);
    const int row = static_cast<int>(threadIdx.x / WARP) * WARP_ROWS; /* of the warp, within the tile */
    uint32_t q[DIM / 16][4], d_o[DIM / 16][4];
    float log2_sum[2], along[2] = {0.0f, 0.0f};
    cp_async_wait<1>();
    __syncthreads();
    load_left<DIM>(q, ring, row);
    load_left<DIM>(d_o, ring + STAGE, row);
#pragma unroll
    for (int i = 0; i < DIM / 16; i++) {
        uint32_t o[4];
        ldmatrix_x4(o, fragment_at<DIM>(ring + 2 * STAGE, down_the_rows(), row, i));
#pragma unroll
        for (int j = 0; j < 4; j++) {
            const float2 x = unpack2<T>(o[j]), y = unpack2<T>(d_o[i][j]);
            along[j % 2] += x.x * y.x + x.y * y.y;
        }
    }
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const int query = row + lane / 4 + half * 8;
        along[half] = quad_sum(along[half]);
        log2_sum[half] = query < left ? a.lse[(tile.start + first + query) * batch.heads + head] * LR_LOG2_E : INFINITY;
        if (lane % 4 == 0)
            a.statistics[(head * a.slots + tile.first_slot) * TILE_ROWS + first + query] = {log2_sum[half],
                                                                                            along[half]};
    }
    __syncthreads(); /* the block's own rows are in registers */
    copy_keys(1);
    copy_keys(2);

    const float factor = batch.scale * LR_LOG2_E;
    /* Keys that some query of this warp sees end here. */
    const int end = row >= left ? 0 : batch.causal ? min(visible, first + row + WARP_ROWS) : visible;
    float dq[DIM / 8][4] = {};
    for (int j = 0; j < steps; j++) {
        cp_async_wait<2>();
        __syncthreads(); /* step j has arrived, step j - 1 has been read */
        copy_keys(j + 3);
        if (j * STEP >= end)
            continue;
        const smem<T> k = ring + (j + 3) % QUERY_RING * STAGE, v = k + HALF;
        float s[STEP / 8][4], dp[STEP / 8][4];
        product_with_rows<DIM, STEP>(s, q, k);
        product_with_rows<DIM, STEP>(dp, d_o, v);
#pragma unroll
        for (int n = 0; n < STEP / 8; n++)
#pragma unroll
            for (int i = 0; i < 4; i++)
                s[n][i] = fast_exp2(s[n][i] * factor - log2_sum[i / 2]) * (dp[n][i] - along[i / 2]);
        if ((j + 1) * STEP > tile.length || (batch.causal && (j + 1) * STEP > first + row)) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const int query = first + row + lane / 4 + i / 2 * 8;
                const int last = batch.causal ? min(query, tile.length - 1) : tile.length - 1;
#pragma unroll
                for (int n = 0; n < STEP / 8; n++)
                    if (j * STEP + n * 8 + lane % 4 * 2 + i % 2 > last)
                        s[n][i] = 0.0f;
            }
        }
        add_product<DIM, STEP>(dq, s, k);
    }
    __syncthreads(); /* the ring is free */
    if (row < left)
        store_rows<DIM>(a.dq.at(tile.start + first + row, column), a.dq.ld, left - row, dq, batch.scale, batch.scale,
                        ring + row * DIM);
}

/* ---- the pass over keys ------------------------------------------------------------------------------------------------ */
constexpr int KEY_RING = 3;

/* Elements of a stage: q, do, and the statistics of their rows. */
template <class T, int DIM>
constexpr int KEY_STAGE = 2 * STEP *DIM + STEP *static_cast<int>(sizeof(query_statistics) / sizeof(T));

template <class T, int DIM>
__global__ void __launch_bounds__(TILE_THREADS, DIM > 64 ? 2 : 3) keys_kernel(const attention_backward_operands<T> a)
{
    SIMT_DYNAMIC_SHARED(T, keys);
    constexpr int STAGE = KEY_STAGE<T, DIM>, HALF = STEP * DIM;
    const attention_batch &batch = a.batch;
    const int kv_heads = batch.heads / batch.group, kv_head = static_cast<int>(blockIdx.x) % kv_heads;
    sequence_tile tile;
    if (!find_tile<TILE_ROWS>(batch, blockIdx.x / static_cast<unsigned>(kv_heads), false, &tile))
        return;
    const int first = tile.number * TILE_ROWS, left = tile.length - first, kv_column = kv_head * DIM;
    const int begin = batch.causal ? first : 0, steps = (tile.length - begin + STEP - 1) / STEP; /* of one head */
    const smem<T> values = keys + TILE_ROWS * DIM, ring = values + TILE_ROWS * DIM;

    /* Steps go through all queries of one head, then of the next. */
    struct {
        int head, step, stage;
        __device__ __forceinline__ void advance(int steps_of_a_head)
        {
            stage = stage + 1 == KEY_RING ? 0 : stage + 1;
            if (++step == steps_of_a_head) {
                step = 0;
                head++;
            }
        }
    } coming = {kv_head * batch.group, 0, 0}, now = coming;
    const int end = (kv_head + 1) * batch.group;
    auto copy_queries = [&]() {
        if (coming.head < end) {
            const smem<T> stage = ring + coming.stage * STAGE;
            const int query = begin + coming.step * STEP, column = coming.head * DIM;
            const int64_t row = tile.start + query;
            copy_tile<DIM, STEP>(stage, a.q.at(row, column), a.q.ld, tile.length - query);
            copy_tile<DIM, STEP>(stage + HALF, a.d_o.at(row, column), a.d_o.ld, tile.length - query);
            constexpr int PACKET = 16 / sizeof(query_statistics);
            const int i = static_cast<int>(threadIdx.x);
            if (i < STEP / PACKET)
                cp_async16(stage + (2 * HALF + i * CHUNK),
                           a.statistics + (coming.head * a.slots + tile.first_slot) * TILE_ROWS + query + i * PACKET);
            coming.advance(steps);
        }
        cp_async_commit();
    };
    copy_tile<DIM, TILE_ROWS>(keys, a.k.at(tile.start + first, kv_column), a.k.ld, left);
    copy_tile<DIM, TILE_ROWS>(values, a.v.at(tile.start + first, kv_column), a.v.ld, left);
    copy_queries();
    copy_queries();

    const int lane = static_cast<int>(threadIdx.x % WARP);
    const int row = static_cast<int>(threadIdx.x / WARP) * WARP_ROWS; /* of the warp, within the tile */
    const float factor = batch.scale * LR_LOG2_E;
    float dk[DIM / 8][4] = {}, dv[DIM / 8][4] = {};
    for (; now.head < end; now.advance(steps)) {
        cp_async_wait<1>();
        __syncthreads(); /* this step has arrived, the one before it has been read */
        copy_queries();
        const int query = begin + now.step * STEP;
        if (row >= left || (batch.causal && query + STEP <= first + row))
            continue; /* this warp has no keys, or none that these queries see */
        const smem<T> q = ring + now.stage * STAGE, d_o = q + HALF;
        const smem<float4> statistics = smem_cast<float4>(d_o + HALF); /* two queries each */
        float s[STEP / 8][4], dp[STEP / 8][4];
        product_of_rows<DIM, STEP>(s, keys, row, q);
        product_of_rows<DIM, STEP>(dp, values, row, d_o);
#pragma unroll
        for (int n = 0; n < STEP / 8; n++) {
            const float4 two = statistics[n * 4 + lane % 4];
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const int of = query + n * 8 + lane % 4 * 2 + i % 2, key = first + row + lane / 4 + i / 2 * 8;
                const float p = fast_exp2(s[n][i] * factor - (i % 2 == 0 ? two.x : two.z));
                s[n][i] = batch.causal && of < key ? 0.0f : p;
                dp[n][i] = s[n][i] * (dp[n][i] - (i % 2 == 0 ? two.y : two.w));
            }
        }
        add_product<DIM, STEP>(dv, s, d_o);
        add_product<DIM, STEP>(dk, dp, q);
    }
    __syncthreads(); /* keys, values and ring are free */
    if (row >= left)
        return;
    store_rows<DIM>(a.dk.at(tile.start + first + row, kv_column), a.dk.ld, left - row, dk, batch.scale, batch.scale,
                    keys + row * DIM);
    store_rows<DIM>(a.dv.at(tile.start + first + row, kv_column), a.dv.ld, left - row, dv, 1.0f, 1.0f,
                    values + row * DIM);
}

/* ---- launch ------------------------------------------------------------------------------------------------------------ */
template <class T, int DIM> int launch(simt_stream stream, attention_backward_operands<T> a)
{
    static_assert(LR_CUDA_STATISTICS_TILE % TILE_ROWS == 0, "scratch.c counts tiles of this size or a multiple");
    a.slots = slots_of<TILE_ROWS>(a.batch);
    int status =
        simt_launch("attention_backward", queries_kernel<T, DIM>, attention_grid<TILE_ROWS>(a.batch, a.batch.heads),
                    dim3(TILE_THREADS), QUERY_RING * 2 * STEP * DIM * sizeof(T), stream, a);
    if (status == LR_OK)
        status = simt_launch("attention_backward", keys_kernel<T, DIM>,
                             attention_grid<TILE_ROWS>(a.batch, a.batch.heads / a.batch.group), dim3(TILE_THREADS),
                             (2 * TILE_ROWS * DIM + KEY_RING * KEY_STAGE<T, DIM>)*sizeof(T), stream, a);
    return status;
}

} // namespace

int lr_cuda_attention_backward(lr_exec *exec, lr_tensor *dq, lr_tensor *dk, lr_tensor *dv, const lr_tensor *d_o,
                               const lr_tensor *q, const lr_tensor *k, const lr_tensor *v, const lr_tensor *o,
                               const lr_tensor *lse, const lr_tensor *cu, int64_t head_dim, int64_t max_length,
                               double scale, int64_t causal)
{
    attention_batch batch;
    const int status = attention_batch_of(&batch, exec, "attention_backward", LR_FAULT_ATTENTION_BACKWARD, q, k, lse,
                                          cu, head_dim, max_length, scale, causal);
    if (status != LR_OK)
        return status;
    return by_dtype(q->dtype, [&](auto t) {
        typedef decltype(t) T;
        const attention_backward_operands<T> a = {batch,
                                                  rows_of_heads<T>(dq),
                                                  rows_of_heads<T>(dk),
                                                  rows_of_heads<T>(dv),
                                                  rows_of_heads<const T>(d_o),
                                                  rows_of_heads<const T>(q),
                                                  rows_of_heads<const T>(k),
                                                  rows_of_heads<const T>(v),
                                                  rows_of_heads<const T>(o),
                                                  data_of<float>(lse),
                                                  static_cast<query_statistics *>(exec->scratch),
                                                  0};
        const simt_stream stream = stream_of(exec);
        return by_head_dim<T>(
            batch.dim, aligned(2, dq, dk, dv, d_o, q, k, v, o),
            [&](auto dim) { return launch<T, decltype(dim)::value>(stream, a); },
            [&] { return attention_backward_plain(stream, a); });
    });
}
