/* nvml.c: the GPUs as NVIDIA's management library (NVML) reports them: names, memory, utilisation, processes, links.
 *
 * The library is part of the driver. It is opened at the first use, and the part of its interface that is used, which NVIDIA
 * keeps stable, is declared here, so the program needs neither the library nor its header. Three functions must exist. Any other
 * may be missing (old drivers) or fail (containers, MIG, consumer GPUs); its value is then -1 or "", as lr.h says. Builds
 * without CUDA have this file, too: `lorarun doctor` reports on GPUs there.
 *
 * Invariants
 *   - The library stays open and initialised until the process ends, as NVML is meant to be used; starting it is slow.
 *   - `api` is written once, under the lock, before `state` is set. NVML itself may be called from any thread. */
#include "core/device.h"
#include <dlfcn.h>
#include <stdio.h>
#include <string.h>

static const char NAME[] = "libnvidia-ml.so.1";

/* ---- NVML's interface, as far as it is used -------------------------------------------------------------------------- */
typedef struct nvml_device nvml_device;
enum { NVML_SUCCESS = 0, NVML_DRIVER_NOT_LOADED = 9, NVML_VERSION_MISMATCH = 18 };
enum { P2P_READ = 0, P2P_WRITE = 1, P2P_NVLINK = 2 };
enum { P2P_OK = 0 };
enum { ECC_UNCORRECTED = 1, ECC_VOLATILE = 0 };
enum { MOST_NVLINKS = 18 };
typedef struct nvml_memory {
    unsigned long long total, free, used;
} nvml_memory;
typedef struct nvml_utilization {
    unsigned int gpu, memory;
} nvml_utilization;
typedef struct nvml_process {
    unsigned int pid;
    unsigned long long used; /* all ones: unknown */
    unsigned int gpu_instance, compute_instance;
} nvml_process;

/* name in the library, name here, parameters */
#define REQUIRED(F)                                                                                                    \
    F(nvmlInit_v2, init, (void))                                                                                       \
    F(nvmlDeviceGetCount_v2, count, (unsigned int *))                                                                  \
    F(nvmlDeviceGetHandleByIndex_v2, by_index, (unsigned int, nvml_device **))
#define OPTIONAL(F)                                                                                                    \
    F(nvmlSystemGetDriverVersion, driver_version, (char *, unsigned int))                                              \
    F(nvmlSystemGetCudaDriverVersion_v2, cuda_version, (int *))                                                        \
    F(nvmlDeviceGetName, name, (nvml_device *, char *, unsigned int))                                                  \
    F(nvmlDeviceGetUUID, uuid, (nvml_device *, char *, unsigned int))                                                  \
    F(nvmlDeviceGetHandleByUUID, by_uuid, (const char *, nvml_device **))                                              \
    F(nvmlDeviceGetIndex, index, (nvml_device *, unsigned int *))                                                      \
    F(nvmlDeviceGetCudaComputeCapability, capability, (nvml_device *, int *, int *))                                   \
    F(nvmlDeviceGetMemoryInfo, memory, (nvml_device *, nvml_memory *))                                                 \
    F(nvmlDeviceGetUtilizationRates, utilization, (nvml_device *, nvml_utilization *))                                 \
    F(nvmlDeviceGetTotalEccErrors, ecc, (nvml_device *, int, int, unsigned long long *))                               \
    F(nvmlDeviceGetComputeRunningProcesses_v3, processes, (nvml_device *, unsigned int *, nvml_process *))             \
    F(nvmlDeviceGetP2PStatus, p2p, (nvml_device *, nvml_device *, int, int *))                                         \
    F(nvmlDeviceGetNvLinkState, nvlink, (nvml_device *, unsigned int, unsigned int *))

static struct {
#define MEMBER(symbol, member, parameters) int(*member) parameters;
    REQUIRED(MEMBER)
    OPTIONAL(MEMBER)
#undef MEMBER
    const char *(*error_text)(int);
} api;
static enum { UNKNOWN, PRESENT, MISSING } state;
static char why[256]; /* it is missing */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

/* ---- opening the library --------------------------------------------------------------------------------------------- */
static const char *text_of(int code)
{
    const char *text = api.error_text != NULL ? api.error_text(code) : NULL;
    return text != NULL ? text : "no reason is given";
}

