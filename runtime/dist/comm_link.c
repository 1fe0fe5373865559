/* comm_link.c: a communicator after its ranks have met (comm_meet.c): the module with the mesh, breaking, and transfers, which
 * end by themselves if a peer is lost, time is up or the user interrupts.
 *
 * Invariants
 *   - The first failure of a transfer closes all connections. So no rank waits for one that has given up: it sees the closed
 *     connection within milliseconds and gives up too.
 *   - Another thread must hold c->mutex to use c->mesh. Only the thread that uses the communicator closes it. */
#define _GNU_SOURCE
#include "dist/comm.h"
#include <dlfcn.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { WATCH_MILLISECONDS = 50 }; /* between two looks at the interrupt flag */

/* ---- names ------------------------------------------------------------------------------------------------------------ */
const char *lr_comm_kind_name(int kind)
{
    static const char *const NAMES[LR_COMM_KIND_COUNT] = {
        "join", "barrier", "all_reduce", "all_gather", "broadcast", "all_gather_bytes", "broadcast_bytes"};
    return kind >= 0 && kind < LR_COMM_KIND_COUNT ? NAMES[kind] : "unknown collective";
}

const char *lr_comm_ranks_text(const uint8_t *chosen, int world_size, char buf[160])
{
    const size_t cap = 160;
    size_t used = 0;
    int count = 0;
    buf[0] = '\0';
    for (int i = 0; i < world_size; i++) {
        if (!chosen[i])
            continue;
        const int first = i;
        while (i + 1 < world_size && chosen[i + 1])
            i++;
        count += i - first + 1;
        if (used + 32 > cap) { /* too many ranges to name them all */
            used += (size_t)snprintf(buf + used, cap - used, ", ...");
            break;
        }
        used += (size_t)snprintf(buf + used, cap - used, used > 0 ? ", %d" : "%d", first);
        if (i > first)
            used += (size_t)snprintf(buf + used, cap - used, i > first + 1 ? "-%d" : ", %d", i);
    }
    memmove(buf + (count > 1 ? 6 : 5), buf, used + 1);
    memcpy(buf, count > 1 ? "ranks " : "rank ", count > 1 ? 6 : 5);
    return buf;
}

/* ---- the module --------------------------------------------------------------------------------------------------------- */
/* The module is beside the program (in a build folder) or in lib/ (when installed); otherwise the loader may find it. An RPATH
 * in the program would make the loader look in these folders first for every library, at every start. */
static const char *module_path(char *buf, size_t cap)
{
    static const char *const FOLDERS[] = {".", LR_MODULE_PATH};
    char program[PATH_MAX];
    const ssize_t size = readlink("/proc/self/exe", program, sizeof program - 1);
    if (size <= 0)
        return LR_MESH_MODULE;
    program[size] = '\0';
    *strrchr(program, '/') = '\0'; /* the system gives an absolute path */
    for (size_t i = 0; i < LR_COUNT_OF(FOLDERS); i++) {
        const int n = snprintf(buf, cap, "%s/%s/" LR_MESH_MODULE, program, FOLDERS[i]);
        if (n > 0 && (size_t)n < cap && access(buf, R_OK) == 0)
            return buf;
    }
    return LR_MESH_MODULE;
}

/* It stays open: its threads may still be about to return when a communicator is freed. */
int lr_comm_load(const lr_mesh_calls **out)
{
    char path[PATH_MAX + 64];
    void *module = dlopen(module_path(path, sizeof path), RTLD_NOW | RTLD_LOCAL);
    if (module == NULL) {
        const char *why = dlerror();
        return lr_fail(LR_EUNSUPPORTED,
                       "several ranks need " LR_MESH_MODULE ", installed with lorarun, and libgloo: %s",
                       why != NULL ? why : "it cannot be loaded");
    }
    const lr_mesh_calls *calls = dlsym(module, LR_MESH_SYMBOL);
    if (calls == NULL || calls->abi != LR_MESH_ABI) {
        (void)dlclose(module);
        return lr_fail(LR_EUNSUPPORTED, LR_MESH_MODULE " belongs to another version of lorarun; install both together");
    }
    *out = calls;
    return LR_OK;
}

