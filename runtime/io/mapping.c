/* mapping.c: mapped files that others may cut short while they are read.
 *
 * Touching a page of a mapped file that is no longer in the file, or that the disk cannot read, raises SIGBUS. The handler here
 * puts zeros in place of that page and all after it, notes that in the mapping, and lets the reader go on. A reader must ask
 * lr_mapping_whole before it uses what it has read. Reading itself costs nothing more.
 *
 * Invariants
 *   - The handler reads the list of mappings without a lock. So entries are filled before they are linked and are never freed; one
 *     whose mapping is closed is used again.
 *   - Any other SIGBUS, such as one sent by a process, goes to the handler that was there before. */
#define _GNU_SOURCE
#include "io/file.h"
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

struct lr_mapping {
    lr_mapping *next;
    _Atomic uintptr_t begin, end; /* end 0: free */
    atomic_bool cut;
};

static lr_mapping *_Atomic mappings;
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER; /* for linking and unlinking */
static struct sigaction before;
static uintptr_t page_mask;

static void on_bus(int number, siginfo_t *info, void *context)
{
    const int saved = errno;
    const bool sent = info->si_code <= 0; /* by a process: there is no address */
    const uintptr_t at = (uintptr_t)info->si_addr;
    for (lr_mapping *m = atomic_load(&mappings); m != NULL && !sent; m = m->next) {
        const uintptr_t end = atomic_load(&m->end), page = at & ~page_mask;
        if (at < atomic_load(&m->begin) || at >= end)
            continue;
        atomic_store(&m->cut, true);
        void *zeros =
            mmap((void *)page, end - page, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
        if (zeros == MAP_FAILED)
            break;
        errno = saved;
        return;
    }
    errno = saved;
    if ((before.sa_flags & SA_SIGINFO) != 0)
        before.sa_sigaction(number, info, context);
    else if (before.sa_handler != SIG_DFL && before.sa_handler != SIG_IGN)
        before.sa_handler(number);
    else if (!sent || before.sa_handler == SIG_DFL) {
        (void)signal(SIGBUS, SIG_DFL); /* the access is repeated, and ends the process */
        if (sent)
            (void)raise(SIGBUS); /* so does this, when the handler returns */
    }
}

static void install(void)
{
    struct sigaction action = {.sa_sigaction = on_bus, .sa_flags = SA_SIGINFO | SA_RESTART | SA_ONSTACK};
    page_mask = (uintptr_t)sysconf(_SC_PAGESIZE) - 1;
    (void)sigemptyset(&action.sa_mask);
    (void)sigaction(SIGBUS, &action, &before);
}

/* A free entry, or a new one at the head of the list. There are never more than there were mappings at one time. */
static lr_mapping *take_entry(void)
{
    for (lr_mapping *m = atomic_load(&mappings); m != NULL; m = m->next)
        if (atomic_load(&m->end) == 0)
            return m;
    lr_mapping *fresh = calloc(1, sizeof *fresh); /* not the allocator's: it stays */
    if (fresh != NULL) {
        fresh->next = atomic_load(&mappings);
        atomic_store(&mappings, fresh);
    }
    return fresh;
}

int lr_mapping_open(lr_mapping **out, int fd, int64_t size, const char **data)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    (void)pthread_once(&once, install);
    void *p = mmap(NULL, (size_t)size, PROT_READ, MAP_PRIVATE, fd, 0);
    if (p == MAP_FAILED)
        return -1;
    (void)pthread_mutex_lock(&mutex);
    lr_mapping *m = take_entry();
    if (m != NULL) {
        atomic_store(&m->cut, false);
        atomic_store(&m->begin, (uintptr_t)p);
        atomic_store(&m->end, (uintptr_t)p + (uintptr_t)size);
    }
    (void)pthread_mutex_unlock(&mutex);
    if (m == NULL) {
        (void)munmap(p, (size_t)size);
        errno = ENOMEM;
        return -1;
    }
    *out = m;
    *data = p;
    return 0;
}

bool lr_mapping_whole(const lr_mapping *m)
{
    return !atomic_load(&m->cut);
}

void lr_mapping_close(lr_mapping *m)
{
    if (m == NULL)
        return;
    const uintptr_t begin = atomic_load(&m->begin), end = atomic_load(&m->end);
    (void)munmap((void *)begin, end - begin);
    (void)pthread_mutex_lock(&mutex);
    atomic_store(&m->end, 0);
    (void)pthread_mutex_unlock(&mutex);
}
