/* fake_cudart.c: the CUDA runtime for one GPU, whose memory is the processor's.
 *
 * All streams are one queue. Work that a call may do later is done as late as possible: a copy from or to pinned memory is done
 * when there is a wait, or a kernel or product begins. So code that changes pinned memory too soon, or reads what has not
 * arrived, gets wrong values. Copies of pageable memory are done when the call returns, as the documentation says. Kernels run
 * when they are launched. */
#include "cuda/host/device_host.h"
#include "fake_cuda.h"
#include <cuda_runtime_api.h>
#include <dlfcn.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>
#include <time.h>

enum { MOST_QUEUED = 4096, MOST_PINNED = 64 };

typedef struct work {
    void *to;
    const void *from;  /* NULL: fill with zeros */
    cudaEvent_t event; /* or take the time */
    size_t to_pitch, from_pitch, width, rows;
} work;

struct CUevent_st {
    double time;
    bool recorded;
    uint64_t place; /* in the queue, counted from the beginning */
};
struct CUstream_st {
    int unused;
};

static work queue[MOST_QUEUED];
static uint64_t queued, done;
static struct {
    char *base;
    size_t bytes;
} pinned[MOST_PINNED];
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static cudaError_t last_error;
static _Thread_local int device_of_thread; /* each thread begins with the first */

static cudaError_t result(cudaError_t error)
{
    if (error != cudaSuccess)
        last_error = error;
    return error;
}

/* ---- the queue --------------------------------------------------------------------------------------------------------- */
static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void run(const work *w)
{
    if (w->event != NULL) {
        w->event->time = now();
        return;
    }
    for (size_t i = 0; i < w->rows; i++) {
        if (w->from == NULL)
            memset((char *)w->to + i * w->to_pitch, 0, w->width);
        else
            memcpy((char *)w->to + i * w->to_pitch, (const char *)w->from + i * w->from_pitch, w->width);
    }
}

/* Do everything up to a place; the lock is held. */
static void run_until(uint64_t place)
{
    while (done < place)
        run(&queue[done++ % MOST_QUEUED]);
}

static void flush_locked(void)
{
    run_until(queued);
}

void fake_cuda_flush(void)
{
    pthread_mutex_lock(&lock);
    flush_locked();
    pthread_mutex_unlock(&lock);
}

static void put(const work *w)
{
    if (queued - done == MOST_QUEUED)
        flush_locked();
    queue[queued++ % MOST_QUEUED] = *w;
}

/* All that was put on the stream before a kernel is done when the kernel runs. */
void lr_device_memory_open(void)
{
    fake_cuda_flush();
}

void lr_device_memory_close(void)
{
}

/* ---- devices ----------------------------------------------------------------------------------------------------------- */
cudaError_t cudaGetDeviceCount(int *count)
{
    *count = 1;
    return cudaSuccess;
}

cudaError_t cudaSetDevice(int device)
{
    if (device != 0)
        return result(cudaErrorInvalidDevice);
    device_of_thread = device;
    return cudaSuccess;
}

cudaError_t cudaGetDevice(int *device)
{
    *device = device_of_thread;
    return cudaSuccess;
}

cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *p, int device)
{
    if (device != 0)
        return result(cudaErrorInvalidDevice);
    memset(p, 0, sizeof *p);
    snprintf(p->name, sizeof p->name, "fake GPU");
    p->major = 9;
    p->multiProcessorCount = 2;
    p->totalGlobalMem = (size_t)8 << 30;
    return cudaSuccess;
}

cudaError_t cudaDriverGetVersion(int *version)
{
    *version = CUDART_VERSION;
    return cudaSuccess;
}

cudaError_t cudaMemGetInfo(size_t *free_bytes, size_t *total)
{
    void *driver = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
    ALLOWED(driver != NULL);
    void (*ask)(size_t *, size_t *);
    *(void **)&ask = dlsym(driver, "fake_cuda_memory");
    ask(free_bytes, total);
    return cudaSuccess;
}

size_t fake_cuda_available(void)
{
    size_t available, total;
    return cudaMemGetInfo(&available, &total) == cudaSuccess ? available : 0;
}

cudaError_t cudaGetLastError(void)
{
    const cudaError_t error = last_error;
    last_error = cudaSuccess;
    return error;
}

const char *cudaGetErrorString(cudaError_t error)
{
    return error == cudaSuccess ? "no error" : error == cudaErrorIllegalAddress ? "an illegal access" : "an error";
}

const char *cudaGetErrorName(cudaError_t error)
{
    return error == cudaSuccess ? "cudaSuccess" : "cudaError";
}

cudaError_t cudaDeviceSynchronize(void)
{
    MAY_FAIL(cudaError_t);
    fake_cuda_flush();
    return cudaSuccess;
}

/* ---- memory ------------------------------------------------------------------------------------------------------------ */
cudaError_t cudaHostAlloc(void **out, size_t bytes, unsigned flags)
{
    MAY_FAIL(cudaError_t);
    ALLOWED(flags == cudaHostAllocPortable);
    void *p = aligned_alloc(4096, (bytes + 4095) / 4096 * 4096);
    if (p == NULL)
        return result(cudaErrorMemoryAllocation);
    pthread_mutex_lock(&lock);
    int i = 0;
    while (pinned[i].base != NULL)
        ALLOWED(++i < MOST_PINNED);
    pinned[i].base = p;
    pinned[i].bytes = bytes;
    pthread_mutex_unlock(&lock);
    *out = p;
    return cudaSuccess;
}

