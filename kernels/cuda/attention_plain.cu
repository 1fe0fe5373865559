/* attention_plain.cu: attention and its backward in f32 arithmetic, for what the tensor cores do not take: f32 tensors, other
 * head_dims than theirs, rows that do not begin at a multiple of 16 bytes. Slower, but of the same shape as attention.cu and
 * attention_backward.cu, and as deterministic.
 *
 * A block has 32 rows of one head, eight a warp, and goes through the other side 32 rows at a time. All tiles are f32 in shared
 * memory. Both kinds of product are one loop: eight rows of the warp, four neighbouring elements read at once by all lanes, times a
 * column of each lane's own. In scores a lane's column is a row of the other tile (an odd stride apart: no two lanes in one bank);
 * in sums of rows a lane owns the elements lane, lane + 32, and so on. Between the two a warp's probabilities go through shared memory, where
 * only it reads them.
 *
 * With n = head_dim rounded up to 4, a block of 128 threads has 32 (3 n + 2) + 1024 floats for the forward, 32 (4 n + 2) + 2048 for
 * the backward: at 64 and 128 28 and 53 KiB, 40 and 72 KiB. The smallest GPUs (compute capability 8.6, 8.9 and 12) have 99, which
 * sets the largest head_dim.
 *
 * Formulas, FLOP and bytes are those of attention.cu and attention_backward.cu, with 32 rows for their 64. Bound: scores by shared
 * memory, which is read 12 times by a warp for 32 multiply-adds a lane (two thirds of an SM's 128 a clock), sums of rows by the
 * multiply-adds (24 for 128). None of this was measured on a GPU. */
#include "cuda/attention.h"

namespace
{

constexpr int PLAIN_THREADS = 128, WARPS = PLAIN_THREADS / WARP, ROWS = 8, TILE = WARPS * ROWS;
static_assert(TILE == WARP, "a tile of the other side has a row for every lane");

/* Shared memory of a block, in floats: two tiles of the block's own rows, two of the other side's, and two of weights. */
struct layout {
    int depth, stride; /* of a row of the block's own tiles, and of the other side's */
    smem<float> own, other, weights;
    __device__ layout(smem<float> all, int dim, int own_tiles)
        : depth((dim + 3) / 4 * 4), stride(depth + 1), own(all), other(all + own_tiles * TILE * depth),
          weights(other + 2 * TILE * stride + static_cast<int>(threadIdx.x / WARP) * ROWS * WARP)
    {
    }
    __device__ smem<float> own_rows(int n) const
    {
        return own + (n * TILE + static_cast<int>(threadIdx.x / WARP) * ROWS) * depth;
    }
    __device__ smem<float> other_tile(int n) const
    {
        return other + n * TILE * stride;
    }
    __device__ smem<float> warp_weights(int n) const
    {
        return weights + n * TILE * WARP;
    }
};

constexpr size_t shared_bytes(int dim, int own_tiles, int weights)
{
    const int depth = (dim + 3) / 4 * 4;
    return static_cast<size_t>(TILE * (own_tiles * depth + 2 * (depth + 1) + weights * WARP)) * sizeof(float);
}

/* 32 rows of a head as f32, of which `present` are there; the rest of the tile is 0. */
template <class T>
__device__ __forceinline__ void load_tile(smem<float> tile, int stride, int depth, const T *from, int64_t ld, int dim,
                                          int present)
{
    for (int row = static_cast<int>(threadIdx.x / WARP); row < TILE; row += WARPS)
        for (int i = static_cast<int>(threadIdx.x % WARP); i < depth; i += WARP)
            tile[row * stride + i] = row < present && i < dim ? to_float(from[row * ld + i]) : 0.0f;
}

/* sum[r][c] += the inner product of row r of `rows` and the lane's column c of `columns`: their elements are `down` apart, those of
 * neighbouring lanes `across`, and columns from `count` on are not there. depth is a multiple of 4. */
template <int N>
__device__ __forceinline__ void add_product(float (&sum)[ROWS][N], smem<float> rows, int stride, int depth,
                                            smem<float> columns, int down, int across, int count)
{
    const int lane = static_cast<int>(threadIdx.x % WARP);
    for (int k = 0; k < depth; k += 4) {
        float x[4][N];
#pragma unroll
        for (int c = 0; c < N; c++)
#pragma unroll
            for (int i = 0; i < 4; i++)
                x[i][c] = lane + c * WARP < count ? columns[(k + i) * down + (lane + c * WARP) * across] : 0.0f;
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            const float4 a = smem_cast<float4>(rows + (r * stride + k))[0];
#pragma unroll
            for (int c = 0; c < N; c++)
                sum[r][c] += a.x * x[0][c] + a.y * x[1][c] + a.z * x[2][c] + a.w * x[3][c];
        }
    }
}

