/* fake_nvml.c: a libnvidia-ml.so.1 for tests: its GPUs report the numbers that the environment sets. It is written against
 * NVIDIA's documentation of the interface, not against kernels/cuda/nvml.c.
 *
 *   FAKE_NVML_gpus=2                 the number of GPUs; the first is the one whose kernels run on the CPU
 *   FAKE_NVML_used=1000000000        bytes in use on each, of FAKE_NVML_total FAKE_NVML_used_1=...             the same for the
 *   second GPU alone; this works with every name below FAKE_NVML_nvmlDeviceGetName=3    this function returns error 3
 * Names: total, used, utilization, major, minor, ecc, cuda, nvlinks, peer, pid (0: no process). Built with OLD it lacks most
 * functions, with BROKEN one that must exist. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#pragma GCC diagnostic ignored                                                                                         \
    "-Wmissing-prototypes" /* the prototypes are in NVIDIA's nvml.h, which the build does not need */
#define EXPORT __attribute__((visibility("default")))
#define NO_SUCH 2
#define NOT_SUPPORTED 3
#define NOT_FOUND 6
#define TOO_SMALL 7

static const char *setting(const char *name, int gpu)
{
    char key[96];
    snprintf(key, sizeof key, "FAKE_NVML_%s_%d", name, gpu);
    if (getenv(key) != NULL)
        return getenv(key);
    snprintf(key, sizeof key, "FAKE_NVML_%s", name);
    return getenv(key);
}

static long long number(const char *name, int gpu, long long otherwise)
{
    const char *text = setting(name, gpu);
    return text != NULL ? atoll(text) : otherwise;
}

#define REFUSE(gpu)                                                                                                    \
    if (number(__func__, gpu, 0) != 0)                                                                                 \
    return (int)number(__func__, gpu, 0)

/* A handle is the address of the GPU's element. */
static int places[16];
static int gpu_of(const void *handle)
{
    return (int)((const int *)handle - places);
}

EXPORT int nvmlInit_v2(void)
{
    REFUSE(-1);
    return 0;
}

EXPORT const char *nvmlErrorString(int code)
{
    static char text[32];
    snprintf(text, sizeof text, "fake error %d", code);
    return text;
}

EXPORT int nvmlDeviceGetCount_v2(unsigned int *n)
{
    REFUSE(-1);
    *n = (unsigned int)number("gpus", -1, 2);
    return 0;
}

#ifndef BROKEN
EXPORT int nvmlDeviceGetHandleByIndex_v2(unsigned int i, void **out)
{
    REFUSE((int)i);
    if (i >= number("gpus", -1, 2))
        return NO_SUCH;
    *out = &places[i];
    return 0;
}
#endif

EXPORT int nvmlDeviceGetIndex(void *gpu, unsigned int *out)
{
    REFUSE(gpu_of(gpu));
    *out = (unsigned int)gpu_of(gpu);
    return 0;
}

EXPORT int nvmlDeviceGetHandleByUUID(const char *uuid, void **out)
{
    REFUSE(-1);
    int i = 0;
    if (sscanf(uuid, "GPU-00000000-0000-0000-0000-%d", &i) != 1 || i >= number("gpus", -1, 2))
        return NOT_FOUND;
    *out = &places[i];
    return 0;
}

typedef struct memory {
    unsigned long long total, free, used;
} memory;
EXPORT int nvmlDeviceGetMemoryInfo(void *gpu, memory *out)
{
    REFUSE(gpu_of(gpu));
    out->total = (unsigned long long)number("total", gpu_of(gpu), 80ll << 30);
    out->used = (unsigned long long)number("used", gpu_of(gpu), 1ll << 30);
    out->free = out->total - out->used;
    return 0;
}

#ifndef OLD
EXPORT int nvmlSystemGetDriverVersion(char *out, unsigned int cap)
{
    REFUSE(-1);
    snprintf(out, cap, "580.65.06");
    return 0;
}

EXPORT int nvmlSystemGetCudaDriverVersion_v2(int *out)
{
    REFUSE(-1);
    *out = (int)number("cuda", -1, 13000);
    return 0;
}

EXPORT int nvmlDeviceGetName(void *gpu, char *out, unsigned int cap)
{
    REFUSE(gpu_of(gpu));
    snprintf(out, cap, "Fake H100 number %d", gpu_of(gpu));
    return 0;
}

EXPORT int nvmlDeviceGetUUID(void *gpu, char *out, unsigned int cap)
{
    REFUSE(gpu_of(gpu));
    snprintf(out, cap, "GPU-00000000-0000-0000-0000-%012d", gpu_of(gpu));
    return 0;
}

EXPORT int nvmlDeviceGetCudaComputeCapability(void *gpu, int *major, int *minor)
{
    REFUSE(gpu_of(gpu));
    *major = (int)number("major", gpu_of(gpu), 9);
    *minor = (int)number("minor", gpu_of(gpu), 0);
    return 0;
}

EXPORT int nvmlDeviceGetUtilizationRates(void *gpu, unsigned int out[2])
{
    REFUSE(gpu_of(gpu));
    out[0] = (unsigned int)number("utilization", gpu_of(gpu), 97);
    out[1] = 11; /* of the memory's bandwidth, which is not used */
    return 0;
}

EXPORT int nvmlDeviceGetTotalEccErrors(void *gpu, int uncorrected, int aggregate, unsigned long long *out)
{
    REFUSE(gpu_of(gpu));
    *out = uncorrected == 1 && aggregate == 0 ? (unsigned long long)number("ecc", gpu_of(gpu), 0) : 12345;
    return 0;
}

typedef struct process {
    unsigned int pid;
    unsigned long long used;
    unsigned int gpu_instance, compute_instance;
} process;
EXPORT int nvmlDeviceGetComputeRunningProcesses_v3(void *gpu, unsigned int *n, process *out)
{
    REFUSE(gpu_of(gpu));
    const long long pid = number("pid", gpu_of(gpu), 0);
    const unsigned int room = *n;
    *n = pid != 0 ? 2 : 0;
    if (*n > room)
        return TOO_SMALL;
    if (*n > 0) {
        out[0] = (process){(unsigned int)pid, 70ull << 30, 0, 0};
        out[1] = (process){1, ~0ull, 0, 0}; /* of another container: its memory is unknown */
    }
    return 0;
}

EXPORT int nvmlDeviceGetP2PStatus(void *a, void *b, int kind, int *out)
{
    REFUSE(gpu_of(a));
    (void)b;
    const long long peer = number("peer", gpu_of(a), 1), links = number("nvlinks", gpu_of(a), 18);
    *out = (kind == 2 ? links > 0 : peer) ? 0 : 5;
    return 0;
}

EXPORT int nvmlDeviceGetNvLinkState(void *gpu, unsigned int link, unsigned int *up)
{
    REFUSE(gpu_of(gpu));
    if (number("nvlinks", gpu_of(gpu), 18) < 0)
        return NOT_SUPPORTED;
    *up = link < (unsigned int)number("nvlinks", gpu_of(gpu), 18);
    return 0;
}
#endif
