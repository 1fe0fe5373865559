/* memory.c: the allocator over the device table {cpu, cuda, meta}, small allocations, fault injection.
 *
 * A training step asks for the same few hundred buffers again and again; only their sizes follow the batch. So memory that a device gave
 * is kept, and handed out in pieces (arena.c): no system call, no page fault, and pages that are warm. Small buffers have a range of their
 * own, or one that lives long would stand where a large one was and could be again.
 *
 * The meta device runs the same code without bytes, so a step on it gives the peak that a step with bytes will have.
 *
 * What is kept may become more than what is used, where sizes change. Under a limit, and where the device has no more, memory behind free
 * pieces is given back first; what is live is then all that counts.
 *
 * Invariants
 *   - live_bytes counts pieces, not requests: what the table shows is what is taken.
 *   - A piece has at least a byte more than was asked for, so that AddressSanitizer sees what goes beyond.
 *   - Storages are made and released by the Lua thread alone; lr_alloc is used by any thread.
 *   - An allocation that fails has no effect but the error; before it fails, what is free is given back and it is retried. */
#include "core/memory.h"
#include "core/arena.h"
#include "core/device.h"
#include "core/limits.h"
#include <errno.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SMALL, LARGE, POOLS };              /* of a device */
static const size_t LARGE_BYTES = 1 << 20; /* from here on a buffer is large */
static const size_t GRANULES[POOLS] = {2 << 20, 16 << 20};
static const size_t META_ADDRESSES = (size_t)1 << 50;

/* ---- fault injection and the count of small objects ------------------------------------------------------------------ */
static atomic_llong attempts;
static atomic_llong fail_from = -1, fail_until = -1;
static atomic_llong host_objects;

void lr_memory_fail(int64_t after, int64_t times)
{
    const long long now = atomic_load(&attempts);
    atomic_store(&fail_from, after < 0 ? -1 : now + after);
    atomic_store(&fail_until, after < 0 ? -1 : now + after + times);
}

int64_t lr_memory_attempts(void)
{
    return atomic_load(&attempts);
}

bool lr_memory_injected(void)
{
    const long long n = atomic_fetch_add(&attempts, 1);
    const long long from = atomic_load(&fail_from);
    return from >= 0 && n >= from && n < atomic_load(&fail_until);
}

/* " (ulimit -v: 4.1 GB)" where there is a limit that may be why the system gave no memory, else "". */
typedef struct reason_text {
    char text[260];
} reason_text;

static reason_text reason(void)
{
    reason_text out = {""};
    char limits[256];
    lr_limits_reason(ENOMEM, limits, sizeof limits);
    if (*limits != 0)
        snprintf(out.text, sizeof out.text, " (%s)", limits);
    return out;
}

static void fail_host(size_t size)
{
    lr_fail(LR_ENOMEM, "out of host memory: %zu bytes were asked for%s", size, reason().text);
}

static void *counted(void *p, size_t size)
{
    if (p == NULL) {
        fail_host(size);
        return NULL;
    }
    atomic_fetch_add(&host_objects, 1);
    return p;
}

void *lr_alloc(size_t size)
{
    return counted(lr_memory_injected() ? NULL : malloc(size ? size : 1), size);
}

void *lr_calloc(size_t count, size_t size)
{
    return counted(lr_memory_injected() ? NULL : calloc(count ? count : 1, size ? size : 1), count * size);
}

void *lr_realloc(void *p, size_t size)
{
    if (p == NULL)
        return lr_alloc(size);
    void *q = lr_memory_injected() ? NULL : realloc(p, size ? size : 1);
    if (q == NULL)
        fail_host(size);
    return q;
}

void lr_free(void *p)
{
    if (p != NULL)
        atomic_fetch_sub(&host_objects, 1);
    free(p);
}

char *lr_strndup(const char *s, size_t n)
{
    char *p = lr_alloc(n + 1);
    if (p != NULL) {
        memcpy(p, s, n);
        p[n] = 0;
    }
    return p;
}

char *lr_strdup(const char *s)
{
    return lr_strndup(s, strlen(s));
}

