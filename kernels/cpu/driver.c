/* driver.c: the CPU as a device. Work is done when the call returns, so there is nothing in a stream, and of an event only its
 * time. */
#include "core/device.h"
#include "core/limits.h"
#include "cpu/gemm.h"
#include "cpu/select.h"
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sysinfo.h>

enum { HUGE_PAGE = 2 << 20 };
static const int64_t LEAST_ADDRESSES = 16 << 20; /* that a pool is worth having with */
/* Where addresses are limited, this many are left to files, Lua and libraries; and to each thread the usual stack and some more. */
static const int64_t OTHERS_ADDRESSES = 192 << 20;
static const int64_t THREAD_ADDRESSES = 9 << 20;

static int count_one(void)
{
    return 1;
}

static int open_cpu(int index)
{
    (void)index;
    return LR_OK;
}

static int describe(char *buf, size_t cap)
{
    char model[160] = "CPU", line[256];
    FILE *f = fopen("/proc/cpuinfo", "r");
    while (f != NULL && fgets(line, sizeof line, f) != NULL)
        if (sscanf(line, "model name : %159[^\n]", model) == 1)
            break;
    if (f != NULL)
        fclose(f);
    struct sysinfo s;
    const double gib = sysinfo(&s) == 0 ? (double)s.totalram * s.mem_unit / (1 << 30) : 0.0;
    const int n = lr_threads();
    snprintf(buf, cap, "%s (%s, %d %s, %.1f GiB)", model, lr_cpu_isa(), n, n == 1 ? "thread" : "threads", gib);
    return LR_OK;
}

static int memory_info(int64_t *free_bytes, int64_t *total_bytes)
{
    struct sysinfo s;
    if (sysinfo(&s) != 0)
        return lr_fail_errno("asking for the size of the memory");
    *free_bytes = (int64_t)s.freeram * s.mem_unit;
    *total_bytes = (int64_t)s.totalram * s.mem_unit;
    return LR_OK;
}

static void prepare(lr_exec *exec)
{
    /* Where the threads cannot be started, one does all. A job has started them before, and failed with the reason. */
    if (lr_threads_start() != LR_OK)
        (void)lr_threads_set(1);
    exec->threads = lr_threads();
}

/* Reserved addresses count only for the limit of addresses (ulimit -v), which some machines set. There, a pool gets half of what
 * is left when the others have theirs. */
