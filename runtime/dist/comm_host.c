/* comm_host.c: the collectives on host memory, over the mesh.
 *
 * All ranks have agreed on kind, sizes and dtype before anything here runs, so every rank sends what its peer expects.
 *
 * all_reduce: a ring (Patarasuk and Yuan, 2009). The operand is cut into one chunk for each rank. In world_size - 1 steps each
 * chunk goes once around the ring, and every rank on its way reduces its own part into it; in world_size - 1 further steps the
 * finished chunks go around. Each rank sends 2 (world_size - 1) / world_size of the operand, whatever the number of ranks. A
 * chunk is reduced by one rank after the other, in the order of the ring, and then copied: all ranks get the same bits, in every
 * run.
 *
 * all_gather: every rank sends its part to every other. broadcast: a binomial tree. */
#include "dist/comm.h"
#include <string.h>

/* ---- reducing ----------------------------------------------------------------------------------------------------------- */
static inline float max_f32(float a, float b)
{
    return a >= b || a != a ? a : b; /* NaN wins */
}
static inline float min_f32(float a, float b)
{
    return a <= b || a != a ? a : b;
}

static void reduce_f32(float *restrict into, const float *restrict from, int64_t n, int reduce)
{
    if (reduce == LR_SUM)
        for (int64_t i = 0; i < n; i++)
            into[i] += from[i];
    else if (reduce == LR_MAX)
        for (int64_t i = 0; i < n; i++)
            into[i] = max_f32(into[i], from[i]);
    else
        for (int64_t i = 0; i < n; i++)
            into[i] = min_f32(into[i], from[i]);
}

/* 16-bit floats are widened, reduced and rounded. */
static void reduce_16(uint16_t *into, const uint16_t *from, int64_t n, int dtype, int reduce)
{
    enum { BLOCK = 1024 };
    float a[BLOCK], b[BLOCK];
    for (int64_t i = 0; i < n; i += BLOCK) {
        const int64_t count = lr_min64(BLOCK, n - i);
        (void)lr_convert(a, LR_F32, into + i, dtype, count);
        (void)lr_convert(b, LR_F32, from + i, dtype, count);
        reduce_f32(a, b, count, reduce);
        (void)lr_convert(into + i, dtype, a, LR_F32, count);
    }
}

/* Integers wrap around: they are added as unsigned numbers. */
#define REDUCE_INTEGERS(name, type, unsigned_type)                                                                     \
    static void name(type *restrict into, const type *restrict from, int64_t n, int reduce)                            \
    {                                                                                                                  \
        for (int64_t i = 0; i < n; i++)                                                                                \
            if (reduce == LR_SUM)                                                                                      \
                into[i] = (type)((unsigned_type)into[i] + (unsigned_type)from[i]);                                     \
            else if (reduce == LR_MAX ? from[i] > into[i] : from[i] < into[i])                                         \
                into[i] = from[i];                                                                                     \
    }
REDUCE_INTEGERS(reduce_i32, int32_t, uint32_t)
REDUCE_INTEGERS(reduce_i64, int64_t, uint64_t)

void lr_host_reduce(void *into, const void *from, int64_t elements, int dtype, int reduce)
{
    switch (dtype) {
    case LR_F32:
        reduce_f32(into, from, elements, reduce);
        break;
    case LR_I32:
        reduce_i32(into, from, elements, reduce);
        break;
    case LR_I64:
        reduce_i64(into, from, elements, reduce);
        break;
    default:
        reduce_16(into, from, elements, dtype, reduce);
    }
}

/* ---- all_reduce --------------------------------------------------------------------------------------------------------- */
/* Where chunk i (modulo world_size) begins, in elements. Chunks differ by at most one element. */
static int64_t chunk_begin(int64_t elements, int world_size, int i)
{
    return elements / world_size * i + lr_min64(i, elements % world_size);
}

static int64_t largest_chunk(int64_t elements, int world_size)
{
    return (elements + world_size - 1) / world_size;
}

int64_t lr_comm_scratch_size(const lr_comm *c, const lr_comm_call *call)
{
    const int64_t size = (int64_t)lr_dtype_size(call->dtype);
    if (call->kind != LR_COMM_ALL_REDUCE || call->elements * size <= LR_COMM_INLINE)
        return 0;
    return largest_chunk(call->elements, c->world_size) * size;
}

