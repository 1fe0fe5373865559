/* memory_report.c: what the allocator knows, for people: totals of a device, and which tensors hold its memory. */
#include "core/pools.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int lr_memory_stats(int device, lr_memory *out)
{
    if (device < 0 || device >= LR_DEVICE_COUNT)
        return lr_fail(LR_EINVAL, "there is no device number %d", device);
    *out = lr_pools_of(device)->stats;
    out->reserved_bytes = lr_pools_reserved(lr_pools_of(device));
    out->host_objects = lr_host_objects();
    for (int d = 0; d < LR_DEVICE_COUNT; d++)
        out->host_objects -= lr_pools_of(d)->stats.live_storages; /* these are counted as tensors' memory */
    return LR_OK;
}

int lr_memory_reset_peak(int device)
{
    if (device < 0 || device >= LR_DEVICE_COUNT)
        return lr_fail(LR_EINVAL, "there is no device number %d", device);
    lr_pools_of(device)->stats.peak_bytes = lr_pools_of(device)->stats.live_bytes;
    if (device == LR_META)
        lr_scratch_drop(device);
    return LR_OK;
}

typedef struct holder {
    char name[sizeof((lr_storage *)0)->name];
    int64_t count, bytes;
} holder;

/* A buffer's name without the number of its layer: "layers.12.mlp.down" becomes "layers.*.mlp.down". */
static void kind_of(char *kind, const char *name)
{
    bool start = true; /* at the start of a part between dots */
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
    /* Called when memory has run out, so nothing is allocated here; names that do not fit the table share its last row. */
    enum { ROWS = 256 };
    static holder rows[ROWS];
    int n = 0;
    if (device < 0 || device >= LR_DEVICE_COUNT || cap == 0)
        return lr_fail(LR_EINVAL, "there is no device number %d, or no room for the answer", device);
    for (const lr_storage *s = lr_pools_of(device)->live; s != NULL; s = s->next) {
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
