/* pools.c: the memory of each device, of which pieces are taken and given back.
 *
 * A training step asks for the same few hundred buffers again and again; only their sizes follow the batch. So memory that a
 * device gave is kept, and handed out in pieces (arena.c): no system call, no page fault, and pages that are warm. Small buffers
 * have a range of addresses of their own: a small one that lives long must not take the place where a large one could be.
 *
 * The meta device runs the same code without bytes, so the peak of a step on it is the peak of the same step with bytes.
 *
 * Where sizes change, more may be kept than is used. Before a limit, or the end of the device's memory, is an error, the memory
 * of free pieces is given back, so that only live bytes count.
 *
 * Invariants
 *   - A piece has at least one byte more than was asked for, so that AddressSanitizer sees an access past the end.
 *   - Pieces are taken and given back by the Lua thread alone.
 *   - Where taking fails, the error is the only effect; before it fails, free memory is given back and it is tried again. */
#include "core/pools.h"
#include "core/limits.h"
#include <errno.h>
#include <stdio.h>

static const size_t GRANULES[LR_POOL_KINDS] = {2 << 20, 16 << 20};
static const size_t META_ADDRESSES = (size_t)1 << 50;

static lr_pools devices[LR_DEVICE_COUNT];

lr_pools *lr_pools_of(int device)
{
    return &devices[device];
}

/* For AddressSanitizer, bytes of the pool that no tensor asked for are out of bounds. */
#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(p, n) ((void)(p), (void)(n))
#define ASAN_UNPOISON_MEMORY_REGION(p, n) ((void)(p), (void)(n))
#endif

static void mark(const lr_pool *pool, const lr_piece *piece, size_t used)
{
    if (pool->driver == NULL || !pool->driver->watched)
        return;
    ASAN_POISON_MEMORY_REGION(pool->base + piece->offset, piece->bytes);
    ASAN_UNPOISON_MEMORY_REGION(pool->base + piece->offset, used);
}

static int pool_map(void *context, size_t offset, size_t bytes)
{
    const lr_pool *pool = context;
    if (pool->driver == NULL)
        return LR_OK;
    const int status = pool->driver->map(pool->base + offset, bytes);
    if (status == LR_OK)
        mark(pool, &(lr_piece){.offset = offset, .bytes = bytes}, 0);
    return status;
}

static void pool_unmap(void *context, size_t offset, size_t bytes)
{
    const lr_pool *pool = context;
    if (pool->driver != NULL)
        pool->driver->unmap(pool->base + offset, bytes);
}

static int open_pools(int device)
{
    for (int i = LR_POOL_KINDS - 1; i >= 0;
         i--) { /* the large one first: where addresses are limited it gets more of them */
        lr_pool *pool = &devices[device].pool[i];
        size_t bytes = META_ADDRESSES;
        if (pool->arena.capacity > 0)
            continue;
        if (device != LR_META) {
            pool->driver = lr_driver_of(device);
            void *base = NULL;
            const int status = pool->driver->reserve(&base, &bytes);
            if (status != LR_OK)
                return status;
            pool->base = base;
        }
        pool->arena.source = (lr_arena_source){pool, GRANULES[i], pool_map, pool_unmap};
        pool->arena.capacity = bytes / GRANULES[i] * GRANULES[i];
    }
    return LR_OK;
}

int64_t lr_pools_reserved(const lr_pools *m)
{
    return (int64_t)(m->pool[LR_POOL_SMALL].arena.mapped_bytes + m->pool[LR_POOL_LARGE].arena.mapped_bytes);
}

/* Give the memory of free pieces back until at most `bytes` are reserved. */
static void trim(lr_pools *m, int64_t bytes)
{
    for (int i = LR_POOL_KINDS - 1; i >= 0; i--) {
        lr_arena *a = &m->pool[i].arena;
        const int64_t others = lr_pools_reserved(m) - (int64_t)a->mapped_bytes;
        lr_arena_trim(a, (size_t)lr_max64(0, bytes - others));
    }
}

int lr_memory_release_cached(int device)
{
    if (device < 0 || device >= LR_DEVICE_COUNT)
        return lr_fail(LR_EINVAL, "there is no device number %d", device);
    lr_scratch_drop(device);
    trim(&devices[device], 0);
    return LR_OK;
}

void lr_memory_give_back(int device)
{
    trim(&devices[device], 0);
}

