/* device.c: which devices there are, threads, the clock, the interrupt flag. */
#define _GNU_SOURCE
#include "core/op.h"
#include <errno.h>
#include <omp.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sysinfo.h>
#include <time.h>

int lr_device_available(int device)
{
    return device == LR_CPU || device == LR_META;
}

const char *lr_device_name(int device)
{
    static const char *const names[LR_DEVICE_COUNT] = {"cpu", "cuda", "meta"};
    return device >= 0 && device < LR_DEVICE_COUNT ? names[device] : "unknown";
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

int lr_threads_set(int n)
{
    if (n < 0 || n > MOST_THREADS)
        return lr_fail(LR_EINVAL, "threads is %d, expected 0 (all cores) to %d", n, MOST_THREADS);
    threads = n == 0 ? threads_by_default() : n;
    omp_set_num_threads(threads);
    return LR_OK;
}

int lr_threads(void)
{
    if (threads == 0)
        lr_threads_set(0);
    return threads;
}

int lr_device_describe(char *buf, size_t cap)
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

int lr_thread_start(pthread_t *thread, void *(*run)(void *), void *context)
{
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    const int code = pthread_create(thread, NULL, run, context);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (code == 0)
        return LR_OK;
    errno = code;
    return lr_fail_errno("cannot start a thread");
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

bool lr_interrupt_enabled(void)
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
