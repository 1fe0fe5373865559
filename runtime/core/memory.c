/* memory.c: the caching allocator over the device table {cpu, cuda, meta}, small allocations, fault injection.
 *
 * A training step asks for the same few hundred buffers again and again; only their sizes follow the batch. Blocks are
 * therefore rounded up to size classes (eight per power of two, so at most 12.5% is lost), and a freed block waits in its
 * class's list for the next taker: no system call, no page fault, and pages that are warm.
 *
 * The meta device runs the same code without bytes, so a step on it gives the peak that a step with bytes will have.
 *
 * Cached blocks of many classes add up to more than the peak. Under a limit they are given back, largest first, before the
 * device would have to give more; what is live is then all that counts.
 *
 * Invariants
 *   - live_bytes counts blocks, not requests: what the table shows is what is taken.
 *   - Storages are made and released by the Lua thread alone; lr_alloc is used by any thread.
 *   - An allocation that fails has no effect but the error; before it fails, cached blocks are given back and it is retried. */
#include "core/memory.h"
#include "core/device.h"
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MIN_BLOCK = 256, CLASSES_PER_DOUBLING = 8, CLASS_COUNT = 56 * CLASSES_PER_DOUBLING };

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

static void *counted(void *p, size_t size)
{
    if (p == NULL) {
        lr_fail(LR_ENOMEM, "out of host memory: %zu bytes were asked for", size);
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
        lr_fail(LR_ENOMEM, "out of host memory: %zu bytes were asked for", size);
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

/* ---- blocks ---------------------------------------------------------------------------------------------------------- */
typedef struct device_memory {
    lr_storage *live;              /* doubly linked */
    lr_storage *free[CLASS_COUNT]; /* singly linked through next, newest first: its pages are warm */
    lr_memory stats;
    int64_t limit; /* of reserved_bytes; 0: none */
} device_memory;

static device_memory devices[LR_DEVICE_COUNT];

/* The class of a size and the bytes a block of that class has. */
static int size_class(size_t bytes, size_t *block)
{
    if (bytes < MIN_BLOCK)
        bytes = MIN_BLOCK;
    const int log = 63 - __builtin_clzll((unsigned long long)bytes);
    const size_t base = (size_t)1 << log, step = base / CLASSES_PER_DOUBLING;
    const size_t k = (bytes - base + step - 1) / step; /* 0..8; 8 is the next power of two's first class */
    *block = base + k * step;
    return (log - 8) * CLASSES_PER_DOUBLING + (int)k;
}

/* ---- AddressSanitizer: bytes that no tensor asked for are out of bounds ---------------------------------------------- */
#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
static void mark(const lr_storage *s, bool live)
{
    const lr_driver *driver = lr_driver_of(s->device);
    if (driver == NULL || !driver->watched)
        return;
    ASAN_POISON_MEMORY_REGION(s->data, s->block);
    if (live)
        ASAN_UNPOISON_MEMORY_REGION(s->data, s->bytes);
}
static void unmark(const lr_storage *s)
{
    ASAN_UNPOISON_MEMORY_REGION(s->data, s->block);
}
#else
static void mark(const lr_storage *s, bool live)
{
    (void)s;
    (void)live;
}
static void unmark(const lr_storage *s)
{
    (void)s;
}
#endif

static void *block_map(size_t bytes, int device)
{
    return device == LR_META ? NULL : lr_driver_of(device)->alloc(bytes);
}

static void block_unmap(lr_storage *s)
{
    if (s->data == NULL)
        return;
    unmark(s);
    lr_driver_of(s->device)->release(s->data);
}

/* Give cached blocks back, largest first, until no more than `bytes` are reserved. */
static void shrink(device_memory *m, int64_t bytes)
{
    for (int c = CLASS_COUNT - 1; c >= 0; c--)
        while (m->free[c] != NULL && m->stats.reserved_bytes > bytes) {
            lr_storage *s = m->free[c];
            m->free[c] = s->next;
            m->stats.reserved_bytes -= (int64_t)s->block;
            block_unmap(s);
            lr_free(s);
        }
}

int lr_memory_release_cached(int device)
{
    if (device < 0 || device >= LR_DEVICE_COUNT)
        return lr_fail(LR_EINVAL, "there is no device number %d", device);
    shrink(&devices[device], 0);
    return LR_OK;
}

int lr_memory_limit(int device, int64_t bytes)
{
    if (device < 0 || device >= LR_DEVICE_COUNT || bytes < 0)
        return lr_fail(LR_EINVAL, "a limit of %lld bytes for device number %d", (long long)bytes, device);
    devices[device].limit = bytes;
    if (bytes > 0)
        shrink(&devices[device], bytes);
    return LR_OK;
}

/* Make room for another block below the limit. */
static int keep_limit(device_memory *m, int64_t block, int device, const char *name)
{
    if (m->limit == 0)
        return LR_OK;
    shrink(m, m->limit - block);
    if (m->stats.reserved_bytes <= m->limit - block)
        return LR_OK;
    return lr_fail(LR_ENOMEM, "out of %s memory: %lld bytes for %s, %lld held already, and the limit is %lld",
                   lr_device_name(device), (long long)block, name, (long long)m->stats.live_bytes, (long long)m->limit);
}

static void live_insert(device_memory *m, lr_storage *s)
{
    s->previous = NULL;
    s->next = m->live;
    if (m->live != NULL)
        m->live->previous = s;
    m->live = s;
    m->stats.live_storages++;
    m->stats.live_bytes += (int64_t)s->block;
    if (m->stats.live_bytes > m->stats.peak_bytes)
        m->stats.peak_bytes = m->stats.live_bytes;
}

int lr_storage_new(lr_storage **out, size_t bytes, int device, const char *name)
{
    if (device < 0 || device >= LR_DEVICE_COUNT || !lr_device_available(device))
        return lr_fail(LR_EDEVICE, "device %s is not available: %s", lr_device_name(device), lr_device_missing(device));
    device_memory *m = &devices[device];
    size_t block;
    if (bytes > (size_t)1 << 52)
        return lr_fail(LR_ENOMEM, "a tensor of %zu bytes is beyond any memory", bytes);
    const int class = size_class(bytes, &block);
    lr_storage *s = m->free[class];
    if (lr_memory_injected())
        return lr_fail(LR_ENOMEM, "out of %s memory: %zu bytes for %s", lr_device_name(device), bytes, name);
    if (s != NULL) {
        m->free[class] = s->next;
    } else {
        const int status = keep_limit(m, (int64_t)block, device, name);
        if (status != LR_OK)
            return status;
        s = lr_calloc(1, sizeof *s);
        if (s == NULL)
            return LR_ENOMEM;
        s->block = block;
        s->device = device;
        s->data = block_map(block, device);
        if (s->data == NULL && device != LR_META) {
            lr_memory_release_cached(device);
            s->data = block_map(block, device);
        }
        if (s->data == NULL && device != LR_META) {
            lr_free(s);
            return lr_fail(LR_ENOMEM, "out of %s memory: %zu bytes for %s, %lld held already", lr_device_name(device),
                           bytes, name, (long long)m->stats.live_bytes);
        }
        m->stats.reserved_bytes += (int64_t)block;
    }
    s->bytes = bytes;
    s->references = 1;
    snprintf(s->name, sizeof s->name, "%s", name != NULL && *name ? name : "tensor");
    mark(s, true);
    live_insert(m, s);
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
    mark(s, false);
    m->stats.live_storages--;
    m->stats.live_bytes -= (int64_t)s->block;
    size_t block;
    const int class = size_class(s->bytes, &block);
    s->next = m->free[class];
    m->free[class] = s;
}

/* ---- reports --------------------------------------------------------------------------------------------------------- */
int lr_memory_stats(int device, lr_memory *out)
{
    if (device < 0 || device >= LR_DEVICE_COUNT)
        return lr_fail(LR_EINVAL, "there is no device number %d", device);
    *out = devices[device].stats;
    int64_t cached = 0;
    for (int d = 0; d < LR_DEVICE_COUNT; d++) {
        cached += devices[d].stats.live_storages;
        for (int c = 0; c < CLASS_COUNT; c++)
            for (const lr_storage *s = devices[d].free[c]; s != NULL; s = s->next)
                cached++;
    }
    out->host_objects = atomic_load(&host_objects) - cached; /* storages are counted as tensors' memory */
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
        rows[i].bytes += (int64_t)s->block;
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
static struct {
    void *data;
    size_t size;
} scratch[LR_DEVICE_COUNT];

void *lr_scratch_on(int device, size_t bytes)
{
    if (bytes <= scratch[device].size)
        return scratch[device].data;
    const lr_driver *driver = lr_driver_of(device);
    const size_t grown = (bytes + bytes / 8 + 4095) & ~(size_t)4095;
    if (scratch[device].data != NULL)
        driver->release(scratch[device].data);
    scratch[device].data = NULL;
    scratch[device].size = 0;
    devices[device].stats.scratch_bytes = 0;
    void *p = NULL;
    if (!lr_memory_injected() && (p = driver->alloc(grown)) == NULL) {
        lr_memory_release_cached(device);
        p = driver->alloc(grown);
    }
    if (p == NULL) {
        lr_fail(LR_ENOMEM, "out of %s memory: %zu bytes of working memory for an op",
                device == LR_CPU ? "host" : lr_device_name(device), grown);
        return NULL;
    }
    scratch[device].data = p;
    scratch[device].size = grown;
    devices[device].stats.scratch_bytes = (int64_t)grown;
    return p;
}