int lr_comm_loadable(void)
{
    const lr_mesh_calls *calls;
    return lr_comm_load(&calls);
}

/* ---- closing ------------------------------------------------------------------------------------------------------------ */
void lr_comm_close_mesh(lr_comm *c)
{
    (void)pthread_mutex_lock(&c->mutex);
    lr_mesh *mesh = c->mesh;
    c->mesh = NULL;
    (void)pthread_mutex_unlock(&c->mutex);
    if (mesh != NULL)
        c->calls->close(mesh);
}

void lr_comm_unlink(lr_comm *c)
{
    if (c->watched) {
        (void)pthread_mutex_lock(&c->mutex);
        c->stopping = true;
        (void)pthread_cond_signal(&c->wake);
        (void)pthread_mutex_unlock(&c->mutex);
        (void)pthread_join(c->watcher, NULL);
        c->watched = false;
    }
    lr_comm_close_mesh(c);
}

/* ---- breaking ----------------------------------------------------------------------------------------------------------- */
int lr_comm_break(lr_comm *c, int status, const char *fmt, ...)
{
    char text[sizeof c->why];
    va_list args;
    va_start(args, fmt);
    (void)vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    (void)pthread_mutex_lock(&c->mutex);
    c->broken = true;
    (void)snprintf(c->why, sizeof c->why, "%s", text);
    (void)pthread_mutex_unlock(&c->mutex);
    lr_comm_close_mesh(c);
    if (c->free_device != NULL)
        c->free_device(c, true);
    return lr_fail(status, "%s", text);
}

void lr_comm_abort(lr_comm *c, const char *why)
{
    (void)pthread_mutex_lock(&c->mutex);
    if (!c->broken && !atomic_load(&c->aborted)) {
        (void)snprintf(c->why, sizeof c->why, "%s", why);
        atomic_store(&c->aborted, true);
        if (c->mesh != NULL)
            c->calls->abort(c->mesh);
    }
    (void)pthread_mutex_unlock(&c->mutex);
}

/* ---- interrupts --------------------------------------------------------------------------------------------------------- */
/* A thread that waits for the network cannot look at the interrupt flag; this one does so for it. */
static void *watch(void *arg)
{
    lr_comm *c = arg;
    (void)pthread_mutex_lock(&c->mutex);
    while (!c->stopping) {
        struct timespec until;
        (void)clock_gettime(CLOCK_MONOTONIC, &until);
        until.tv_nsec += WATCH_MILLISECONDS * 1000000;
        until.tv_sec += until.tv_nsec / 1000000000;
        until.tv_nsec %= 1000000000;
        (void)pthread_cond_timedwait(&c->wake, &c->mutex, &until);
        if (c->waiting && c->mesh != NULL && lr_interrupt_take()) {
            atomic_store(&c->interrupted, true);
            c->calls->abort(c->mesh);
        }
    }
    (void)pthread_mutex_unlock(&c->mutex);
    return NULL;
}

static int start_watcher(lr_comm *c)
{
    const int status = lr_thread_start(&c->watcher, watch, c);
    c->watched = status == LR_OK;
    return status;
}

static void set_waiting(lr_comm *c, bool waiting)
{
    (void)pthread_mutex_lock(&c->mutex);
    c->waiting = waiting;
    (void)pthread_mutex_unlock(&c->mutex);
}

/* ---- transfers ---------------------------------------------------------------------------------------------------------- */
static int fail_timeout(lr_comm *c, const uint8_t *missing)
{
    char ranks[160];
    return lr_comm_break(c, LR_ETIMEOUT, "%s (collective %llu): waited %.1f s for %s",
                         lr_comm_kind_name(c->slots[c->rank].call.kind), (unsigned long long)c->sequence, c->timeout,
                         lr_comm_ranks_text(missing, c->world_size, ranks));
}