cudaError_t cudaFreeHost(void *p)
{
    pthread_mutex_lock(&lock);
    flush_locked(); /* it waits for the copies that use the memory */
    for (int i = 0; p != NULL; i++) {
        ALLOWED(i < MOST_PINNED);
        if (pinned[i].base == p) {
            pinned[i].base = NULL;
            break;
        }
    }
    pthread_mutex_unlock(&lock);
    free(p);
    return cudaSuccess;
}

static bool is_pinned(const void *p, size_t bytes)
{
    for (int i = 0; i < MOST_PINNED; i++)
        if (pinned[i].base != NULL && (const char *)p >= pinned[i].base &&
            (const char *)p + bytes <= pinned[i].base + pinned[i].bytes)
            return true;
    return false;
}

static cudaError_t copy(void *to, size_t to_pitch, const void *from, size_t from_pitch, size_t width, size_t rows,
                        enum cudaMemcpyKind kind)
{
    if (width == 0 || rows == 0)
        return cudaSuccess;
    ALLOWED(width <= to_pitch && width <= from_pitch);
    const work w = {
        .to = to, .from = from, .to_pitch = to_pitch, .from_pitch = from_pitch, .width = width, .rows = rows};
    const void *host = kind == cudaMemcpyHostToDevice ? from : kind == cudaMemcpyDeviceToHost ? to : NULL;
    const size_t span = (rows - 1) * (kind == cudaMemcpyHostToDevice ? from_pitch : to_pitch) + width;
    pthread_mutex_lock(&lock);
    put(&w);
    if (host != NULL && !is_pinned(host, span))
        flush_locked();
    pthread_mutex_unlock(&lock);
    return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, enum cudaMemcpyKind kind, cudaStream_t stream)
{
    ALLOWED(stream != NULL);
    return copy(to, bytes, from, bytes, bytes, 1, kind);
}

cudaError_t cudaMemcpy2DAsync(void *to, size_t to_pitch, const void *from, size_t from_pitch, size_t width, size_t rows,
                              enum cudaMemcpyKind kind, cudaStream_t stream)
{
    ALLOWED(stream != NULL);
    return copy(to, to_pitch, from, from_pitch, width, rows, kind);
}

cudaError_t cudaMemset2DAsync(void *to, size_t pitch, int value, size_t width, size_t rows, cudaStream_t stream)
{
    ALLOWED(stream != NULL && value == 0 && width <= pitch);
    const work w = {.to = to, .to_pitch = pitch, .width = width, .rows = rows};
    pthread_mutex_lock(&lock);
    put(&w);
    pthread_mutex_unlock(&lock);
    return cudaSuccess;
}

cudaError_t cudaMemsetAsync(void *to, int value, size_t bytes, cudaStream_t stream)
{
    return cudaMemset2DAsync(to, bytes, value, bytes, 1, stream);
}

/* ---- order ------------------------------------------------------------------------------------------------------------- */
cudaError_t cudaStreamCreateWithFlags(cudaStream_t *out, unsigned flags)
{
    ALLOWED(flags == cudaStreamNonBlocking);
    static struct CUstream_st streams[16];
    static int count;
    ALLOWED(count < 16);
    *out = &streams[count++];
    return cudaSuccess;
}

cudaError_t cudaStreamDestroy(cudaStream_t stream)
{
    ALLOWED(stream != NULL);
    return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream)
{
    ALLOWED(stream != NULL);
    fake_cuda_flush();
    return cudaSuccess;
}

cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned flags)
{
    ALLOWED(stream != NULL && event != NULL && flags == 0);
    return cudaSuccess;
}

cudaError_t cudaEventCreate(cudaEvent_t *out)
{
    *out = calloc(1, sizeof **out);
    return *out != NULL ? cudaSuccess : result(cudaErrorMemoryAllocation);
}

cudaError_t cudaEventDestroy(cudaEvent_t event)
{
    fake_cuda_flush();
    free(event);
    return cudaSuccess;
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream)
{
    ALLOWED(event != NULL && stream != NULL);
    const work w = {.event = event};
    pthread_mutex_lock(&lock);
    put(&w);
    event->recorded = true;
    event->place = queued;
    pthread_mutex_unlock(&lock);
    return cudaSuccess;
}

/* Only what must be done: everything up to the event. */
cudaError_t cudaEventSynchronize(cudaEvent_t event)
{
    pthread_mutex_lock(&lock);
    if (event->recorded)
        run_until(event->place);
    pthread_mutex_unlock(&lock);
    return cudaSuccess;
}

cudaError_t cudaEventElapsedTime(float *milliseconds, cudaEvent_t from, cudaEvent_t to)
{
    if (!from->recorded || !to->recorded)
        return result(cudaErrorInvalidResourceHandle);
    if (done < from->place || done < to->place)
        return result(cudaErrorNotReady);
    *milliseconds = (float)(1e3 * (to->time - from->time));
    return cudaSuccess;
}