int lr_host_all_reduce(lr_comm *c, void *data, int64_t elements, int dtype, int reduce, double began)
{
    const int n = c->world_size, right = (c->rank + 1) % n, left = (c->rank + n - 1) % n;
    const int64_t size = (int64_t)lr_dtype_size(dtype);
    for (int step = 0; step < 2 * (n - 1); step++) {
        const bool gathering = step >= n - 1;
        const int sent = (c->rank - step + 2 * n) % n, received = (sent + n - 1) % n;
        const int64_t send_at = chunk_begin(elements, n, sent) * size,
                      receive_at = chunk_begin(elements, n, received) * size;
        const int64_t send_size = chunk_begin(elements, n, sent + 1) * size - send_at;
        const int64_t receive_size = chunk_begin(elements, n, received + 1) * size - receive_at;
        const lr_mesh_part out = {right, send_at, send_size}, in = {left, gathering ? receive_at : 0, receive_size};
        const lr_mesh_transfer t = {.out = data,
                                    .out_size = elements * size,
                                    .sends = &out,
                                    .send_count = send_size > 0,
                                    .in = gathering ? data : c->scratch,
                                    .in_size = gathering ? elements * size : c->scratch_size,
                                    .receives = &in,
                                    .receive_count = receive_size > 0};
        const int status = lr_comm_transfer(c, &t, began);
        if (status != LR_OK)
            return status;
        if (!gathering)
            lr_host_reduce((char *)data + receive_at, c->scratch, receive_size / size, dtype, reduce);
    }
    return LR_OK;
}

/* ---- all_gather --------------------------------------------------------------------------------------------------------- */
int lr_host_all_gather(lr_comm *c, const void *own, char *out, double began)
{
    lr_mesh_part *sends = c->parts, *receives = c->parts + c->world_size;
    int send_count = 0, receive_count = 0;
    const int64_t mine = c->slots[c->rank].call.mine;
    int64_t at = 0;
    for (int peer = 0; peer < c->world_size; peer++) {
        const int64_t size = c->slots[peer].call.mine;
        if (peer == c->rank) {
            if (mine > 0)
                memcpy(out + at, own, (size_t)mine);
        } else {
            if (mine > 0)
                sends[send_count++] = (lr_mesh_part){peer, 0, mine};
            if (size > 0)
                receives[receive_count++] = (lr_mesh_part){peer, at, size};
        }
        at += size;
    }
    const lr_mesh_transfer t = {.out = own,
                                .out_size = mine,
                                .sends = sends,
                                .send_count = send_count,
                                .in = out,
                                .in_size = at,
                                .receives = receives,
                                .receive_count = receive_count};
    return lr_comm_transfer(c, &t, began);
}

/* ---- broadcast ---------------------------------------------------------------------------------------------------------- */
/* A binomial tree, with ranks counted from the root: rank v receives from v without its lowest bit, then sends to v + 1, v + 2,
 * v + 4 ... below that bit, farthest first. */
int lr_host_broadcast(lr_comm *c, void *data, int64_t size, int root, double began)
{
    const int n = c->world_size, v = (c->rank - root + n) % n;
    int reach = 1;
    if (v != 0)
        reach = v & -v;
    else
        while (reach < n)
            reach *= 2;
    if (v != 0) {
        const lr_mesh_part from = {(v - reach + root) % n, 0, size};
        const lr_mesh_transfer t = {
            .in = data, .in_size = size, .receives = &from, .receive_count = 1, .out = data, .out_size = size};
        const int status = lr_comm_transfer(c, &t, began);
        if (status != LR_OK)
            return status;
    }
    int count = 0;
    for (int bit = reach / 2; bit > 0; bit /= 2)
        if (v + bit < n)
            c->parts[count++] = (lr_mesh_part){(v + bit + root) % n, 0, size};
    const lr_mesh_transfer t = {
        .out = data, .out_size = size, .sends = c->parts, .send_count = count, .in = data, .in_size = size};
    return count > 0 ? lr_comm_transfer(c, &t, began) : LR_OK;
}
