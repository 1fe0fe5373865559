/* device.c: which devices there are. Each driver is listed by the build (BACKENDS in CMakeLists.txt); the meta device has none.
 *
 * A device is opened when it is first asked for, so that a program that does not use the GPU does not wait for the GPU's driver. */
#include "core/device.h"
#include <stdio.h>
#include <string.h>

/* lr_drivers.inc has a row LR_DRIVER(name) for each backend. */
#define LR_DRIVER(name) const lr_driver *lr_##name##_driver(void);
#include "lr_drivers.inc"
#undef LR_DRIVER

static const lr_driver *(*const drivers[])(void) = {
#define LR_DRIVER(name) lr_##name##_driver,
#include "lr_drivers.inc"
#undef LR_DRIVER
};

/* What became of opening each device. */
static struct {
    enum { UNKNOWN, PRESENT, MISSING } state;
    int index;     /* of those of its kind that this process sees */
    char why[256]; /* it is missing */
} devices[LR_DEVICE_COUNT];

static const lr_driver *listed_driver(int device)
{
    for (size_t i = 0; i < LR_COUNT_OF(drivers); i++)
        if (drivers[i]()->device == device)
            return drivers[i]();
    return NULL;
}

static void find(int device, const lr_driver *driver)
{
    devices[device].state = MISSING;
    if (driver->absent == NULL && driver->open(devices[device].index) == LR_OK)
        devices[device].state = PRESENT;
    else
        snprintf(devices[device].why, sizeof devices[device].why, "%s",
                 driver->absent != NULL ? driver->absent : lr_last_error());
}

const char *lr_device_missing(int device)
{
    const lr_driver *driver = listed_driver(device);
    if (device == LR_META)
        return NULL;
    if (driver == NULL)
        return "there is no such device";
    if (devices[device].state == UNKNOWN)
        find(device, driver);
    return devices[device].state == PRESENT ? NULL : devices[device].why;
}

int lr_device_available(int device)
{
    return lr_device_missing(device) == NULL;
}

int lr_device_count(int device)
{
    const lr_driver *driver = listed_driver(device);
    if (device == LR_META)
        return 1;
    return driver != NULL && driver->absent == NULL ? driver->count() : 0;
}

int lr_device_choose(int device, int index)
{
    const int count = lr_device_count(device);
    if (index < 0 || index >= count)
        return lr_fail(LR_EDEVICE, "%s device %d: this process sees %d", lr_device_name(device), index, count);
    if (devices[device].state != UNKNOWN && devices[device].index != index)
        return lr_fail(LR_EINVAL, "this process uses %s %d already, it cannot change to %d",
                       listed_driver(device)->traits.noun, devices[device].index, index);
    devices[device].index = index;
    return LR_OK;
}

int lr_device_uuid(int device, int index, char *buf, size_t cap)
{
    const lr_driver *driver = listed_driver(device);
    if (driver == NULL || (driver->uuid == NULL && driver->absent == NULL))
        return lr_fail(LR_EUNSUPPORTED, "device %s has no name of its own in the world", lr_device_name(device));
    const int chosen = index < 0 ? devices[device].index : index, count = lr_device_count(device);
    if (chosen >= count)
        return lr_fail(LR_EDEVICE, "%s device %d: this process sees %d", lr_device_name(device), chosen, count);
    return driver->uuid(chosen, buf, cap);
}

const char *lr_device_name(int device)
{
    const lr_driver *driver = listed_driver(device);
    return device == LR_META ? "meta" : driver != NULL ? driver->name : "unknown";
}

const lr_driver *lr_driver_of(int device)
{
    return device != LR_META && lr_device_available(device) ? listed_driver(device) : NULL;
}

/* ---- the meta device ------------------------------------------------------------------------------------------------- */
static int meta_is_like = LR_CPU;

int lr_meta_like(int device)
{
    if (listed_driver(device) == NULL)
        return lr_fail(LR_EINVAL, "the meta device cannot be like device number %d", device);
    meta_is_like = device;
    return LR_OK;
}

int lr_device_like(int device)
{
    return device == LR_META ? meta_is_like : device;
}

const lr_driver *lr_driver_like(int device)
{
    return listed_driver(lr_device_like(device));
}

int lr_device_traits_of(int device, lr_device_traits *out)
{
    const lr_driver *driver = lr_driver_like(device);
    if (driver == NULL)
        return lr_fail(LR_EINVAL, "there is no device number %d", device);
    *out = driver->traits;
    out->own_memory = !driver->addressable;
    return LR_OK;
}

bool lr_device_addressable(int device)
{
    const lr_driver *driver = listed_driver(device);
    return driver != NULL && driver->addressable;
}

/* ---- asking a device ------------------------------------------------------------------------------------------------- */
/* The driver, or NULL and lr_fail. */
static const lr_driver *need_driver(int device, const char *what)
{
    const lr_driver *driver = lr_driver_of(device);
    if (driver == NULL)
        lr_fail(LR_EDEVICE, "%s: device %s: %s", what, lr_device_name(device),
                device == LR_META ? "it has no hardware" : lr_device_missing(device));
    return driver;
}

/* A program that was built for GPUs and runs on the processor says why, where there is no GPU. Looking for one does not start
 * it. */
static void append_missing(char *buf, size_t cap)
{
    for (size_t i = 0; i < LR_COUNT_OF(drivers); i++) {
        const lr_driver *driver = drivers[i]();
        if (driver->absent != NULL)
            continue;
        if (devices[driver->device].state == UNKNOWN && driver->count() == 0)
            find(driver->device, driver);
        const size_t used = strlen(buf);
        if (devices[driver->device].state == MISSING)
            snprintf(buf + used, cap - used, "; no %s: %s", driver->traits.noun, devices[driver->device].why);
    }
}

int lr_device_describe(int device, char *buf, size_t cap)
{
    const lr_driver *driver = need_driver(device, "describe");
    if (driver == NULL)
        return LR_EDEVICE;
    const int status = driver->describe(buf, cap);
    if (status == LR_OK && driver->addressable)
        append_missing(buf, cap);
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