char *lr_format(const char *fmt, ...)
{
    va_list args;
    va_start(args, fmt);
    const int n = vsnprintf(NULL, 0, fmt, args);
    va_end(args);
    char *p = n < 0 ? NULL : lr_alloc((size_t)n + 1);
    if (p != NULL) {
        va_start(args, fmt);
        vsnprintf(p, (size_t)n + 1, fmt, args);
        va_end(args);
    }
    return p;
}

int lr_reserve(void **p, size_t *cap, size_t need, size_t size)
{
    if (need <= *cap)
        return LR_OK;
    size_t grown = *cap + *cap / 2 + 16;
    if (grown < need)
        grown = need;
    if (grown > SIZE_MAX / size)
        return lr_fail(LR_ENOMEM, "an array of %zu elements of %zu bytes is too large", need, size);
    void *q = lr_realloc(*p, grown * size);
    if (q == NULL)
        return LR_ENOMEM;
    *p = q;
    *cap = grown;
    return LR_OK;
}

/* ---- pools ----------------------------------------------------------------------------------------------------------- */
typedef struct memory_pool {
    lr_arena arena;
    const lr_driver *driver; /* NULL on the meta device */
    char *base;
} memory_pool;

typedef struct device_memory {
    lr_storage *live; /* doubly linked */
    memory_pool pools[POOLS];
    lr_memory stats;   /* but for reserved_bytes */
    int64_t limit;     /* of live bytes; 0: none */
    lr_piece *scratch; /* of the large pool */
} device_memory;

static device_memory devices[LR_DEVICE_COUNT];

/* AddressSanitizer: bytes of the pool that no tensor asked for are out of bounds. */
#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(p, n) ((void)(p), (void)(n))
#define ASAN_UNPOISON_MEMORY_REGION(p, n) ((void)(p), (void)(n))
#endif

static void mark(const memory_pool *pool, const lr_piece *piece, size_t used)
{
    if (pool->driver == NULL || !pool->driver->watched)
        return;
    ASAN_POISON_MEMORY_REGION(pool->base + piece->offset, piece->bytes);
    ASAN_UNPOISON_MEMORY_REGION(pool->base + piece->offset, used);
}

static int pool_map(void *context, size_t offset, size_t bytes)
{
    const memory_pool *pool = context;
    if (pool->driver == NULL)
        return LR_OK;
    const int status = pool->driver->map(pool->base + offset, bytes);
    if (status == LR_OK)
        mark(pool, &(lr_piece){.offset = offset, .bytes = bytes}, 0);
    return status;
}

static void pool_unmap(void *context, size_t offset, size_t bytes)
{
    const memory_pool *pool = context;
    if (pool->driver != NULL)
        pool->driver->unmap(pool->base + offset, bytes);
}

