/* memory.c: storages, the buffers that tensors share: pieces of a device's pools (pools.c).
 *
 * Invariants
 *   - live_bytes counts pieces, not requests: it is what the tensors take of the device.
 *   - Storages are made and released by the Lua thread alone.
 *   - Where an allocation fails, the error is its only effect. */
#include "core/memory.h"
#include "core/pools.h"
#include <stdio.h>

static const size_t LARGE_BYTES = 1 << 20; /* a buffer of this many bytes or more is large */

/* ---- storages -------------------------------------------------------------------------------------------------------- */
static void live_insert(lr_pools *m, lr_storage *s)
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

static lr_pool_kind pool_of(size_t bytes)
{
    return bytes < LARGE_BYTES ? LR_POOL_SMALL : LR_POOL_LARGE;
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
    const lr_pools *m = lr_pools_of(device);
    if (m->limit > 0 && m->stats.live_bytes + (int64_t)bytes > m->limit)
        return lr_fail(LR_ENOMEM, "out of %s memory: %zu bytes for %s, %lld held already, and the limit is %lld",
                       lr_device_name(device), bytes, name, (long long)m->stats.live_bytes, (long long)m->limit);
    lr_storage *s = lr_calloc(1, sizeof *s);
    if (s == NULL)
        return LR_ENOMEM;
    const int status = lr_pool_take(device, pool_of(bytes), bytes, name, &s->piece);
    if (status != LR_OK) {
        lr_free(s);
        return status;
    }
    s->data = lr_pool_address(device, pool_of(bytes), s->piece);
    s->bytes = bytes;
    s->device = device;
    s->references = 1;
    snprintf(s->name, sizeof s->name, "%s", name);
    live_insert(lr_pools_of(device), s);
    *out = s;
    return LR_OK;
}

void lr_storage_release(lr_storage *s)
{
    if (s == NULL || --s->references > 0)
        return;
    lr_pools *m = lr_pools_of(s->device);
    if (s->previous != NULL)
        s->previous->next = s->next;
    else
        m->live = s->next;
    if (s->next != NULL)
        s->next->previous = s->previous;
    m->stats.live_storages--;
    m->stats.live_bytes -= (int64_t)s->piece->bytes;
    lr_pool_give(s->device, pool_of(s->bytes), s->piece);
    lr_free(s);
}