/* One score a lane and row: rows of the warp against rows of a tile. */
__device__ __forceinline__ void scores_of(float (&s)[ROWS][1], const layout &l, int own, int other)
{
#pragma unroll
    for (int r = 0; r < ROWS; r++)
        s[r][0] = 0.0f;
    add_product<1>(s, l.own_rows(own), l.depth, l.depth, l.other_tile(other), 1, l.stride, WARP);
}

/* sum += weights (of the warp's rows, one a lane each) times the rows of a tile. */
template <int N>
__device__ __forceinline__ void add_rows(float (&sum)[ROWS][N], const float (&weights)[ROWS][1], const layout &l,
                                         int room, int other, int dim)
{
    const smem<float> mine = l.warp_weights(room);
    for (int r = 0; r < ROWS; r++)
        mine[r * WARP + static_cast<int>(threadIdx.x % WARP)] = weights[r][0];
    __syncwarp();
    add_product<N>(sum, mine, WARP, WARP, l.other_tile(other), l.stride, 1, dim);
}

/* The warp's rows of a head, those that are there, = sum times a factor. */
template <class T, int N> __device__ __forceinline__ void store_row(T *to, const float (&sum)[N], float factor, int dim)
{
#pragma unroll
    for (int c = 0; c < N; c++) {
        const int i = static_cast<int>(threadIdx.x % WARP) + c * WARP;
        if (i < dim)
            to[i] = from_float<T>(sum[c] * factor);
    }
}

/* ---- forward ----------------------------------------------------------------------------------------------------------- */
template <class T, int N>
__global__ void __launch_bounds__(PLAIN_THREADS, 2) plain_kernel(const attention_operands<T> a)
{
    SIMT_DYNAMIC_SHARED(float, all);
    const attention_batch &batch = a.batch;
    const layout l(all, batch.dim, 1);
    const int head = static_cast<int>(blockIdx.x) % batch.heads, column = head * batch.dim,
              kv_column = head / batch.group * batch.dim;
    sequence_tile tile;
    if (!find_tile<TILE>(batch, blockIdx.x / static_cast<unsigned>(batch.heads), head == 0, &tile))
        return;
    const int lane = static_cast<int>(threadIdx.x % WARP), first = tile.number * TILE,
              row = first + static_cast<int>(threadIdx.x / WARP) * ROWS;
    const int visible = batch.causal ? min(tile.length, first + TILE) : tile.length;
    const float factor = batch.scale * LR_LOG2_E;
    load_tile(l.own, l.depth, l.depth, a.q.at(tile.start + first, column), a.q.ld, batch.dim, tile.length - first);
    float o[ROWS][N] = {}, s[ROWS][1], highest[ROWS], total[ROWS] = {};
    for (int r = 0; r < ROWS; r++)
        highest[r] = -INFINITY;
    for (int key = 0; key < visible; key += TILE) {
        __syncthreads();
        load_tile(l.other_tile(0), l.stride, l.depth, a.k.at(tile.start + key, kv_column), a.k.ld, batch.dim,
                  tile.length - key);
        load_tile(l.other_tile(1), l.stride, l.depth, a.v.at(tile.start + key, kv_column), a.v.ld, batch.dim,
                  tile.length - key);
        __syncthreads();
        scores_of(s, l, 0, 0);
        for (int r = 0; r < ROWS; r++) {
            const int end = batch.causal ? min(row + r + 1, tile.length) : tile.length;
            const float score = key + lane < end ? s[r][0] * factor : -INFINITY,
                        top = fmaxf(highest[r], warp_max(score)), shrink = exp2f(highest[r] - top);
            s[r][0] = exp2f(score - top);
            total[r] = total[r] * shrink + s[r][0];
            highest[r] = top;
#pragma unroll
            for (int c = 0; c < N; c++)
                o[r][c] *= shrink;
        }
        add_rows<N>(o, s, l, 0, 1, batch.dim);
    }
    for (int r = 0; r < ROWS; r++) {
        const float sum = warp_sum(total[r]);
        if (row + r >= tile.length)
            continue;
        store_row(a.o.at(tile.start + row + r, column), o[r], 1.0f / sum, batch.dim);
        if (lane == 0)
            a.lse[(tile.start + row + r) * batch.heads + head] = LR_LN_2 * (highest[r] + log2f(sum));
    }
}

