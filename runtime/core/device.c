/* device.c: which devices there are. */
#include "core/device.h"
#include <stdio.h>
#include <string.h>

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
