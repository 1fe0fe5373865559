/* fake_nccl.c: a libnccl.so.2, and the libcuda.so.1 that goes with it, for tests. Ranks are processes of this machine, and a GPU
 * is a range of their own memory (kernels/cuda/host). It is written from NVIDIA's documentation of the interface, not from
 * runtime/dist/comm_nccl.c, and is stricter than NCCL: what the documentation forbids ends the process with status 99.
 *
 * It is non-blocking, as comm_nccl.c requests: a call begins something and returns ncclInProgress; ncclCommGetAsyncError and
 * cuStreamQuery let it go on. A collective is accepted (ncclSuccess) after a few queries, and done (cuStreamQuery) after some
 * more.
 *
 * Every rank has a file of shared memory in /dev/shm, named by the unique id, with an operation's number, its description and
 * the bytes that it sends. The processor cannot access the device's memory directly; /proc/self/mem can.
 *
 *   FAKE_NCCL_fails=3   the third collective of this rank fails, as if a peer were lost
 *   FAKE_NCCL_hangs=3   the third never ends
 *   FAKE_NCCL_tells=1   standard error says how the communicator ended */
#define _GNU_SOURCE
#include <fcntl.h>
#include <limits.h>
#include <nccl.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/types.h>
#include <unistd.h>

#pragma GCC diagnostic ignored "-Wmissing-prototypes" /* cuStreamQuery is CUDA's */
#define EXPORT __attribute__((visibility("default")))

enum { MOST_RANKS = 8, MOST_QUEUED = 8, POLLS = 3, FORBIDDEN = 99, MOST_BYTES = 64 << 20 };

