/* device.c: which devices there are, compute threads, the clock, the interrupt flag. */
#define _GNU_SOURCE
#include "core/device.h"
#include "core/limits.h"
#include <errno.h>
#include <omp.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

/* ---- devices --------------------------------------------------------------------------------------------------------- */
/* A device is opened when first asked about, so that a program that does not use the GPU does not wait for its driver. */
static struct {
    enum { UNKNOWN, PRESENT, MISSING } state;
    int index;     /* of the GPUs that this process sees */
    char why[256]; /* it is missing */
} cuda;

static void find_cuda(void)
{
    cuda.state = MISSING;
#ifdef LR_HAVE_CUDA
    if (lr_cuda_driver()->open(cuda.index) == LR_OK)
        cuda.state = PRESENT;
    else
        snprintf(cuda.why, sizeof cuda.why, "%s", lr_last_error());
#else
    snprintf(cuda.why, sizeof cuda.why, "this lorarun was built without CUDA");
#endif
}

const char *lr_device_missing(int device)
{
    if (device == LR_CPU || device == LR_META)
        return NULL;
    if (device != LR_CUDA)
        return "there is no such device";
    if (cuda.state == UNKNOWN)
        find_cuda();
    return cuda.state == PRESENT ? NULL : cuda.why;
}

int lr_device_available(int device)
{
    return lr_device_missing(device) == NULL;
}

const char *lr_cuda_version(void)
{
#ifdef LR_CUDA_VERSION
    return LR_CUDA_VERSION;
#else
    return NULL;
#endif
}

int lr_device_count(int device)
{
#ifdef LR_HAVE_CUDA
    if (device == LR_CUDA)
        return lr_cuda_driver()->count();
#endif
    return device == LR_CPU || device == LR_META;
}

int lr_device_choose(int device, int index)
{
    const int count = lr_device_count(device);
    if (index < 0 || index >= count)
        return lr_fail(LR_EDEVICE, "%s device %d: this process sees %d", lr_device_name(device), index, count);
    if (device == LR_CUDA && cuda.state != UNKNOWN && cuda.index != index)
        return lr_fail(LR_EINVAL, "this process uses GPU %d already, it cannot change to %d", cuda.index, index);
    if (device == LR_CUDA)
        cuda.index = index;
    return LR_OK;
}

int lr_device_uuid(int index, char *buf, size_t cap)
{
    const int chosen = index < 0 ? cuda.index : index, count = lr_device_count(LR_CUDA);
    if (chosen >= count)
        return lr_fail(LR_EDEVICE, "cuda device %d: this process sees %d", chosen, count);
#ifdef LR_HAVE_CUDA
    return lr_cuda_driver()->uuid(chosen, buf, cap);
#else
    (void)buf, (void)cap;
    return LR_OK; /* not reached: there is none */
#endif
}

const char *lr_device_name(int device)
{
    static const char *const names[LR_DEVICE_COUNT] = {"cpu", "cuda", "meta"};
    return device >= 0 && device < LR_DEVICE_COUNT ? names[device] : "unknown";
}

const lr_driver *lr_driver_of(int device)
{
    if (device == LR_CPU)
        return lr_cpu_driver();
#ifdef LR_HAVE_CUDA
    if (device == LR_CUDA && lr_device_available(LR_CUDA))
        return lr_cuda_driver();
#endif
    return NULL;
}

/* The driver, or NULL and lr_fail. */
static const lr_driver *need_driver(int device, const char *what)
{
    const lr_driver *driver = lr_driver_of(device);
    if (driver == NULL)
        lr_fail(LR_EDEVICE, "%s: device %s: %s", what, lr_device_name(device),
                device == LR_META ? "it has no hardware" : lr_device_missing(device));
    return driver;
}

int lr_device_describe(int device, char *buf, size_t cap)
{
    const lr_driver *driver = need_driver(device, "describe");
    if (driver == NULL)
        return LR_EDEVICE;
    const int status = driver->describe(buf, cap);
#ifdef LR_HAVE_CUDA
    /* A program for GPUs works on the processor: where there is no GPU it says why. Looking for one does not start it. */
    if (device == LR_CPU && cuda.state == UNKNOWN && lr_cuda_driver()->count() == 0)
        find_cuda();
    if (status == LR_OK && device == LR_CPU && cuda.state == MISSING) {
        const size_t used = strlen(buf);
        snprintf(buf + used, cap - used, "; no GPU: %s", cuda.why);
    }
#endif
    return status;
}

int lr_device_memory(int device, int64_t *free_bytes, int64_t *total_bytes)
{
    const lr_driver *driver = need_driver(device, "memory");
    return driver != NULL ? driver->memory_info(free_bytes, total_bytes) : LR_EDEVICE;
}

int lr_device_wait(int device)
{
    if (device == LR_META)
        return LR_OK;
    const lr_driver *driver = need_driver(device, "wait");
    return driver != NULL ? driver->stream_wait(driver->compute_stream()) : LR_EDEVICE;
}

static bool deterministic = true;

void lr_deterministic(int on)
{
    deterministic = on != 0;
}