static int fail_interrupted(lr_comm *c)
{
    return lr_comm_break(c, LR_EINTERRUPTED, "interrupted while waiting in %s (collective %llu)",
                         lr_comm_kind_name(c->slots[c->rank].call.kind), (unsigned long long)c->sequence);
}

static int fail_aborted(lr_comm *c)
{
    char why[sizeof c->why];
    (void)pthread_mutex_lock(&c->mutex);
    memcpy(why, c->why, sizeof why);
    (void)pthread_mutex_unlock(&c->mutex);
    return lr_comm_break(c, LR_EPEER, "%s", why);
}

/* why: how a transfer failed without a lost peer. */
static int fail_lost(lr_comm *c, const char *why)
{
    char ranks[160];
    memset(c->lost, 0, (size_t)c->world_size);
    c->calls->lost(c->mesh, c->lost);
    const char *kind = lr_comm_kind_name(c->slots[c->rank].call.kind);
    if (memchr(c->lost, 1, (size_t)c->world_size) == NULL)
        return lr_comm_break(c, LR_EPEER, "%s (collective %llu): %s", kind, (unsigned long long)c->sequence, why);
    return lr_comm_break(c, LR_EPEER, "%s (collective %llu): lost %s: the connection was closed", kind,
                         (unsigned long long)c->sequence, lr_comm_ranks_text(c->lost, c->world_size, ranks));
}

/* The ranks that have not come: in the agreement, those whose slot still has an earlier collective; else all that had to send
 * something. The mesh is closed, so nothing writes to the slots any more. */
static void find_missing(const lr_comm *c, const lr_mesh_transfer *t, uint8_t *missing)
{
    memset(missing, 0, (size_t)c->world_size);
    for (int i = 0; i < t->receive_count; i++) {
        const int peer = t->receives[i].peer;
        missing[peer] = t->in != c->slots || c->slots[peer].call.sequence != c->sequence;
    }
    for (int i = 0; i < t->send_count && t->in != c->slots; i++)
        missing[t->sends[i].peer] = 1;
}

int lr_comm_transfer(lr_comm *c, const lr_mesh_transfer *t, double began)
{
    char why[LR_MESH_WHY] = "";
    if (!c->watched && lr_interrupt_enabled()) {
        const int status = start_watcher(c);
        if (status != LR_OK)
            return lr_comm_break(c, status, "%s", lr_last_error());
    }
    const double left = began + c->timeout - lr_time();
    if (c->watched)
        set_waiting(c, true);
    const int result = c->calls->transfer(c->mesh, c->sequence, t, left > 0 ? left : 0, why);
    if (c->watched)
        set_waiting(c, false);
    if (atomic_load(&c->interrupted))
        return fail_interrupted(c);
    switch (result) {
    case LR_MESH_OK:
        return LR_OK;
    case LR_MESH_ABORTED:
        return fail_aborted(c);
    case LR_MESH_TIMEOUT:
        lr_comm_close_mesh(c);
        find_missing(c, t, c->lost);
        return fail_timeout(c, c->lost);
    case LR_MESH_NO_MEMORY:
        return lr_comm_break(c, LR_ENOMEM, "%s: out of memory", lr_comm_kind_name(c->slots[c->rank].call.kind));
    default:
        return fail_lost(c, why);
    }
}

int lr_comm_check(lr_comm *c, double began)
{
    if (atomic_load(&c->aborted))
        return fail_aborted(c);
    if (lr_interrupt_take())
        return fail_interrupted(c);
    if (c->mesh != NULL && c->calls->broken(c->mesh)) /* NCCL itself may never notice */
        return fail_lost(c, "a connection failed");
    if (lr_time() - began <= c->timeout)
        return LR_OK;
    memset(c->lost, 1, (size_t)c->world_size); /* NCCL does not say which rank is missing */
    c->lost[c->rank] = 0;
    return fail_timeout(c, c->lost);
}