static int open_pools(int device)
{
    for (int i = POOLS - 1; i >= 0; i--) { /* the large one first: where addresses are few it gets more of them */
        memory_pool *pool = &devices[device].pools[i];
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

static int64_t reserved(const device_memory *m)
{
    return (int64_t)(m->pools[SMALL].arena.mapped_bytes + m->pools[LARGE].arena.mapped_bytes);
}

/* Give memory behind free pieces back until no more than `bytes` are reserved. */
static void trim(device_memory *m, int64_t bytes)
{
    for (int i = POOLS - 1; i >= 0; i--) {
        lr_arena *a = &m->pools[i].arena;
        const int64_t others = reserved(m) - (int64_t)a->mapped_bytes;
        lr_arena_trim(a, (size_t)lr_max64(0, bytes - others));
    }
}

int lr_memory_release_cached(int device)
{
    if (device < 0 || device >= LR_DEVICE_COUNT)
        return lr_fail(LR_EINVAL, "there is no device number %d", device);
    trim(&devices[device], 0);
    return LR_OK;
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
    for (int i = 0; i < POOLS; i++)
        left += (int64_t)(devices[device].pools[i].arena.capacity - devices[device].pools[i].arena.mapped_bytes);
    return left;
}

static int map(memory_pool *pool, const lr_piece *piece)
{
    const size_t missing = lr_arena_missing(&pool->arena, piece);
    if (missing > 0 && pool->driver != NULL && pool->driver->allow != NULL) {
        const int status = pool->driver->allow(missing);
        if (status != LR_OK)
            return status;
    }
    return lr_arena_map(&pool->arena, piece);
}

/* Memory for a piece. The limit is for what is live; what is free gives way to it, as far as it is whole granules. */
static int back(device_memory *m, memory_pool *pool, const lr_piece *piece)
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

/* A piece of a pool for `bytes` and one more. */
static int take(int device, int which, size_t bytes, const char *name, lr_piece **out)
{
    int status = open_pools(device);
    if (status != LR_OK)
        return status;
    device_memory *m = &devices[device];
    memory_pool *pool = &m->pools[which];
    lr_piece *piece = lr_arena_take(&pool->arena, bytes + 1);
    status = piece != NULL ? back(m, pool, piece) : LR_ENOMEM;
    if (status == LR_OK) {
        mark(pool, piece, bytes);
        *out = piece;
        return LR_OK;
    }
    reason_text why = {""};
    if (device == LR_CPU && piece == NULL)
        why = reason(); /* no address is left */
    else if (device == LR_CPU)
        snprintf(why.text, sizeof why.text, " (%.255s)", lr_last_error());
    if (piece != NULL)
        lr_arena_give(&pool->arena, piece);
    if (status != LR_ENOMEM)
        return status;
    return lr_fail(LR_ENOMEM, "out of %s memory: %zu bytes for %s, %lld held already%s", lr_device_name(device), bytes,
                   name, (long long)m->stats.live_bytes, why.text);
}

static void give(int device, int which, lr_piece *piece)
{
    memory_pool *pool = &devices[device].pools[which];
    mark(pool, piece, 0);
    lr_arena_give(&pool->arena, piece);
}

static void *address_of(int device, int which, const lr_piece *piece)
{
    const memory_pool *pool = &devices[device].pools[which];
    return pool->base != NULL ? pool->base + piece->offset : NULL;
}

/* ---- storages -------------------------------------------------------------------------------------------------------- */
static void live_insert(device_memory *m, lr_storage *s)
{
    s->previous = NULL;
    s->next = m->live;
    if (m->live != NULL)
        m->live->previous = s;
    m->live = s;
    m->stats.live_storages++;
    m->stats.live_bytes += (int64_t)s->piece->bytes;
    if (m->stats.live_bytes > m->stats.peak_bytes)
        m->stats.peak_bytes = m->stats.live_bytes;
}

static int pool_of(size_t bytes)
{
    return bytes < LARGE_BYTES ? SMALL : LARGE;
}

int lr_storage_new(lr_storage **out, size_t bytes, int device, const char *name)
{
    if (device < 0 || device >= LR_DEVICE_COUNT || !lr_device_available(device))
        return lr_fail(LR_EDEVICE, "device %s is not available: %s", lr_device_name(device), lr_device_missing(device));
    if (name == NULL || *name == 0)
        name = "tensor";
    if (bytes > (size_t)1 << 52)
        return lr_fail(LR_ENOMEM, "a tensor of %zu bytes is beyond any memory", bytes);
    if (lr_memory_injected())
        return lr_fail(LR_ENOMEM, "out of %s memory: %zu bytes for %s", lr_device_name(device), bytes, name);
    const device_memory *m = &devices[device];
    if (m->limit > 0 && m->stats.live_bytes + (int64_t)bytes > m->limit)
        return lr_fail(LR_ENOMEM, "out of %s memory: %zu bytes for %s, %lld held already, and the limit is %lld",
                       lr_device_name(device), bytes, name, (long long)m->stats.live_bytes, (long long)m->limit);
    lr_storage *s = lr_calloc(1, sizeof *s);
    if (s == NULL)
        return LR_ENOMEM;
    const int status = take(device, pool_of(bytes), bytes, name, &s->piece);
    if (status != LR_OK) {
        lr_free(s);
        return status;
    }
    s->data = address_of(device, pool_of(bytes), s->piece);
    s->bytes = bytes;
    s->device = device;
    s->references = 1;
    snprintf(s->name, sizeof s->name, "%s", name);
    live_insert(&devices[device], s);
    *out = s;
    return LR_OK;
}

void lr_storage_release(lr_storage *s)
{
    if (s == NULL || --s->references > 0)
        return;
    device_memory *m = &devices[s->device];
    if (s->previous != NULL)
        s->previous->next = s->next;
    else
        m->live = s->next;
    if (s->next != NULL)
        s->next->previous = s->previous;
    m->stats.live_storages--;
    m->stats.live_bytes -= (int64_t)s->piece->bytes;
    give(s->device, pool_of(s->bytes), s->piece);
    lr_free(s);
}

/* ---- reports --------------------------------------------------------------------------------------------------------- */
int lr_memory_stats(int device, lr_memory *out)
{
    if (device < 0 || device >= LR_DEVICE_COUNT)
        return lr_fail(LR_EINVAL, "there is no device number %d", device);
    *out = devices[device].stats;
    out->reserved_bytes = reserved(&devices[device]);
    out->host_objects = atomic_load(&host_objects);
    for (int d = 0; d < LR_DEVICE_COUNT; d++)
        out->host_objects -= devices[d].stats.live_storages; /* they are counted as tensors' memory */
    return LR_OK;
}

int lr_memory_reset_peak(int device)
{
    if (device < 0 || device >= LR_DEVICE_COUNT)
        return lr_fail(LR_EINVAL, "there is no device number %d", device);
    devices[device].stats.peak_bytes = devices[device].stats.live_bytes;
    return LR_OK;
}

typedef struct holder {
    char name[sizeof((lr_storage *)0)->name];
    int64_t count, bytes;
} holder;

/* What a buffer is, whichever layer it belongs to: "layers.12.mlp.down" is "layers.*.mlp.down". */
static void kind_of(char *kind, const char *name)
{
    bool start = true; /* of a part between dots */
    while (*name != 0) {
        const size_t digits = start ? strspn(name, "0123456789") : 0;
        if (digits > 0 && (name[digits] == '.' || name[digits] == 0)) {
            *kind++ = '*';
            name += digits;
        } else {
            start = *name == '.';
            *kind++ = *name++;
        }
    }
    *kind = 0;
}

static int larger_first(const void *a, const void *b)
{
    const holder *x = a, *y = b;
    return x->bytes < y->bytes ? 1 : x->bytes > y->bytes ? -1 : strcmp(x->name, y->name);
}

int lr_memory_holders(int device, int lines, char *buf, size_t cap)
{
    /* Called when memory has run out: no allocation here, and names beyond the table's room share its last row. */
    enum { ROWS = 256 };
    static holder rows[ROWS];
    int n = 0;
    if (device < 0 || device >= LR_DEVICE_COUNT || cap == 0)
        return lr_fail(LR_EINVAL, "there is no device number %d, or no room for the answer", device);
    for (const lr_storage *s = devices[device].live; s != NULL; s = s->next) {
        holder new = {"", 0, 0};
        int i = 0;
        kind_of(new.name, s->name);
        while (i < n && strcmp(rows[i].name, new.name) != 0)
            i++;
        if (i == n && n < ROWS - 1)
            rows[n++] = new;
        else if (i == n && n == ROWS - 1)
            rows[n++] = (holder){"others", 0, 0};
        else if (i == n)
            i = ROWS - 1;
        rows[i].count++;
        rows[i].bytes += (int64_t)s->piece->bytes;
    }
    qsort(rows, (size_t)n, sizeof rows[0], larger_first);
    size_t used = 0;
    buf[0] = 0;
    for (int i = 0; i < n && i < lines && used < cap; i++)
        used += (size_t)snprintf(buf + used, cap - used, "%s\t%lld\t%lld\n", rows[i].name, (long long)rows[i].count,
                                 (long long)rows[i].bytes);
    return LR_OK;
}

/* ---- scratch --------------------------------------------------------------------------------------------------------- */
void *lr_scratch_on(int device, size_t bytes)
{
    device_memory *m = &devices[device];
    if (m->scratch == NULL || bytes >= m->scratch->bytes) {
        const size_t grown = bytes + bytes / 8;
        if (m->scratch != NULL)
            give(device, LARGE, m->scratch);
        m->scratch = NULL;
        m->stats.scratch_bytes = 0;
        if (lr_memory_injected()) {
            lr_fail(LR_ENOMEM, "out of %s memory: %zu bytes for an op", lr_device_name(device), grown);
            return NULL;
        }
        if (take(device, LARGE, grown, "an op's working memory", &m->scratch) != LR_OK)
            return NULL;
        m->stats.scratch_bytes = (int64_t)m->scratch->bytes;
    }
    return address_of(device, LARGE, m->scratch);
}
