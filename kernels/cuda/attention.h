/* attention.h: what the attention kernels share: their operands, and which rows of which sequence a block works on.
 *
 * The host knows how many tokens and sequences there are, not how long each sequence is: cu_seqlens lies on the device. So a grid
 * has a slot for every tile of `TILE` rows that there could be: sequence b has those from cu[b] / TILE + b on, up to where b + 1's
 * begin. These are at least as many as its tiles, for floor((x + n) / TILE) - floor(x / TILE) + 1 >= ceil(n / TILE), and at most
 * one slot of a sequence stays empty. A block finds the sequence of its slot by a search in cu_seqlens. */
#ifndef LR_CUDA_ATTENTION_H
#define LR_CUDA_ATTENTION_H

#include "constants.h"
#include "cuda/vec.h"

/* A packed batch and how its rows divide into heads. */
struct attention_batch {
    const int32_t *cu;
    int64_t tokens, max_length;
    int sequences, heads, group; /* group: query heads that share a head of k and v */
    int dim;
    float scale;
    bool causal;
    lr_fault_place place;
    lr_fault *fault;
};

/* Rows of heads, `ld` elements apart. */
template <class T> struct head_rows {
    T *data;
    int64_t ld;
    __device__ __forceinline__ T *at(int64_t row, int column) const
    {
        return data + row * ld + column;
    }
};

template <class T> struct attention_operands {
    attention_batch batch;
    head_rows<T> o;
    float *lse; /* [tokens][heads] */
    head_rows<const T> q, k, v;
};

/* What the backward's first pass computes of a query for the second one. A query that is not there (its tile reaches beyond the
 * sequence) has log2_sum = infinity, so that its probabilities are 0. Tiles are in the order of slots: [heads][slots][TILE]. */
struct alignas(8) query_statistics {
    float log2_sum; /* lse in units of log 2 */
    float along;    /* sum of do o */
};
static_assert(sizeof(query_statistics) == LR_CUDA_STATISTICS_BYTES, "scratch.c counts them");

template <class T> struct attention_backward_operands {
    attention_batch batch;
    head_rows<T> dq, dk, dv;
    head_rows<const T> d_o, q, k, v, o;
    const float *lse;
    query_statistics *statistics;
    int64_t slots;
};

/* ---- tiles of sequences ------------------------------------------------------------------------------------------------ */
struct sequence_tile {
    int64_t start;      /* the sequence's first row */
    int64_t first_slot; /* of the sequence */
    int length;
    int number, count; /* this tile is number `number` of `count`, from 0 */
};

template <int TILE> static inline int64_t slots_of(const attention_batch &b)
{
    return lr_cuda_slots(TILE, b.tokens, b.sequences);
}

/* Are the bounds of sequence i what cu_seqlens has to hold there? */
static __device__ __forceinline__ bool sequence_is_sound(const attention_batch &b, int64_t i)
{
    const int start = b.cu[i], end = b.cu[i + 1];
    const int64_t rest = b.tokens - start;
    return in_range(b.fault, b.place, i, start, 0, i == 0 ? 0 : b.tokens - 1) &&
           (i + 1 < b.sequences || in_range(b.fault, b.place, i + 1, end, b.tokens, b.tokens)) &&
           in_range(b.fault, b.place, i + 1, end, start + 1, start + (rest < b.max_length ? rest : b.max_length));
}

/* The tile of a slot; false where the slot is empty. All threads of a block call it with the same slot; `first_head`: this block is
 * the slot's first. Every sequence is looked at by one block at least, whether or not a slot leads there. */
template <int TILE>
static __device__ __forceinline__ bool find_tile(const attention_batch &b, int64_t slot, bool first_head,
                                                 sequence_tile *tile)
{
    if (first_head && slot < b.sequences && threadIdx.x == 0)
        sequence_is_sound(b, slot);
    /* The last sequence of [low, low + n) whose first slot is this one or an earlier one: 32 are tried at a time. */
    const int lane = static_cast<int>(threadIdx.x % WARP);
    int low = 0;
    for (int n = b.sequences; n > 1;) {
        const int step = (n + WARP - 1) / WARP, tried = low + lane * step;
        const unsigned reached =
            __ballot_sync(ALL_LANES, lane * step < n && b.cu[tried] / TILE + static_cast<int64_t>(tried) <= slot);
        const int last = reached == 0 ? 0 : __popc(reached) - 1;
        low += last * step;
        n = min(step, n - last * step);
    }
    if (!sequence_is_sound(b, low))
        return false;
    tile->start = b.cu[low];
    tile->length = b.cu[low + 1] - b.cu[low];
    tile->first_slot = tile->start / TILE + low;
    tile->count = (tile->length + TILE - 1) / TILE;
    tile->number = static_cast<int>(slot - tile->first_slot);
    return tile->number >= 0 && tile->number < tile->count;
}

/* ---- the host's side --------------------------------------------------------------------------------------------------- */
static inline int attention_batch_of(attention_batch *b, const lr_exec *exec, const char *op, lr_fault_place place,
                                     const lr_tensor *q, const lr_tensor *k, const lr_tensor *lse, const lr_tensor *cu,
                                     int64_t head_dim, int64_t max_length, double scale, int64_t causal)
{
    const int status = lr_check_attention(op, q, k, lse, cu, head_dim, LR_CUDA_MAX_HEAD_DIM, scale);
    if (status != LR_OK)
        return status;
    const int64_t heads = q->shape[1] / head_dim, kv_heads = k->shape[1] / head_dim;
    *b = {data_of<int32_t>(cu),
          q->shape[0],
          max_length,
          static_cast<int>(cu->shape[0] - 1),
          static_cast<int>(heads),
          static_cast<int>(heads / kv_heads),
          static_cast<int>(head_dim),
          static_cast<float>(scale),
          causal != 0,
          place,
          exec->fault};
    return LR_OK;
}

template <class T> head_rows<T> rows_of_heads(const lr_tensor *t)
{
    return {data_of<T>(t), t->ld};
}

/* One block for each slot and head, the heads of a slot side by side: those of a group read the same k and v. */
template <int TILE> static inline dim3 attention_grid(const attention_batch &b, int heads)
{
    return dim3(static_cast<unsigned>(slots_of<TILE>(b) * heads));
}

/* Without tensor cores: every dtype, alignment and head_dim. attention_plain.cu */
template <class T> int attention_plain(simt_stream stream, const attention_operands<T> &a);
template <class T> int attention_backward_plain(simt_stream stream, attention_backward_operands<T> a);

#endif