int lr_memory_limit(int device, int64_t bytes)
{
    if (device < 0 || device >= LR_DEVICE_COUNT || bytes < 0)
        return lr_fail(LR_EINVAL, "a limit of %lld bytes for device number %d", (long long)bytes, device);
    devices[device].limit = bytes;
    if (bytes > 0)
        trim(&devices[device], bytes);
    return LR_OK;
}

int64_t lr_memory_addresses_left(int device)
{
    if (device < 0 || device >= LR_DEVICE_COUNT)
        return lr_fail(LR_EINVAL, "there is no device number %d", device);
    const int status = open_pools(device);
    if (status != LR_OK)
        return status == LR_ENOMEM ? 0 : status;
    int64_t left = 0;
    for (int i = 0; i < LR_POOL_KINDS; i++)
        left += (int64_t)(devices[device].pool[i].arena.capacity - devices[device].pool[i].arena.mapped_bytes);
    return left;
}

static int map(lr_pool *pool, const lr_piece *piece)
{
    const size_t missing = lr_arena_missing(&pool->arena, piece);
    if (missing > 0 && pool->driver != NULL && pool->driver->allow != NULL) {
        const int status = pool->driver->allow(missing);
        if (status != LR_OK)
            return status;
    }
    return lr_arena_map(&pool->arena, piece);
}

/* Map memory for a piece. The limit counts live bytes: free granules are given back to make room for them. */
static int back(lr_pools *m, lr_pool *pool, const lr_piece *piece)
{
    const int64_t missing = (int64_t)lr_arena_missing(&pool->arena, piece);
    if (m->limit > 0 && missing > 0)
        trim(m, lr_max64(0, m->limit - missing));
    const int status = map(pool, piece);
    if (status != LR_ENOMEM)
        return status;
    trim(m, 0);
    return map(pool, piece);
}

int lr_pool_take(int device, lr_pool_kind kind, size_t bytes, const char *name, lr_piece **out)
{
    int status = open_pools(device);
    if (status != LR_OK)
        return status;
    lr_pools *m = &devices[device];
    lr_pool *pool = &m->pool[kind];
    lr_piece *piece = lr_arena_take(&pool->arena, bytes + 1);
    status = piece != NULL ? back(m, pool, piece) : LR_ENOMEM;
    if (status == LR_OK) {
        mark(pool, piece, bytes);
        *out = piece;
        return LR_OK;
    }
    lr_because why = {""};
    if (lr_device_addressable(device) && piece == NULL)
        why = lr_limits_because(ENOMEM); /* no addresses are left */
    else if (lr_device_addressable(device))
        snprintf(why.text, sizeof why.text, " (%.255s)", lr_last_error());
    if (piece != NULL)
        lr_arena_give(&pool->arena, piece);
    if (status != LR_ENOMEM)
        return status;
    return lr_fail(LR_ENOMEM, "out of %s memory: %zu bytes for %s, %lld held already%s", lr_device_name(device), bytes,
                   name, (long long)m->stats.live_bytes, why.text);
}

void lr_pool_give(int device, lr_pool_kind kind, lr_piece *piece)
{
    lr_pool *pool = &devices[device].pool[kind];
    mark(pool, piece, 0);
    lr_arena_give(&pool->arena, piece);
}

void *lr_pool_address(int device, lr_pool_kind kind, const lr_piece *piece)
{
    const lr_pool *pool = &devices[device].pool[kind];
    return pool->base != NULL ? pool->base + piece->offset : NULL;
}

/* ---- scratch --------------------------------------------------------------------------------------------------------- */
void lr_scratch_drop(int device)
{
    lr_pools *m = &devices[device];
    if (m->scratch != NULL)
        lr_pool_give(device, LR_POOL_LARGE, m->scratch);
    m->scratch = NULL;
    m->stats.scratch_bytes = 0;
}

int lr_scratch_take(void **out, int device, size_t bytes)
{
    lr_pools *m = &devices[device];
    if (m->scratch == NULL || bytes >= m->scratch->bytes) {
        lr_scratch_drop(device);
        if (lr_memory_injected())
            return lr_fail(LR_ENOMEM, "out of %s memory: %zu bytes for an op", lr_device_name(device), bytes);
        const int status = lr_pool_take(device, LR_POOL_LARGE, bytes, "an op's working memory", &m->scratch);
        if (status != LR_OK)
            return status;
        m->stats.scratch_bytes = (int64_t)m->scratch->bytes;
    }
    *out = lr_pool_address(device, LR_POOL_LARGE, m->scratch);
    return LR_OK;
}