static int reserve(void **out, size_t *bytes)
{
    int64_t available, total = 0;
    const int status = memory_info(&available, &total);
    if (status != LR_OK)
        return status;
    int64_t most = 4 * total;
    const int64_t left = lr_limits_left(LR_LIMIT_ADDRESSES);
    if (left < INT64_MAX)
        most = lr_min64(most, (left - OTHERS_ADDRESSES - lr_threads() * THREAD_ADDRESSES) / 2);
    for (size_t size = (size_t)lr_max64(0, most); size >= (size_t)LEAST_ADDRESSES; size /= 2) {
        void *p = mmap(NULL, size + HUGE_PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (p == MAP_FAILED)
            continue;
        *bytes = size;
        *out = (void *)(((uintptr_t)p + HUGE_PAGE - 1) & ~(uintptr_t)(HUGE_PAGE - 1));
        return LR_OK;
    }
    return lr_fail(LR_ENOMEM, "out of cpu memory: no addresses are left for tensors%s", lr_limits_because(ENOMEM).text);
}

static int map(void *p, size_t bytes)
{
    if (mprotect(p, bytes, PROT_READ | PROT_WRITE) != 0)
        return lr_fail_errno("%zu bytes more", bytes);
    if (bytes > HUGE_PAGE)
        madvise(p, bytes, MADV_HUGEPAGE); /* for fewer TLB misses in GEMM; it may be refused */
    return LR_OK;
}

static void unmap(void *p, size_t bytes)
{
    madvise(p, bytes, MADV_DONTNEED);
    mprotect(p, bytes, PROT_NONE);
}

static int alloc_pinned(void **out, size_t bytes)
{
    return posix_memalign(out, HUGE_PAGE, bytes) == 0 ? LR_OK : lr_fail(LR_ENOMEM, "out of memory: %zu bytes", bytes);
}

static int copy(lr_stream *stream, const lr_copy *c)
{
    (void)stream;
    for (size_t i = 0; i < c->rows; i++)
        memcpy((char *)c->to + i * c->to_pitch, (const char *)c->from + i * c->from_pitch, c->width);
    return LR_OK;
}

static int fill(lr_stream *stream, const lr_copy *c, const void *element, size_t size)
{
    static const char zero[8];
    (void)stream;
    for (size_t i = 0; i < c->rows; i++) {
        char *row = (char *)c->to + i * c->to_pitch;
        if (memcmp(element, zero, size) == 0) {
            memset(row, 0, c->width);
            continue;
        }
        for (size_t at = 0; at < c->width; at += size)
            memcpy(row + at, element, size);
    }
    return LR_OK;
}

static lr_stream *compute_stream(void)
{
    return NULL;
}

static int stream_new(lr_stream **out)
{
    *out = NULL;
    return LR_OK;
}

static void stream_free(lr_stream *stream)
{
    (void)stream;
}

static int stream_wait(lr_stream *stream)
{
    (void)stream;
    return LR_OK;
}

static int stream_wait_event(lr_stream *stream, lr_device_event *event)
{
    (void)stream;
    (void)event;
    return LR_OK;
}

/* Events come from a fixed stock: few are needed, and some live as long as the process and would look like leaks. */
struct lr_device_event {
    double time;
    bool taken;
};
static lr_device_event events[64];
static pthread_mutex_t events_lock = PTHREAD_MUTEX_INITIALIZER;

static int event_new(lr_device_event **out)
{
    pthread_mutex_lock(&events_lock);
    size_t i = 0;
    while (i < LR_COUNT_OF(events) && events[i].taken)
        i++;
    if (i < LR_COUNT_OF(events))
        events[i] = (lr_device_event){.taken = true};
    pthread_mutex_unlock(&events_lock);
    if (i == LR_COUNT_OF(events))
        return lr_fail(LR_ENOMEM, "more than %zu events at a time", LR_COUNT_OF(events));
    *out = &events[i];
    return LR_OK;
}

static void event_free(lr_device_event *event)
{
    pthread_mutex_lock(&events_lock);
    if (event != NULL)
        event->taken = false;
    pthread_mutex_unlock(&events_lock);
}

static int event_record(lr_device_event *event, lr_stream *stream)
{
    (void)stream;
    event->time = lr_time();
    return LR_OK;
}

static int event_wait(lr_device_event *event)
{
    (void)event;
    return LR_OK;
}

static int event_seconds(lr_device_event *from, lr_device_event *to, double *seconds)
{
    *seconds = to->time - from->time;
    return LR_OK;
}

const lr_driver *lr_cpu_driver(void); /* listed by the build, see core/device.c */

const lr_driver *lr_cpu_driver(void)
{
    static const lr_driver driver = {
        .device = LR_CPU,
        .name = "cpu",
        .addressable = true,
        .traits = {.noun = "CPU"},
        .watched = true,
        .count = count_one,
        .open = open_cpu,
        .describe = describe,
        .memory_info = memory_info,
        .kernels = lr_cpu_backend,
        .prepare = prepare,
        .pack = lr_cpu_pack,
        .reserve = reserve,
        .allow = lr_limits_allow,
        .map = map,
        .unmap = unmap,
        .alloc_pinned = alloc_pinned,
        .release_pinned = free,
        .copy = copy,
        .fill = fill,
        .compute_stream = compute_stream,
        .stream_new = stream_new,
        .stream_free = stream_free,
        .stream_wait = stream_wait,
        .stream_wait_event = stream_wait_event,
        .event_new = event_new,
        .event_free = event_free,
        .event_record = event_record,
        .event_wait = event_wait,
        .event_seconds = event_seconds,
    };
    return &driver;
}
