/* comm_nccl.c: the collectives on CUDA tensors, through NCCL. It has not run on a GPU yet; without one, tests run it against a
 * library of their own (tests/nccl).
 *
 * NCCL and the driver are opened at the first collective of several ranks on a CUDA tensor, so the program starts on machines
 * that have neither. The build needs only NCCL's header; without it every function here returns LR_EUNSUPPORTED.
 *
 * The ranks have agreed on kind, sizes and dtype over the mesh before a call gets here, and the mesh also carries NCCL's unique
 * id. The communicator is non-blocking: no call of NCCL waits. While NCCL works, this thread looks for errors of NCCL, lost
 * peers (which NCCL may not notice), the timeout, interrupts and lr_comm_abort. Any of them aborts the communicator, which also
 * ends NCCL's kernels.
 *
 * Work goes to the compute stream, in order with the kernels before it, and is complete on return. */
#include "core/device.h"
#include "dist/comm.h"

#ifdef LORARUN_NCCL
#include <dlfcn.h>
#include <limits.h> /* NCCL_CONFIG_INITIALIZER needs INT_MIN */
#include <nccl.h>
#include <string.h>
#include <time.h>

/* The functions of NCCL that are used: their names in the library, and here. */
#define NCCL_FUNCTIONS(X)                                                                                              \
    X(ncclGetUniqueId)                                                                                                 \
    X(ncclCommInitRankConfig)                                                                                          \
    X(ncclCommGetAsyncError)                                                                                           \
    X(ncclCommFinalize)                                                                                                \
    X(ncclCommDestroy)                                                                                                 \
    X(ncclCommAbort)                                                                                                   \
    X(ncclAllReduce)                                                                                                   \
    X(ncclAllGather)                                                                                                   \
    X(ncclBroadcast)                                                                                                   \
    X(ncclGroupStart)                                                                                                  \
    X(ncclGroupEnd)                                                                                                    \
    X(ncclGetErrorString)                                                                                              \
    X(ncclGetLastError)

static struct {
#define MEMBER(f) __typeof__(&f) f;
    NCCL_FUNCTIONS(MEMBER)
#undef MEMBER
    int (*stream_query)(void *stream); /* cuStreamQuery */
    bool ready;
} api;
static pthread_mutex_t api_mutex = PTHREAD_MUTEX_INITIALIZER;

struct lr_nccl {
    ncclComm_t comm;
};

/* From CUDA's driver API, which is stable. */
enum { CU_SUCCESS = 0, CU_NOT_READY = 600 };

