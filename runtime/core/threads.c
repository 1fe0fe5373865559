/* threads.c: compute threads: how many there are, and starting them.
 *
 * Kernels and oneDNN share OpenMP's pool, in which the number of threads is set once. libgomp ends the program where it cannot
 * start a thread, so threads are started here first, where a failure is an error that names the limit. */
#define _GNU_SOURCE
#include "core/limits.h"
#include <errno.h>
#include <omp.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>

static int threads;

/* For GEMM physical cores would be better than hardware threads, but in a container only the affinity mask says what is granted. */
int lr_cores(void)
{
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) != 0)
        return 1;
    const int n = CPU_COUNT(&set);
    return n > 0 ? n : 1;
}

/* A launcher divides the cores among its ranks by OMP_NUM_THREADS, as is usual on shared machines. */
static int threads_by_default(void)
{
    const char *text = getenv("OMP_NUM_THREADS");
    const long n = text != NULL ? strtol(text, NULL, 10) : 0;
    return n >= 1 && n <= LR_MOST_THREADS ? (int)n : lr_cores();
}

/* oneDNN computes wrongly where a parallel region has fewer threads than it asked for. So OpenMP must not lower the number by
 * itself: OMP_DYNAMIC and OMP_MAX_ACTIVE_LEVELS are overruled, and no more threads are asked for than OMP_THREAD_LIMIT allows. */
int lr_threads_set(int n)
{
    if (n < 0 || n > LR_MOST_THREADS)
        return lr_fail(LR_EINVAL, "threads is %d, expected 0 (all cores) to %d", n, LR_MOST_THREADS);
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

/* Start n threads and end them. Returns the number that could be started. */
static int try_threads(int n)
{
    trial t = {PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER, false};
    static pthread_t tried[LR_MOST_THREADS]; /* used by the Lua thread alone */
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
    atomic_fetch_add(&there,
                     1); /* from now on these threads wait for work; a region of fewer threads ends the others */
    if (atomic_load(&there) == n)
        running = n;
    return atomic_load(&there);
}

int lr_threads_start(void)
{
    const int n = lr_threads(), started = lr_threads_ensure(n);
    if (started == n)
        return LR_OK;
    return lr_fail(LR_EIO,
                   "only %d of %d compute threads can be started%s; set OMP_NUM_THREADS to fewer, or raise the limit",
                   started, n, lr_limits_because(EAGAIN).text);
}

int lr_thread_start(pthread_t *thread, void *(*run)(void *), void *context)
{
    sigset_t all, before;
    sigfillset(&all);
    sigdelset(&all,
              SIGBUS); /* caused by the thread's own reading (io/mapping.c); while blocked it would end the process */
    pthread_sigmask(SIG_SETMASK, &all, &before);
    const int code = pthread_create(thread, NULL, run, context);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (code == 0)
        return LR_OK;
    return lr_limits_fail_start("a thread", code);
}