/* ---- backward ---------------------------------------------------------------------------------------------------------- */
/* dq, and the statistics of the queries for the pass over keys. */
template <class T, int N>
__global__ void __launch_bounds__(PLAIN_THREADS, 2) plain_queries_kernel(const attention_backward_operands<T> a)
{
    SIMT_DYNAMIC_SHARED(float, all);
    const attention_batch &batch = a.batch;
    const layout l(all, batch.dim, 2);
    const int head = static_cast<int>(blockIdx.x) % batch.heads, column = head * batch.dim,
              kv_column = head / batch.group * batch.dim;
    const int64_t slot = blockIdx.x / static_cast<unsigned>(batch.heads);
    sequence_tile tile;
    if (!find_tile<TILE>(batch, slot, head == 0, &tile))
        return;
    const int lane = static_cast<int>(threadIdx.x % WARP), first = tile.number * TILE,
              row = first + static_cast<int>(threadIdx.x / WARP) * ROWS;
    const int visible = batch.causal ? min(tile.length, first + TILE) : tile.length;
    const float factor = batch.scale * LR_LOG2_E;
    load_tile(l.own, l.depth, l.depth, a.q.at(tile.start + first, column), a.q.ld, batch.dim, tile.length - first);
    load_tile(l.own + TILE * l.depth, l.depth, l.depth, a.d_o.at(tile.start + first, column), a.d_o.ld, batch.dim,
              tile.length - first);
    float log2_sum[ROWS], along[ROWS];
    for (int r = 0; r < ROWS; r++) {
        const bool there = row + r < tile.length;
        const int64_t at = tile.start + (there ? row + r : 0);
        float sum = 0.0f;
        for (int i = lane; i < batch.dim; i += WARP)
            sum += to_float(a.o.at(at, column)[i]) * to_float(a.d_o.at(at, column)[i]);
        along[r] = there ? warp_sum(sum) : 0.0f;
        log2_sum[r] = there ? a.lse[at * batch.heads + head] * LR_LOG2_E : INFINITY;
        if (lane == 0)
            a.statistics[(head * a.slots + slot) * TILE + row - first + r] = {log2_sum[r], along[r]};
    }
    float dq[ROWS][N] = {}, s[ROWS][1], dp[ROWS][1];
    for (int key = 0; key < visible; key += TILE) {
        __syncthreads();
        load_tile(l.other_tile(0), l.stride, l.depth, a.k.at(tile.start + key, kv_column), a.k.ld, batch.dim,
                  tile.length - key);
        load_tile(l.other_tile(1), l.stride, l.depth, a.v.at(tile.start + key, kv_column), a.v.ld, batch.dim,
                  tile.length - key);
        __syncthreads();
        scores_of(s, l, 0, 0);
        scores_of(dp, l, 1, 1);
        for (int r = 0; r < ROWS; r++) {
            const int end = batch.causal ? min(row + r + 1, tile.length) : tile.length;
            s[r][0] = key + lane < end ? exp2f(s[r][0] * factor - log2_sum[r]) * (dp[r][0] - along[r]) : 0.0f;
        }
        add_rows<N>(dq, s, l, 0, 0, batch.dim);
    }
    for (int r = 0; r < ROWS && row + r < tile.length; r++)
        store_row(a.dq.at(tile.start + row + r, column), dq[r], batch.scale, batch.dim);
}

