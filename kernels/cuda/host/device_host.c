/* device_host.c: a device of host memory, for kernels built by g++: the counterpart of device.c.
 *
 * Device memory is a range of addresses of its own, which is open only while a kernel or a copy runs: code of the runtime that follows a
 * device pointer on the host, which a GPU would not forgive, is a segmentation fault here too. All work is done when the call returns, so
 * streams and events are the CPU's. The device is there where LORARUN_SIMT is set. */
#include "cuda/host/device_host.h"
#include "cuda/cuda.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(p, n) ((void)(p), (void)(n))
#define ASAN_UNPOISON_MEMORY_REGION(p, n) ((void)(p), (void)(n))
#endif

/* ---- memory ------------------------------------------------------------------------------------------------------------ */
enum { PAGE = 4096, HUGE_PAGE = 2 << 20, MAX_RANGES = 1 << 16 };
static const size_t ARENA = (size_t)64 << 30; /* addresses; memory is taken when touched */

/* Ranges of the arena in the order of their addresses; together they are all of it up to `top`. */
typedef struct range {
    size_t offset, bytes;
    bool taken;
} range;

static char *arena;
static range ranges[MAX_RANGES];
static int range_count;
static size_t top; /* what lies above was never given out */
static int openings;
static pthread_mutex_t openings_lock = PTHREAD_MUTEX_INITIALIZER;

static int reserve(void)
{
    if (arena != NULL)
        return LR_OK;
    void *p = mmap(NULL, ARENA + HUGE_PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED)
        return lr_fail_errno("reserving addresses for device memory");
    arena = (char *)(((uintptr_t)p + HUGE_PAGE - 1) & ~(uintptr_t)(HUGE_PAGE - 1));
    madvise(arena, ARENA, MADV_HUGEPAGE); /* or opening and closing would walk many small pages */
    return LR_OK;
}

static void protect(int how)
{
    const size_t used = (top + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE;
    if (used > 0)
        mprotect(arena, used, how); /* where this fails, the access that follows ends the process and so says it */
}

/* Copies may run side by side. */
void lr_device_memory_open(void)
{
    pthread_mutex_lock(&openings_lock);
    if (openings++ == 0)
        protect(PROT_READ | PROT_WRITE);
    pthread_mutex_unlock(&openings_lock);
}

void lr_device_memory_close(void)
{
    pthread_mutex_lock(&openings_lock);
    if (--openings == 0)
        protect(PROT_NONE);
    pthread_mutex_unlock(&openings_lock);
}

static void insert_range(int at, range r)
{
    memmove(&ranges[at + 1], &ranges[at], (size_t)(range_count - at) * sizeof r);
    ranges[at] = r;
    range_count++;
}

static void *give_out(range *r, size_t bytes)
{
    r->taken = true;
    ASAN_UNPOISON_MEMORY_REGION(arena + r->offset, bytes);
    return arena + r->offset;
}

static void *alloc(size_t bytes)
{
    const size_t whole = (bytes + PAGE - 1) / PAGE * PAGE + PAGE; /* a page between any two */
    if (reserve() != LR_OK || range_count + 1 >= MAX_RANGES)
        return NULL;
    for (int i = 0; i < range_count; i++) {
        if (ranges[i].taken || ranges[i].bytes < whole)
            continue;
        if (ranges[i].bytes > whole)
            insert_range(i + 1, (range){ranges[i].offset + whole, ranges[i].bytes - whole, false});
        ranges[i].bytes = whole;
        return give_out(&ranges[i], bytes);
    }
    if (whole > ARENA - top)
        return NULL;
    insert_range(range_count, (range){top, whole, true});
    ASAN_POISON_MEMORY_REGION(arena + top, whole);
    top += whole;
    return give_out(&ranges[range_count - 1], bytes);
}

/* Range i + 1 becomes part of range i. */
static void merge(int i)
{
    ranges[i].bytes += ranges[i + 1].bytes;
    range_count--;
    memmove(&ranges[i + 1], &ranges[i + 2], (size_t)(range_count - i - 1) * sizeof ranges[0]);
}

static void release(void *p)
{
    const size_t offset = (size_t)((char *)p - arena);
    int i = 0;
    while (ranges[i].offset != offset)
        i++;
    ASAN_POISON_MEMORY_REGION(p, ranges[i].bytes);
    madvise(p, ranges[i].bytes, MADV_DONTNEED);
    ranges[i].taken = false;
    if (i + 1 < range_count && !ranges[i + 1].taken)
        merge(i);
    if (i > 0 && !ranges[i - 1].taken)
        merge(i - 1);
}

/* ---- copies ------------------------------------------------------------------------------------------------------------ */
static int copy(lr_stream *stream, const lr_copy *c)
{
    lr_device_memory_open();
    const int status = lr_cpu_driver()->copy(stream, c);
    lr_device_memory_close();
    return status;
}

static int fill(lr_stream *stream, const lr_copy *c, const void *element, size_t size)
{
    const int64_t n = (int64_t)size;
    return lr_cuda_fill(stream, c->to, (int64_t)c->to_pitch / n, (int64_t)c->width / n, (int64_t)c->rows, element,
                        (int)size);
}

/* ---- the device -------------------------------------------------------------------------------------------------------- */
static lr_fault fault;

/* A program built for these tests is in all else the one for the CPU: who wants this device says so. */
static int count_devices(void)
{
    return getenv("LORARUN_SIMT") != NULL;
}

static int open_device(int index)
{
    (void)index; /* there is one */
    if (getenv("LORARUN_SIMT") == NULL)
        return lr_fail(LR_EDEVICE,
                       "this lorarun runs CUDA's kernels on the CPU, for tests: LORARUN_SIMT=1 makes that a device");
    return reserve();
}

static int describe(char *buf, size_t cap)
{
    snprintf(buf, cap, "CUDA kernels on the CPU, for tests");
    return LR_OK;
}

static int memory_info(int64_t *free_bytes, int64_t *total_bytes)
{
    *free_bytes = (int64_t)(ARENA - top);
    *total_bytes = (int64_t)ARENA;
    return LR_OK;
}

/* No GPU has this one, but the NVML that tests bring along. */
static int uuid(int index, char *buf, size_t cap)
{
    snprintf(buf, cap, "GPU-00000000-0000-0000-0000-%012d", index);
    return LR_OK;
}

static void prepare(lr_exec *exec)
{
    exec->stream = NULL;
    exec->fault = &fault;
}

static int stream_wait(lr_stream *stream)
{
    (void)stream;
    return lr_cuda_take_fault(&fault);
}

const lr_driver *lr_cuda_driver(void)
{
    static lr_driver driver;
    if (driver.open == NULL) {
        driver = *lr_cpu_driver();
        driver.addressable = false;
        driver.watched = true;
        driver.count = count_devices;
        driver.open = open_device;
        driver.describe = describe;
        driver.memory_info = memory_info;
        driver.uuid = uuid;
        driver.kernels = lr_cuda_backend;
        driver.prepare = prepare;
        driver.alloc = alloc;
        driver.release = release;
        driver.copy = copy;
        driver.fill = fill;
        driver.stream_wait = stream_wait;
    }
    return &driver;
}
