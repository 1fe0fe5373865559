/* fake_driver.c: virtual memory as the CUDA driver API describes it: separate calls reserve addresses, create memory, map it and
 * allow access. The GPU's memory is memory of this process; FAKE_CUDA_MEMORY is its size in MiB (8192). */
#define _GNU_SOURCE
#include "fake_cuda.h"
#include <cuda.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>

enum { GRANULE = 2 << 20, MOST_RESERVATIONS = 16, MOST_MAPPINGS = 1 << 14 };

typedef struct memory {
    size_t bytes;
    bool mapped, released;
} memory;

static struct {
    uintptr_t base;
    size_t bytes;
} reservations[MOST_RESERVATIONS];
static struct {
    uintptr_t at;
    memory *of; /* NULL: no mapping */
} mappings[MOST_MAPPINGS];
static size_t taken;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static size_t whole(void)
{
    const char *text = getenv("FAKE_CUDA_MEMORY");
    return (text != NULL ? (size_t)atoll(text) : 8192) << 20;
}

void fake_cuda_memory(size_t *free_bytes, size_t *total)
{
    *total = whole();
    *free_bytes = *total - taken;
}

EXPORT CUresult cuDeviceGetAttribute(int *value, CUdevice_attribute attribute, CUdevice device)
{
    ALLOWED(attribute == CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED && device == 0);
    *value = getenv("FAKE_CUDA_UNABLE") == NULL;
    return CUDA_SUCCESS;
}

EXPORT CUresult cuMemAddressReserve(CUdeviceptr *out, size_t bytes, size_t alignment, CUdeviceptr address,
                                    unsigned long long flags)
{
    ALLOWED(bytes > 0 && bytes % GRANULE == 0 && alignment <= GRANULE && address == 0 && flags == 0);
    void *p = mmap(NULL, bytes + GRANULE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED)
        return CUDA_ERROR_OUT_OF_MEMORY;
    int i = 0;
    while (reservations[i].bytes > 0)
        ALLOWED(++i < MOST_RESERVATIONS);
    reservations[i].base = ((uintptr_t)p + GRANULE - 1) / GRANULE * GRANULE;
    reservations[i].bytes = bytes;
    *out = (CUdeviceptr)reservations[i].base;
    return CUDA_SUCCESS;
}

static bool reserved(uintptr_t at, size_t bytes)
{
    for (int i = 0; i < MOST_RESERVATIONS; i++)
        if (at >= reservations[i].base && at + bytes <= reservations[i].base + reservations[i].bytes)
            return true;
    return false;
}

EXPORT CUresult cuMemCreate(CUmemGenericAllocationHandle *out, size_t bytes, const CUmemAllocationProp *what,
                            unsigned long long flags)
{
    MAY_FAIL(CUresult);
    ALLOWED(bytes > 0 && bytes % GRANULE == 0 && flags == 0);
    ALLOWED(what->type == CU_MEM_ALLOCATION_TYPE_PINNED && what->location.type == CU_MEM_LOCATION_TYPE_DEVICE &&
            what->location.id == 0 && what->requestedHandleTypes == CU_MEM_HANDLE_TYPE_NONE);
    pthread_mutex_lock(&lock);
    const bool room = taken + bytes <= whole();
    taken += room ? bytes : 0;
    pthread_mutex_unlock(&lock);
    if (!room)
        return CUDA_ERROR_OUT_OF_MEMORY;
    memory *m = calloc(1, sizeof *m);
    ALLOWED(m != NULL);
    m->bytes = bytes;
    *out = (CUmemGenericAllocationHandle)(uintptr_t)m;
    return CUDA_SUCCESS;
}

static void free_unused(memory *m)
{
    if (m->mapped || !m->released)
        return;
    taken -= m->bytes;
    free(m);
}

EXPORT CUresult cuMemMap(CUdeviceptr at, size_t bytes, size_t offset, CUmemGenericAllocationHandle handle,
                         unsigned long long flags)
{
    memory *m = (memory *)(uintptr_t)handle;
    ALLOWED(offset == 0 && flags == 0 && bytes == m->bytes && at % GRANULE == 0 && !m->mapped && !m->released);
    ALLOWED(reserved((uintptr_t)at, bytes));
    pthread_mutex_lock(&lock);
    int slot = -1;
    for (int i = 0; i < MOST_MAPPINGS; i++) {
        if (mappings[i].of == NULL)
            slot = slot < 0 ? i : slot;
        else
            ALLOWED(mappings[i].at + mappings[i].of->bytes <= at || at + bytes <= mappings[i].at);
    }
    ALLOWED(slot >= 0);
    mappings[slot].at = (uintptr_t)at;
    mappings[slot].of = m;
    m->mapped = true;
    pthread_mutex_unlock(&lock);
    return CUDA_SUCCESS;
}

static int mapping_at(uintptr_t at, size_t bytes)
{
    for (int i = 0; i < MOST_MAPPINGS; i++)
        if (mappings[i].of != NULL && mappings[i].at == at && mappings[i].of->bytes == bytes)
            return i;
    return -1;
}

/* New memory holds arbitrary values. */
EXPORT CUresult cuMemSetAccess(CUdeviceptr at, size_t bytes, const CUmemAccessDesc *access, size_t count)
{
    ALLOWED(count == 1 && access->location.type == CU_MEM_LOCATION_TYPE_DEVICE && access->location.id == 0 &&
            access->flags == CU_MEM_ACCESS_FLAGS_PROT_READWRITE);
    ALLOWED(mapping_at((uintptr_t)at, bytes) >= 0);
    MAY_FAIL(CUresult);
    if (mprotect((void *)(uintptr_t)at, bytes, PROT_READ | PROT_WRITE) != 0)
        return CUDA_ERROR_OUT_OF_MEMORY;
    memset((void *)(uintptr_t)at, 0xa5, 4096);
    return CUDA_SUCCESS;
}

EXPORT CUresult cuMemUnmap(CUdeviceptr at, size_t bytes)
{
    const int i = mapping_at((uintptr_t)at, bytes);
    ALLOWED(i >= 0); /* one call unmaps exactly what one call mapped */
    fake_cuda_flush();
    madvise((void *)(uintptr_t)at, bytes, MADV_DONTNEED);
    mprotect((void *)(uintptr_t)at, bytes, PROT_NONE);
    pthread_mutex_lock(&lock);
    mappings[i].of->mapped = false;
    free_unused(mappings[i].of);
    mappings[i].of = NULL;
    pthread_mutex_unlock(&lock);
    return CUDA_SUCCESS;
}

EXPORT CUresult cuMemRelease(CUmemGenericAllocationHandle handle)
{
    memory *m = (memory *)(uintptr_t)handle;
    ALLOWED(!m->released);
    pthread_mutex_lock(&lock);
    m->released = true;
    free_unused(m);
    pthread_mutex_unlock(&lock);
    return CUDA_SUCCESS;
}