/* dk and dv: the block's rows are keys, and it goes through all queries of the group's heads. */
template <class T, int N>
__global__ void __launch_bounds__(PLAIN_THREADS, 2) plain_keys_kernel(const attention_backward_operands<T> a)
{
    SIMT_DYNAMIC_SHARED(float, all);
    const attention_batch &batch = a.batch;
    const layout l(all, batch.dim, 2);
    const int kv_heads = batch.heads / batch.group, kv_head = static_cast<int>(blockIdx.x) % kv_heads,
              kv_column = kv_head * batch.dim;
    sequence_tile tile;
    if (!find_tile<TILE>(batch, blockIdx.x / static_cast<unsigned>(kv_heads), false, &tile))
        return;
    const int lane = static_cast<int>(threadIdx.x % WARP), first = tile.number * TILE,
              row = first + static_cast<int>(threadIdx.x / WARP) * ROWS;
    const float factor = batch.scale * LR_LOG2_E;
    load_tile(l.own, l.depth, l.depth, a.k.at(tile.start + first, kv_column), a.k.ld, batch.dim, tile.length - first);
    load_tile(l.own + TILE * l.depth, l.depth, l.depth, a.v.at(tile.start + first, kv_column), a.v.ld, batch.dim,
              tile.length - first);
    float dk[ROWS][N] = {}, dv[ROWS][N] = {}, s[ROWS][1], dp[ROWS][1];
    for (int head = kv_head * batch.group; head < (kv_head + 1) * batch.group; head++)
        for (int query = batch.causal ? first : 0; query < tile.length; query += TILE) {
            __syncthreads();
            load_tile(l.other_tile(0), l.stride, l.depth, a.q.at(tile.start + query, head * batch.dim), a.q.ld,
                      batch.dim, tile.length - query);
            load_tile(l.other_tile(1), l.stride, l.depth, a.d_o.at(tile.start + query, head * batch.dim), a.d_o.ld,
                      batch.dim, tile.length - query);
            __syncthreads();
            const query_statistics of =
                a.statistics[(head * a.slots + tile.first_slot) * TILE + query + lane]; /* of this lane's query */
            scores_of(s, l, 0, 0);
            scores_of(dp, l, 1, 1);
            for (int r = 0; r < ROWS; r++) {
                const bool seen = !batch.causal || query + lane >= row + r;
                s[r][0] = seen ? exp2f(s[r][0] * factor - of.log2_sum) : 0.0f;
                dp[r][0] = s[r][0] * (dp[r][0] - of.along);
            }
            add_rows<N>(dv, s, l, 0, 1, batch.dim);
            add_rows<N>(dk, dp, l, 1, 0, batch.dim);
        }
    for (int r = 0; r < ROWS && row + r < tile.length; r++) {
        store_row(a.dk.at(tile.start + row + r, kv_column), dk[r], batch.scale, batch.dim);
        store_row(a.dv.at(tile.start + row + r, kv_column), dv[r], 1.0f, batch.dim);
    }
}

template <class T, int N> int launch_backward(simt_stream stream, const attention_backward_operands<T> &a)
{
    const attention_batch &batch = a.batch;
    const int status =
        simt_launch("attention_backward", plain_queries_kernel<T, N>, attention_grid<TILE>(batch, batch.heads),
                    dim3(PLAIN_THREADS), shared_bytes(batch.dim, 2, 1), stream, a);
    if (status != LR_OK)
        return status;
    return simt_launch("attention_backward", plain_keys_kernel<T, N>,
                       attention_grid<TILE>(batch, batch.heads / batch.group), dim3(PLAIN_THREADS),
                       shared_bytes(batch.dim, 2, 2), stream, a);
}

} // namespace

template <class T> int attention_plain(simt_stream stream, const attention_operands<T> &a)
{
    static_assert(LR_CUDA_MAX_HEAD_DIM <= 6 * WARP, "a lane keeps up to six columns");
    static_assert(shared_bytes(LR_CUDA_MAX_HEAD_DIM, 2, 2) <= 99 * 1024, "every GPU has so much");
    return simt_launch("attention", a.batch.dim > 4 * WARP ? plain_kernel<T, 6> : plain_kernel<T, 4>,
                       attention_grid<TILE>(a.batch, a.batch.heads), dim3(PLAIN_THREADS),
                       shared_bytes(a.batch.dim, 1, 1), stream, a);
}

template <class T> int attention_backward_plain(simt_stream stream, attention_backward_operands<T> a)
{
    static_assert(LR_CUDA_STATISTICS_TILE % TILE == 0, "scratch.c counts tiles of this size or a multiple");
    a.slots = slots_of<TILE>(a.batch);
    return a.batch.dim > 4 * WARP ? launch_backward<T, 6>(stream, a) : launch_backward<T, 4>(stream, a);
}

#define FOR_DTYPE(T)                                                                                                   \
    template int attention_plain<T>(simt_stream, const attention_operands<T> &);                                       \
    template int attention_backward_plain<T>(simt_stream, attention_backward_operands<T>);
FOR_DTYPE(float)
FOR_DTYPE(bf16)
FOR_DTYPE(f16)
