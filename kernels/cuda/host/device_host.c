/* device_host.c: a device of host memory, for kernels built by g++: the counterpart of cuda/driver.c.
 *
 * Device memory is a range of addresses of its own, which is open only while a kernel or a copy runs: code of the runtime that
 * follows a device pointer on the host, which a GPU would not forgive, is a segmentation fault here too. All work is done when
 * the call returns, so streams and events are the CPU's. LORARUN_SIMT=n makes n such devices. */
#include "cuda/host/device_host.h"
#include "cuda/cuda.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

/* ---- memory ------------------------------------------------------------------------------------------------------------ */
enum { HUGE_PAGE = 2 << 20, RANGES = 2 };         /* as many ranges as pools.c asks for */
static const size_t ADDRESSES = (size_t)32 << 30; /* of each; memory is taken when touched */

static struct {
    char *base;
    size_t top; /* what lies above was never mapped */
} ranges[RANGES];
static int64_t mapped_bytes;
static int openings;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* of all these: copies may run in parallel */

static int reserve(void **out, size_t *bytes)
{
    void *p = mmap(NULL, ADDRESSES + HUGE_PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    int i = 0;
    while (i < RANGES && ranges[i].base != NULL)
        i++;
    if (p == MAP_FAILED || i == RANGES)
        return lr_fail(LR_ENOMEM, "out of addresses: %zu bytes", ADDRESSES);
    ranges[i].base = (char *)(((uintptr_t)p + HUGE_PAGE - 1) & ~(uintptr_t)(HUGE_PAGE - 1));
    madvise(ranges[i].base, ADDRESSES, MADV_HUGEPAGE); /* opening and closing would otherwise walk many small pages */
    *bytes = ADDRESSES;
    *out = ranges[i].base;
    return LR_OK;
}

/* Not checked: where this fails, the next access ends the process. */
static void protect(int how)
{
    for (int i = 0; i < RANGES; i++)
        if (ranges[i].top > 0)
            mprotect(ranges[i].base, ranges[i].top, how);
}

static int map(void *p, size_t bytes)
{
    pthread_mutex_lock(&lock);
    for (int i = 0; i < RANGES; i++) {
        const size_t end = (size_t)((char *)p - ranges[i].base) + bytes;
        if ((char *)p >= ranges[i].base && end <= ADDRESSES && end > ranges[i].top)
            ranges[i].top = end;
    }
    mapped_bytes += (int64_t)bytes;
    if (openings > 0)
        protect(PROT_READ | PROT_WRITE);
    pthread_mutex_unlock(&lock);
    return LR_OK;
}

static void unmap(void *p, size_t bytes)
{
    pthread_mutex_lock(&lock);
    madvise(p, bytes, MADV_DONTNEED);
    mapped_bytes -= (int64_t)bytes;
    pthread_mutex_unlock(&lock);
}

void lr_device_memory_open(void)
{
    pthread_mutex_lock(&lock);
    if (openings++ == 0)
        protect(PROT_READ | PROT_WRITE);
    pthread_mutex_unlock(&lock);
}

void lr_device_memory_close(void)
{
    pthread_mutex_lock(&lock);
    if (--openings == 0)
        protect(PROT_NONE);
    pthread_mutex_unlock(&lock);
}

/* ---- copies ------------------------------------------------------------------------------------------------------------ */
static int copy(lr_stream *stream, const lr_copy *c)
{
    lr_device_memory_open();
    const int status = lr_driver_of(LR_CPU)->copy(stream, c);
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

/* A program built for these tests is otherwise the one for the CPU: it has this device only where LORARUN_SIMT is set. */
static int count_devices(void)
{
    const char *text = getenv("LORARUN_SIMT");
    return text != NULL ? atoi(text) : 0;
}

static int open_device(int index)
{
    if (index >= count_devices())
        return lr_fail(LR_EDEVICE,
                       "this lorarun runs CUDA's kernels on the CPU, for tests: LORARUN_SIMT=1 makes that a device");
    return LR_OK;
}

static int describe(char *buf, size_t cap)
{
    snprintf(buf, cap, "CUDA kernels on the CPU, for tests");
    return LR_OK;
}

static int memory_info(int64_t *free_bytes, int64_t *total_bytes)
{
    *total_bytes = RANGES * (int64_t)ADDRESSES;
    *free_bytes = *total_bytes - mapped_bytes;
    return LR_OK;
}

/* That of the GPU in the NVML that tests make (tests/nvml), and of no real one. */
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
    static lr_driver driver = {
        LR_CUDA_KIND,
        .addressable = false,
        .watched = true,
        .count = count_devices,
        .open = open_device,
        .describe = describe,
        .memory_info = memory_info,
        .uuid = uuid,
        .prepare = prepare,
        .reserve = reserve,
        .map = map,
        .unmap = unmap,
        .copy = copy,
        .fill = fill,
        .stream_wait = stream_wait,
    };
    if (driver.compute_stream == NULL) { /* all that is the CPU's */
        const lr_driver *cpu = lr_driver_of(LR_CPU);
        driver.allow = cpu->allow;
        driver.alloc_pinned = cpu->alloc_pinned;
        driver.release_pinned = cpu->release_pinned;
        driver.stream_new = cpu->stream_new;
        driver.stream_free = cpu->stream_free;
        driver.stream_wait_event = cpu->stream_wait_event;
        driver.event_new = cpu->event_new;
        driver.event_free = cpu->event_free;
        driver.event_record = cpu->event_record;
        driver.event_wait = cpu->event_wait;
        driver.event_seconds = cpu->event_seconds;
        driver.compute_stream = cpu->compute_stream;
    }
    return &driver;
}
