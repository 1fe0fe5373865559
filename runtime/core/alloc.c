/* alloc.c: small allocations in host memory: counted, and made to fail where a test wants that. Tensors' memory is memory.c's. */
#include "core/limits.h"
#include <errno.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

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

static void fail_host(size_t size)
{
    lr_fail(LR_ENOMEM, "out of host memory: %zu bytes were asked for%s", size, lr_limits_because(ENOMEM).text);
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

int64_t lr_host_objects(void)
{
    return atomic_load(&host_objects);
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