/* ---- the libraries -------------------------------------------------------------------------------------------------------- */
static int load(void)
{
    void *driver = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
    if (driver == NULL)
        return lr_fail(LR_EUNSUPPORTED, "several ranks with tensors on cuda need NVIDIA's driver: %s", dlerror());
    void *nccl = dlopen("libnccl.so.2", RTLD_NOW | RTLD_LOCAL);
    if (nccl == NULL)
        return lr_fail(LR_EUNSUPPORTED, "several ranks with tensors on cuda need NCCL (libnccl2): %s", dlerror());
    api.stream_query = (int (*)(void *))dlsym(driver, "cuStreamQuery");
    if (api.stream_query == NULL)
        return lr_fail(LR_EUNSUPPORTED, "NVIDIA's driver lacks cuStreamQuery");
#define LOAD(f)                                                                                                        \
    api.f = (__typeof__(&f))dlsym(nccl, #f);                                                                           \
    if (api.f == NULL)                                                                                                 \
        return lr_fail(LR_EUNSUPPORTED, "the NCCL that was found lacks %s; 2.14 or later is needed", #f);
    NCCL_FUNCTIONS(LOAD)
#undef LOAD
    api.ready = true;
    return LR_OK;
}

int lr_nccl_available(void)
{
    (void)pthread_mutex_lock(&api_mutex);
    const int status = api.ready ? LR_OK : load();
    (void)pthread_mutex_unlock(&api_mutex);
    return status;
}

/* A tensor on CUDA was made, so the device is there. */
static cudaStream_t stream(void)
{
    return (cudaStream_t)lr_driver_of(LR_CUDA)->compute_stream();
}

/* ---- waiting -------------------------------------------------------------------------------------------------------------- */
/* A failure of NCCL on this rank: usually a peer is gone, but NCCL does not say which. */
static int fail_nccl(lr_comm *c, const char *what, ncclResult_t result)
{
    const char *last = api.ncclGetLastError(NULL); /* of the process: there may be no communicator */
    return lr_comm_break(c, LR_EPEER, "%s (collective %llu): %s: %s %s", lr_comm_kind_name(c->slots[c->rank].call.kind),
                         (unsigned long long)c->sequence, what, api.ncclGetErrorString(result), last);
}

/* Short waits poll; longer ones give the processor to others. */
static void pause_polling(int *turns)
{
    const struct timespec nap = {0, 50000};
    if (++*turns > 1000)
        (void)nanosleep(&nap, NULL);
}

/* Waits until NCCL has accepted the call. */
static int settle(lr_comm *c, const char *what, ncclResult_t result, double began)
{
    int turns = 0;
    while (result == ncclInProgress) {
        const int status = lr_comm_check(c, began);
        if (status != LR_OK)
            return status;
        pause_polling(&turns);
        const ncclResult_t asked = api.ncclCommGetAsyncError(c->nccl->comm, &result);
        if (asked != ncclSuccess)
            result = asked;
    }
    return result == ncclSuccess ? LR_OK : fail_nccl(c, what, result);
}

/* Waits until the device is done. */
static int complete(lr_comm *c, const char *what, ncclResult_t result, double began)
{
    int status = settle(c, what, result, began), turns = 0;
    while (status == LR_OK) {
        const int state = api.stream_query(stream());
        if (state == CU_SUCCESS)
            return LR_OK;
        if (state != CU_NOT_READY)
            return lr_comm_break(c, LR_EDEVICE, "%s: CUDA error %d", what, state);
        ncclResult_t asynchronous = ncclSuccess;
        (void)api.ncclCommGetAsyncError(c->nccl->comm, &asynchronous);
        if (asynchronous != ncclSuccess && asynchronous != ncclInProgress)
            return fail_nccl(c, what, asynchronous);
        pause_polling(&turns);
        status = lr_comm_check(c, began);
    }
    return status;
}

/* ---- the communicator ------------------------------------------------------------------------------------------------------- */
/* The communicator's free_device, from when there is an lr_nccl until it is freed. */
static void free_nccl(lr_comm *c, bool broken)
{
    lr_nccl *n = c->nccl;
    c->nccl = NULL;
    c->free_device = NULL;
    ncclResult_t result = ncclSuccess;
    if (n->comm != NULL && !broken && api.ncclCommFinalize(n->comm) == ncclInProgress) {
        int turns = 0;
        const double began = lr_time();
        do { /* a peer that does not leave must not hold this rank */
            pause_polling(&turns);
            (void)api.ncclCommGetAsyncError(n->comm, &result);
        } while (result == ncclInProgress && lr_time() - began < 5);
    }
    if (n->comm != NULL)
        (void)(broken || result != ncclSuccess ? api.ncclCommAbort(n->comm) : api.ncclCommDestroy(n->comm));
    lr_free(n);
}

/* All ranks call this together: they have agreed on their first collective on CUDA. */
static int connect_nccl(lr_comm *c, double began)
{
    if (c->nccl != NULL)
        return LR_OK;
    ncclUniqueId id;
    memset(&id, 0, sizeof id);
    if (c->rank == 0) {
        const ncclResult_t result = api.ncclGetUniqueId(&id);
        if (result != ncclSuccess)
            return fail_nccl(c, "ncclGetUniqueId", result);
    }
    int status = lr_host_broadcast(c, &id, (int64_t)sizeof id, 0, began);
    if (status != LR_OK)
        return status;
    c->nccl = lr_calloc(1, sizeof *c->nccl);
    if (c->nccl == NULL)
        return lr_comm_break(c, LR_ENOMEM, "out of memory for an NCCL communicator");
    c->free_device = free_nccl;
    (void)lr_memory_release_cached(LR_CUDA); /* NCCL allocates its own memory */
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    config.blocking = 0;
    return settle(c, "connecting", api.ncclCommInitRankConfig(&c->nccl->comm, c->world_size, id, c->rank, &config),
                  began);
}

/* ---- the collectives -------------------------------------------------------------------------------------------------------- */
static ncclDataType_t nccl_dtype(int dtype)
{
    static const ncclDataType_t DTYPES[LR_DTYPE_COUNT] = {ncclFloat32, ncclBfloat16, ncclFloat16, ncclInt32, ncclInt64};
    return DTYPES[dtype];
}

int lr_nccl_all_reduce(lr_comm *c, void *data, int64_t elements, int dtype, int reduce, double began)
{
    static const ncclRedOp_t OPS[LR_REDUCE_COUNT] = {ncclSum, ncclMax, ncclMin};
    const int status = connect_nccl(c, began);
    if (status != LR_OK)
        return status;
    return complete(
        c, "ncclAllReduce",
        api.ncclAllReduce(data, data, (size_t)elements, nccl_dtype(dtype), OPS[reduce], c->nccl->comm, stream()),
        began);
}

int lr_nccl_all_gather(lr_comm *c, const void *own, void *out, double began)
{
    int status = connect_nccl(c, began);
    if (status != LR_OK)
        return status;
    const int64_t mine = c->slots[c->rank].call.mine;
    bool equal = true;
    for (int i = 0; i < c->world_size; i++)
        equal = equal && c->slots[i].call.mine == mine;
    if (equal)
        return complete(c, "ncclAllGather",
                        api.ncclAllGather(own, out, (size_t)mine, ncclInt8, c->nccl->comm, stream()), began);
    /* Different sizes: one broadcast from each rank, all at once. */
    ncclResult_t result = api.ncclGroupStart();
    char *at = out;
    for (int i = 0; i < c->world_size && (result == ncclSuccess || result == ncclInProgress); i++) {
        const int64_t size = c->slots[i].call.mine;
        if (size > 0)
            result = api.ncclBroadcast(i == c->rank ? own : at, at, (size_t)size, ncclInt8, i, c->nccl->comm, stream());
        at += size;
    }
    const ncclResult_t ended = api.ncclGroupEnd();
    if (result != ncclSuccess && result != ncclInProgress)
        return fail_nccl(c, "ncclBroadcast", result);
    return complete(c, "ncclBroadcast", ended, began);
}

int lr_nccl_broadcast(lr_comm *c, void *data, int64_t size, int root, double began)
{
    const int status = connect_nccl(c, began);
    if (status != LR_OK)
        return status;
    return complete(c, "ncclBroadcast",
                    api.ncclBroadcast(data, data, (size_t)size, ncclInt8, root, c->nccl->comm, stream()), began);
}

int lr_comm_nccl_version(int *out)
{
    void *nccl = dlopen("libnccl.so.2", RTLD_NOW | RTLD_LOCAL);
    if (nccl == NULL)
        return lr_fail(LR_EUNSUPPORTED, "NCCL (libnccl2) is not found: %s", dlerror());
    ncclResult_t (*version)(int *) = (ncclResult_t(*)(int *))dlsym(nccl, "ncclGetVersion");
    if (version == NULL || version(out) != ncclSuccess)
        return lr_fail(LR_EUNSUPPORTED, "the NCCL that was found does not tell its version");
    return LR_OK;
}

#else /* !LORARUN_NCCL */

int lr_comm_nccl_version(int *out)
{
    (void)out;
    return lr_nccl_available();
}

int lr_nccl_available(void)
{
    return lr_fail(LR_EUNSUPPORTED, "lorarun was built without NCCL: several ranks work on the CPU only");
}

/* Never called without NCCL: lr_nccl_available comes first. */
int lr_nccl_all_reduce(lr_comm *c, void *data, int64_t elements, int dtype, int reduce, double began)
{
    (void)c, (void)data, (void)elements, (void)dtype, (void)reduce, (void)began;
    return lr_nccl_available();
}

int lr_nccl_all_gather(lr_comm *c, const void *own, void *out, double began)
{
    (void)c, (void)own, (void)out, (void)began;
    return lr_nccl_available();
}

int lr_nccl_broadcast(lr_comm *c, void *data, int64_t size, int root, double began)
{
    (void)c, (void)data, (void)size, (void)root, (void)began;
    return lr_nccl_available();
}
#endif