/* Returns 1 if the library can be used, else 0 with the reason in `why`. */
static int open_library(void)
{
    void *library = dlopen(NAME, RTLD_NOW | RTLD_LOCAL);
    if (library == NULL) {
        snprintf(why, sizeof why, "there is no NVML: %s", dlerror());
        return 0;
    }
#define LOAD(symbol, member, parameters) *(void **)&api.member = dlsym(library, #symbol);
    REQUIRED(LOAD)
    OPTIONAL(LOAD)
#undef LOAD
    *(void **)&api.error_text = dlsym(library, "nvmlErrorString");
#define NEED(symbol, member, parameters)                                                                               \
    if (api.member == NULL) {                                                                                          \
        snprintf(why, sizeof why, "%s lacks %s: the driver is too old", NAME, #symbol);                                \
        return 0;                                                                                                      \
    }
    REQUIRED(NEED)
#undef NEED
    const int code = api.init();
    if (code == NVML_SUCCESS)
        return 1;
    snprintf(why, sizeof why, "NVML: %s%s", text_of(code),
             code == NVML_VERSION_MISMATCH    ? "; the driver was updated while it ran: restart the machine"
             : code == NVML_DRIVER_NOT_LOADED ? "; the kernel module nvidia is not loaded"
                                              : "");
    return 0;
}

static int need(void)
{
    (void)pthread_mutex_lock(&lock);
    if (state == UNKNOWN)
        state = open_library() ? PRESENT : MISSING;
    const bool present = state == PRESENT;
    (void)pthread_mutex_unlock(&lock);
    return present ? LR_OK : lr_fail(LR_EUNSUPPORTED, "%s", why);
}

static int failed(int code, const char *what)
{
    return code == NVML_SUCCESS ? LR_OK : lr_fail(LR_EDEVICE, "NVML: %s: %s", what, text_of(code));
}

static int handle_of(int gpu, nvml_device **out)
{
    int n = 0;
    const int status = lr_gpu_count(&n);
    if (status != LR_OK)
        return status;
    if (gpu < 0 || gpu >= n)
        return lr_fail(LR_EINVAL, "GPU %d: the machine has %d", gpu, n);
    return failed(api.by_index((unsigned int)gpu, out), "opening a GPU");
}

/* Call an optional function: does it exist, and did it succeed? */
#define TOLD(member, ...) (api.member != NULL && api.member(__VA_ARGS__) == NVML_SUCCESS)

/* ---- the facts ------------------------------------------------------------------------------------------------------- */
int lr_gpu_count(int *out)
{
    unsigned int n = 0;
    int status = need();
    if (status == LR_OK)
        status = failed(api.count(&n), "counting the GPUs");
    if (status == LR_OK)
        *out = (int)n;
    return status;
}

int lr_gpu_driver(char *version, size_t cap, int *cuda)
{
    const int status = need();
    if (status != LR_OK)
        return status;
    char text[96];
    snprintf(version, cap, "%s", TOLD(driver_version, text, sizeof text) ? text : "");
    if (!TOLD(cuda_version, cuda))
        *cuda = -1;
    return LR_OK;
}

int lr_gpu_of_device(int device_index, int *out)
{
    char uuid[64];
    nvml_device *gpu = NULL;
    unsigned int number = 0;
    int status = need();
    if (status == LR_OK)
        status = lr_device_uuid(LR_CUDA, device_index, uuid, sizeof uuid);
    if (status != LR_OK)
        return status;
    /* For CUDA a part of a GPU (MIG) is a device of its own; NVML counts whole GPUs. */
    if (!TOLD(by_uuid, uuid, &gpu) || !TOLD(index, gpu, &number))
        return lr_fail(LR_ENOTFOUND, "NVML knows no GPU %s", uuid);
    *out = (int)number;
    return LR_OK;
}

static int count_nvlinks(nvml_device *gpu)
{
    int links = -1;
    for (unsigned int i = 0; i < MOST_NVLINKS; i++) {
        unsigned int up = 0;
        if (TOLD(nvlink, gpu, i, &up))
            links = (links < 0 ? 0 : links) + (up != 0);
    }
    return links;
}

int lr_gpu_describe(int gpu, lr_gpu *out)
{
    nvml_device *handle = NULL;
    const int status = handle_of(gpu, &handle);
    if (status != LR_OK)
        return status;
    lr_gpu g = {.nvlinks = count_nvlinks(handle), .ecc_uncorrected = -1};
    unsigned long long errors = 0;
    if (!TOLD(name, handle, g.name, sizeof g.name))
        g.name[0] = '\0';
    if (!TOLD(uuid, handle, g.uuid, sizeof g.uuid))
        g.uuid[0] = '\0';
    if (!TOLD(capability, handle, &g.major, &g.minor))
        g.major = g.minor = -1;
    if (TOLD(ecc, handle, ECC_UNCORRECTED, ECC_VOLATILE, &errors))
        g.ecc_uncorrected = (int64_t)errors;
    *out = g;
    return LR_OK;
}

int lr_gpu_load_now(int gpu, lr_gpu_load *out)
{
    nvml_device *handle = NULL;
    const int status = handle_of(gpu, &handle);
    if (status != LR_OK)
        return status;
    lr_gpu_load load = {-1, -1, -1, -1};
    nvml_memory memory;
    nvml_utilization utilization;
    if (TOLD(memory, handle, &memory)) {
        load.used_bytes = (int64_t)memory.used;
        load.free_bytes = (int64_t)memory.free;
        load.total_bytes = (int64_t)memory.total;
    }
    if (TOLD(utilization, handle, &utilization))
        load.utilization = (int32_t)utilization.gpu;
    *out = load;
    return LR_OK;
}

int lr_gpu_processes(int gpu, lr_gpu_process *out, int cap, int *count)
{
    nvml_process list[128];
    unsigned int n = LR_COUNT_OF(list);
    nvml_device *handle = NULL;
    const int status = handle_of(gpu, &handle);
    if (status != LR_OK)
        return status;
    if (api.processes == NULL)
        return lr_fail(LR_EUNSUPPORTED, "the driver is too old to tell who uses a GPU");
    const int code = api.processes(handle, &n, list);
    if (code != NVML_SUCCESS) /* also where there are more processes than `list` has room for */
        return failed(code, "listing the processes on a GPU");
    for (int i = 0; i < (int)n && i < cap; i++)
        out[i] = (lr_gpu_process){(int64_t)list[i].pid, list[i].used == ~0ull ? -1 : (int64_t)list[i].used};
    *count = (int)n;
    return LR_OK;
}

int lr_gpu_link(int from, int to, int *peer, int *nvlink)
{
    nvml_device *a = NULL, *b = NULL;
    int status = handle_of(from, &a);
    if (status == LR_OK)
        status = handle_of(to, &b);
    if (status != LR_OK)
        return status;
    int reads = 0, writes = 0, link = 0;
    const bool told = TOLD(p2p, a, b, P2P_READ, &reads) && TOLD(p2p, a, b, P2P_WRITE, &writes);
    *peer = told ? reads == P2P_OK && writes == P2P_OK : -1;
    *nvlink = TOLD(p2p, a, b, P2P_NVLINK, &link) ? link == P2P_OK : -1;
    return LR_OK;
}