bool lr_is_deterministic(void)
{
    return deterministic;
}

static int tf32;

int lr_tf32(int on)
{
    return tf32 = on >= 0 ? on != 0 : tf32;
}

/* ---- threads --------------------------------------------------------------------------------------------------------- */
enum { MOST_THREADS = 4096 };
static int threads;

/* Physical cores would be better than hardware threads for GEMM, but inside containers the affinity mask is what is granted. */
int lr_cores(void)
{
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) != 0)
        return 1;
    const int n = CPU_COUNT(&set);
    return n > 0 ? n : 1;
}

/* A launcher divides the cores among its ranks by OMP_NUM_THREADS, as others who share a machine do. */
static int threads_by_default(void)
{
    const char *text = getenv("OMP_NUM_THREADS");
    const long n = text != NULL ? strtol(text, NULL, 10) : 0;
    return n >= 1 && n <= MOST_THREADS ? (int)n : lr_cores();
}

/* oneDNN computes wrongly where a parallel region has fewer threads than were asked for. So no variable of OpenMP's may change their
 * number behind its back: OMP_DYNAMIC and OMP_MAX_ACTIVE_LEVELS are overruled, OMP_THREAD_LIMIT is kept to. */
int lr_threads_set(int n)
{
    if (n < 0 || n > MOST_THREADS)
        return lr_fail(LR_EINVAL, "threads is %d, expected 0 (all cores) to %d", n, MOST_THREADS);
    threads = n == 0 ? threads_by_default() : n;
    if (threads > omp_get_thread_limit())
        threads = omp_get_thread_limit();
    omp_set_dynamic(0);
    if (omp_get_max_active_levels() < 1)
        omp_set_max_active_levels(1);
    omp_set_num_threads(threads);
    return LR_OK;
}

int lr_threads(void)
{
    if (threads == 0)
        lr_threads_set(0);
    return threads;
}

/* ---- starting threads: libgomp ends the program where it cannot, so it is tried before ---------------------------------- */
typedef struct trial {
    pthread_mutex_t lock;
    pthread_cond_t ended;
    bool end;
} trial;

static void *wait_for_end(void *context)
{
    trial *t = context;
    pthread_mutex_lock(&t->lock);
    while (!t->end)
        pthread_cond_wait(&t->ended, &t->lock);
    pthread_mutex_unlock(&t->lock);
    return NULL;
}

/* Start n threads and end them. Returns how many there were. */
static int try_threads(int n)
{
    trial t = {PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER, false};
    static pthread_t tried[MOST_THREADS]; /* the Lua thread's alone */
    int started = 0;
    while (started < n && lr_thread_start(&tried[started], wait_for_end, &t) == LR_OK)
        started++;
    pthread_mutex_lock(&t.lock);
    t.end = true;
    pthread_cond_broadcast(&t.ended);
    pthread_mutex_unlock(&t.lock);
    for (int i = 0; i < started; i++)
        pthread_join(tried[i], NULL);
    return started;
}

int lr_threads_ensure(int n)
{
    static int running = 1;
    static atomic_int there;
    if (n <= running)
        return n;
    const int started = try_threads(n - 1) + 1;
    if (started < n)
        return started;
    atomic_store(&there, 0);
#pragma omp parallel num_threads(n)
    atomic_fetch_add(
        &there, 1); /* from here on they wait for work; a region of fewer ends the others, and makes room for them */
    if (atomic_load(&there) == n)
        running = n;
    return atomic_load(&there);
}

int lr_threads_start(void)
{
    const int n = lr_threads(), started = lr_threads_ensure(n);
    if (started == n)
        return LR_OK;
    char reason[256];
    lr_limits_reason(EAGAIN, reason, sizeof reason);
    return lr_fail(
        LR_EIO, "only %d of %d compute threads can be started%s%s%s; set OMP_NUM_THREADS to fewer, or raise the limit",
        started, n, *reason != 0 ? " (" : "", reason, *reason != 0 ? ")" : "");
}

int lr_thread_start(pthread_t *thread, void *(*run)(void *), void *context)
{
    sigset_t all, before;
    sigfillset(&all);
    sigdelset(&all, SIGBUS); /* of the thread's own reading (io/mapping.c): blocked, it would end the process */
    pthread_sigmask(SIG_SETMASK, &all, &before);
    const int code = pthread_create(thread, NULL, run, context);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (code == 0)
        return LR_OK;
    return lr_limits_fail_start("a thread", code);
}

double lr_time(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* ---- interrupts ------------------------------------------------------------------------------------------------------ */
static atomic_int interrupts_on;
static volatile sig_atomic_t interrupt_flag;

void lr_interrupt_enable(int on)
{
    atomic_store(&interrupts_on, on);
    interrupt_flag = 0;
}

int lr_interrupt_enabled(void)
{
    return atomic_load(&interrupts_on) != 0;
}

void lr_interrupt_raise(void)
{
    interrupt_flag = 1;
}

int lr_interrupt_take(void)
{
    if (!interrupt_flag || !atomic_load(&interrupts_on))
        return 0;
    interrupt_flag = 0;
    return 1;
}