#define ALLOWED(x)                                                                                                     \
    do {                                                                                                               \
        if (!(x)) {                                                                                                    \
            (void)fprintf(stderr, "fake NCCL: %s: not allowed: %s\n", __func__, #x);                                   \
            _exit(FORBIDDEN);                                                                                          \
        }                                                                                                              \
    } while (0)

/* What must be the same on all ranks. */
typedef struct operation {
    enum { ALL_REDUCE, ALL_GATHER, BROADCAST } kind;
    size_t count;
    ncclDataType_t dtype;
    ncclRedOp_t reduce;
    int root;
} operation;

/* A rank's file. */
typedef struct shared {
    _Atomic int joined;
    _Atomic uint64_t posted, done; /* newest operation whose bytes are here; newest one that this rank has completed */
    operation what;                /* posted */
    char bytes[];
} shared;

typedef struct queued {
    operation what;
    const void *send;
    void *receive;
} queued;

struct ncclComm {
    char name[64];
    int ranks, rank;
    shared *all[MOST_RANKS];
    bool connected, finalized;
    queued queue[MOST_QUEUED];
    int waiting, polls; /* operations that are not done; queries since the last call */
    uint64_t number;    /* of the current or the last operation */
    ncclResult_t broken;
};
static struct ncclComm *only; /* of this process, for cuStreamQuery */
static int group_depth;

/* ---- device memory --------------------------------------------------------------------------------------------------------- */
static void device_copy(void *to, const void *from, size_t size, bool out_of_device)
{
    static int fd = -1;
    if (fd < 0)
        fd = open("/proc/self/mem", O_RDWR | O_CLOEXEC);
    ALLOWED(fd >= 0);
    const off_t at = (off_t)(uintptr_t)(out_of_device ? from : to);
    const ssize_t n = out_of_device ? pread(fd, to, size, at) : pwrite(fd, from, size, at);
    ALLOWED(n == (ssize_t)size);
}

static size_t size_of(ncclDataType_t dtype)
{
    return dtype == ncclInt8 ? 1 : dtype == ncclInt64 ? 8 : dtype == ncclInt32 || dtype == ncclFloat32 ? 4 : 2;
}

/* ---- what ranks do together ------------------------------------------------------------------------------------------------- */
#define REDUCE(T, out, in, n, op)                                                                                      \
    for (size_t i = 0; i < (n); i++) {                                                                                 \
        const T x = ((T *)(out))[i], y = ((const T *)(in))[i];                                                         \
        ((T *)(out))[i] = (op) == ncclSum ? (T)(x + y) : (op) == ncclMax ? (x > y ? x : y) : (x < y ? x : y);          \
    }

static void reduce(const operation *o, void *out, const void *in)
{
    switch (o->dtype) {
    case ncclFloat32:
        REDUCE(float, out, in, o->count, o->reduce)
        break;
    case ncclInt32:
        REDUCE(int32_t, out, in, o->count, o->reduce)
        break;
    case ncclInt64:
        REDUCE(int64_t, out, in, o->count, o->reduce)
        break;
    default:
        ALLOWED(!"sums of this dtype");
    }
}

static void finish(struct ncclComm *c, const queued *q)
{
    const size_t bytes = q->what.count * size_of(q->what.dtype);
    if (q->what.kind == BROADCAST) {
        device_copy(q->receive, c->all[q->what.root]->bytes, bytes, false);
    } else if (q->what.kind == ALL_GATHER) {
        for (int i = 0; i < c->ranks; i++)
            device_copy((char *)q->receive + (size_t)i * bytes, c->all[i]->bytes, bytes, false);
    } else {
        char *sum = malloc(bytes > 0 ? bytes : 1);
        ALLOWED(sum != NULL);
        memcpy(sum, c->all[0]->bytes, bytes);
        for (int i = 1; i < c->ranks; i++)
            reduce(&q->what, sum, c->all[i]->bytes);
        device_copy(q->receive, sum, bytes, false);
        free(sum);
    }
}

static bool same(const operation *a, const operation *b)
{
    return a->kind == b->kind && a->count == b->count && a->dtype == b->dtype && a->reduce == b->reduce &&
           a->root == b->root;
}

static bool all_are(const struct ncclComm *c, bool posted, uint64_t number)
{
    for (int i = 0; i < c->ranks; i++)
        if (atomic_load(posted ? &c->all[i]->posted : &c->all[i]->done) < number)
            return false;
    return true;
}

static bool set_for(const char *name, uint64_t number)
{
    const char *text = getenv(name);
    return text != NULL && (uint64_t)atoll(text) == number;
}

/* Continue the first operation of the queue as far as the other ranks allow. */
static void advance(struct ncclComm *c)
{
    while (c->connected && c->waiting > 0 && c->broken == ncclSuccess) {
        const queued *q = &c->queue[0];
        shared *own = c->all[c->rank];
        if (atomic_load(&own->posted) < c->number) {
            if (set_for("FAKE_NCCL_hangs", c->number) || !all_are(c, false, c->number - 1))
                return;
            if (set_for("FAKE_NCCL_fails", c->number)) {
                c->broken = ncclRemoteError;
                return;
            }
            const size_t bytes = q->what.count * size_of(q->what.dtype);
            ALLOWED(bytes <= MOST_BYTES);
            own->what = q->what;
            if (q->what.kind != BROADCAST || q->what.root == c->rank)
                device_copy(own->bytes, q->send, bytes, true);
            atomic_store(&own->posted, c->number);
        }
        if (!all_are(c, true, c->number))
            return;
        for (int i = 0; i < c->ranks; i++)
            ALLOWED(same(&c->all[i]->what, &q->what));
        finish(c, q);
        atomic_store(&own->done, c->number);
        memmove(&c->queue[0], &c->queue[1], (size_t)(--c->waiting) * sizeof c->queue[0]);
        c->number += c->waiting > 0;
    }
}

/* ---- the interface -------------------------------------------------------------------------------------------------- */
EXPORT ncclResult_t ncclGetUniqueId(ncclUniqueId *id)
{
    static int count;
    snprintf(id->internal, sizeof id->internal, "fake-nccl-%d-%d", (int)getpid(), count++);
    return ncclSuccess;
}

static shared *file_of(const struct ncclComm *c, int rank, bool make)
{
    char path[128];
    const size_t size = sizeof(shared) + MOST_BYTES;
    snprintf(path, sizeof path, "/dev/shm/%s-%d", c->name, rank);
    const int fd = open(path, O_RDWR | O_CLOEXEC | (make ? O_CREAT | O_EXCL : 0), 0600);
    if (fd < 0)
        return NULL;
    if (make)
        ALLOWED(ftruncate(fd, (off_t)size) == 0);
    if (lseek(fd, 0, SEEK_END) < (off_t)size) { /* its rank is still making it */
        close(fd);
        return NULL;
    }
    shared *s = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    ALLOWED(s != MAP_FAILED);
    if (make || atomic_load(&s->joined))
        return s;
    munmap(s, size);
    return NULL;
}

/* Waits until all ranks have a file. */
static void connect_all(struct ncclComm *c)
{
    c->connected = true;
    for (int i = 0; i < c->ranks; i++) {
        if (c->all[i] == NULL)
            c->all[i] = file_of(c, i, false);
        c->connected = c->connected && c->all[i] != NULL;
    }
}

EXPORT ncclResult_t ncclCommInitRankConfig(ncclComm_t *out, int ranks, ncclUniqueId id, int rank, ncclConfig_t *config)
{
    const ncclConfig_t initial = NCCL_CONFIG_INITIALIZER;
    ALLOWED(config->size == initial.size && config->magic == initial.magic && config->version == initial.version);
    ALLOWED(config->blocking == 0);
    ALLOWED(ranks >= 1 && ranks <= MOST_RANKS && rank >= 0 && rank < ranks && only == NULL);
    struct ncclComm *c = calloc(1, sizeof *c);
    ALLOWED(c != NULL);
    snprintf(c->name, sizeof c->name, "%.60s", id.internal);
    c->ranks = ranks;
    c->rank = rank;
    c->all[rank] = file_of(c, rank, true);
    ALLOWED(c->all[rank] != NULL);
    atomic_store(&c->all[rank]->joined, 1);
    *out = only = c;
    return ncclInProgress;
}

EXPORT ncclResult_t ncclCommGetAsyncError(ncclComm_t c, ncclResult_t *state)
{
    ALLOWED(c != NULL && c == only);
    if (!c->connected)
        connect_all(c);
    advance(c);
    *state = c->broken != ncclSuccess ? c->broken : c->connected && ++c->polls > POLLS ? ncclSuccess : ncclInProgress;
    return ncclSuccess;
}

/* The stream has no work but the communicator's. */
EXPORT int cuStreamQuery(void *stream)
{
    (void)stream;
    if (only != NULL)
        advance(only);
    return only == NULL || (only->waiting == 0 && ++only->polls > 2 * POLLS) ? 0 : 600; /* CUDA_ERROR_NOT_READY */
}

static ncclResult_t begin(ncclComm_t c, operation what, const void *send, void *receive)
{
    ALLOWED(c != NULL && c == only && c->connected && !c->finalized && c->broken == ncclSuccess);
    ALLOWED(c->polls > POLLS); /* not while the previous call is in progress */
    ALLOWED(c->waiting == 0 || group_depth > 0);
    ALLOWED(c->waiting < MOST_QUEUED);
    c->number += c->waiting == 0;
    c->queue[c->waiting++] = (queued){what, send, receive};
    if (group_depth == 0)
        c->polls = 0;
    return ncclInProgress;
}

EXPORT ncclResult_t ncclAllReduce(const void *send, void *receive, size_t count, ncclDataType_t dtype, ncclRedOp_t op,
                                  ncclComm_t c, cudaStream_t stream)
{
    (void)stream;
    return begin(c, (operation){.kind = ALL_REDUCE, .count = count, .dtype = dtype, .reduce = op}, send, receive);
}

EXPORT ncclResult_t ncclAllGather(const void *send, void *receive, size_t count, ncclDataType_t dtype, ncclComm_t c,
                                  cudaStream_t stream)
{
    (void)stream;
    return begin(c, (operation){.kind = ALL_GATHER, .count = count, .dtype = dtype}, send, receive);
}

EXPORT ncclResult_t ncclBroadcast(const void *send, void *receive, size_t count, ncclDataType_t dtype, int root,
                                  ncclComm_t c, cudaStream_t stream)
{
    (void)stream;
    ALLOWED(root >= 0 && root < c->ranks);
    return begin(c, (operation){.kind = BROADCAST, .count = count, .dtype = dtype, .root = root}, send, receive);
}

EXPORT ncclResult_t ncclGroupStart(void)
{
    group_depth++;
    return ncclSuccess;
}

EXPORT ncclResult_t ncclGroupEnd(void)
{
    ALLOWED(group_depth > 0);
    if (--group_depth == 0 && only != NULL)
        only->polls = 0;
    return ncclInProgress;
}

static void leave(struct ncclComm *c, const char *how)
{
    if (set_for("FAKE_NCCL_tells", 1))
        (void)fprintf(stderr, "fake NCCL: %s\n", how);
    char path[128];
    snprintf(path, sizeof path, "/dev/shm/%s-%d", c->name, c->rank);
    unlink(path); /* ranks that have it open keep it */
    for (int i = 0; i < c->ranks; i++)
        if (c->all[i] != NULL)
            munmap(c->all[i], sizeof(shared) + MOST_BYTES);
    only = NULL;
    free(c);
}

EXPORT ncclResult_t ncclCommFinalize(ncclComm_t c)
{
    ALLOWED(c != NULL && c == only && !c->finalized && c->waiting == 0);
    c->finalized = true;
    c->polls = 0;
    return ncclInProgress;
}

EXPORT ncclResult_t ncclCommDestroy(ncclComm_t c)
{
    ALLOWED(c != NULL && c == only && c->finalized && c->polls > POLLS);
    leave(c, "destroyed");
    return ncclSuccess;
}

EXPORT ncclResult_t ncclCommAbort(ncclComm_t c)
{
    ALLOWED(c != NULL && c == only);
    leave(c, "aborted");
    return ncclSuccess;
}

EXPORT const char *ncclGetErrorString(ncclResult_t result)
{
    return result == ncclRemoteError ? "remote process exited or there was a network error" : "some error";
}

EXPORT const char *ncclGetLastError(ncclComm_t c)
{
    ALLOWED(c == NULL || c == only);
    return "(fake)";
}

EXPORT ncclResult_t ncclGetVersion(int *version)
{
    *version = NCCL_VERSION_CODE;
    return ncclSuccess;
}
