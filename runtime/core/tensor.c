/* tensor.c: handles over shared storages, views, reading and writing.
 *
 * Invariants
 *   - storage is NULL exactly when the tensor was freed; shape, dtype and name outlive the bytes, for error messages.
 *   - data points into storage->data; a view of a view points to the storage, never to the other view.
 *   - Nothing here knows gradients: those belong to the tape, in Lua. Packing is the driver's. */
#include "core/tensor.h"
#include "core/device.h"
#include <stdio.h>
#include <string.h>

const char *lr_shape_text(const lr_tensor *t, char buf[96])
{
    size_t used = (size_t)snprintf(buf, 96, "[");
    for (int i = 0; i < t->ndim; i++)
        used += (size_t)snprintf(buf + used, 96 - used, i ? ", %lld" : "%lld", (long long)t->shape[i]);
    snprintf(buf + used, 96 - used, "]");
    return buf;
}

/* Validate a shape and count its elements. */
static int count_elements(int ndim, const int64_t *shape, const char *name, int64_t *elements)
{
    if (ndim < 1 || ndim > LR_MAX_DIMS)
        return lr_fail(LR_ESHAPE, "'%s' has %d dimensions, a tensor has 1 to %d", name, ndim, LR_MAX_DIMS);
    int64_t n = 1;
    for (int i = 0; i < ndim; i++) {
        if (shape[i] < 1)
            return lr_fail(LR_ESHAPE, "'%s': dimension %d is %lld; every dimension must be at least 1", name, i + 1,
                           (long long)shape[i]);
        if (__builtin_mul_overflow(n, shape[i], &n) || n > INT64_MAX / 8)
            return lr_fail(LR_ESHAPE, "'%s' has more elements than can be counted", name);
    }
    *elements = n;
    return LR_OK;
}

static void set_shape(lr_tensor *t, int ndim, const int64_t *shape, int64_t elements, int64_t ld)
{
    t->ndim = ndim;
    for (int i = 0; i < LR_MAX_DIMS; i++)
        t->shape[i] = i < ndim ? shape[i] : 1;
    t->elements = elements;
    t->ld = ld != 0 ? ld : elements / shape[0];
}

int lr_tensor_new(lr_tensor **out, int dtype, int ndim, const int64_t *shape, int device, const char *name)
{
    int64_t elements;
    if (name == NULL)
        name = "tensor";
    if (dtype < 0 || dtype >= LR_DTYPE_COUNT)
        return lr_fail(LR_EDTYPE, "'%s': there is no dtype number %d", name, dtype);
    int status = count_elements(ndim, shape, name, &elements);
    if (status != LR_OK)
        return status;
    lr_tensor *t = lr_calloc(1, sizeof *t);
    if (t == NULL)
        return LR_ENOMEM;
    status = lr_storage_new(&t->storage, (size_t)elements * lr_dtype_size(dtype), device, name);
    if (status != LR_OK) {
        lr_free(t);
        return status;
    }
    t->data = t->storage->data;
    t->dtype = dtype;
    t->device = device;
    set_shape(t, ndim, shape, elements, 0);
    snprintf(t->name, sizeof t->name, "%s", name);
    *out = t;
    return LR_OK;
}

int lr_tensor_view(lr_tensor **out, const lr_tensor *t, int64_t offset, int ndim, const int64_t *shape, int64_t ld)
{
    int64_t elements;
    if (t->storage == NULL)
        return lr_fail(LR_EFREED, "'%s' was freed and is viewed again", t->name);
    if (t->packing != NULL)
        return lr_fail(LR_EINVAL, "'%s' is a packed weight: it has no views", t->name);
    const int status = count_elements(ndim, shape, t->name, &elements);
    if (status != LR_OK)
        return status;
    if (ld != 0 && (ndim != 2 || ld < shape[1]))
        return lr_fail(LR_EINVAL, "view of '%s': row stride %lld does not fit %d dimensions of width %lld", t->name,
                       (long long)ld, ndim, (long long)shape[ndim - 1]);
    const int64_t start =
        (int64_t)((const char *)t->data - (const char *)t->storage->data) / (int64_t)lr_dtype_size(t->dtype);
    const int64_t span = ld != 0 ? (shape[0] - 1) * ld + shape[1] : elements;
    const int64_t own = (t->shape[0] - 1) * t->ld + t->elements / t->shape[0];
    if (offset < 0 || offset > own - span)
        return lr_fail(LR_ESHAPE, "view of '%s': elements %lld to %lld of %lld", t->name, (long long)offset,
                       (long long)(offset + span), (long long)own);
    lr_tensor *v = lr_calloc(1, sizeof *v);
    if (v == NULL)
        return LR_ENOMEM;
    v->storage = t->storage;
    v->storage->references++;
    v->data =
        t->device == LR_META ? NULL : (char *)t->storage->data + (size_t)(start + offset) * lr_dtype_size(t->dtype);
    v->dtype = t->dtype;
    v->device = t->device;
    set_shape(v, ndim, shape, elements, ld);
    memcpy(v->name, t->name, sizeof v->name);
    *out = v;
    return LR_OK;
}

int lr_tensor_pack(lr_tensor **out, const lr_tensor *w, int direction, int dtype)
{
    if (w->storage == NULL)
        return lr_fail(LR_EFREED, "pack: '%s' was freed and is used again", w->name);
    if (w->ndim != 2 || w->packing != NULL || w->dtype > LR_F16)
        return lr_fail(LR_ESHAPE, "pack: '%s' is not a plain floating-point matrix", w->name);
    if ((direction != 1 && direction != 2) || dtype < LR_F32 || dtype > LR_F16)
        return lr_fail(LR_EINVAL, "pack: '%s': direction %d, dtype %s; expected 1 or 2, f32, bf16 or f16", w->name,
                       direction, lr_dtype_name(dtype));
    return lr_driver_like(w->device)->pack(out, w, direction, dtype);
}

void lr_tensor_free(lr_tensor *t)
{
    if (t == NULL || t->storage == NULL)
        return;
    if (t->packing != NULL) {
        t->packing->free_state(t->packing->state);
        lr_free(t->packing);
        t->packing = NULL;
    }
    lr_storage_release(t->storage);
    t->storage = NULL;
    t->data = NULL;
}

void lr_tensor_destroy(lr_tensor *t)
{
    lr_tensor_free(t);
    lr_free(t);
}

int lr_tensor_describe(const lr_tensor *t, lr_tensor_info *out)
{
    *out = (lr_tensor_info){.dtype = t->dtype,
                            .device = t->device,
                            .ndim = t->ndim,
                            .packed = t->packing != NULL ? t->packing->direction : 0,
                            .ld = t->ld,
                            .elements = t->elements,
                            .freed = t->storage == NULL};
    memcpy(out->shape, t->shape, sizeof out->shape);
    return LR_OK;
}

const char *lr_tensor_name(const lr_tensor *t)
{
    return t->name;
}

/* Shared checks of read and write. */
static int check_range(const lr_tensor *t, int64_t offset, int64_t count, const char *what)
{
    if (t->storage == NULL)
        return lr_fail(LR_EFREED, "%s: '%s' was freed and is used again", what, t->name);
    if (t->packing != NULL || t->device == LR_META)
        return lr_fail(LR_EUNSUPPORTED, "%s: '%s' %s", what, t->name,
                       t->packing != NULL ? "is a packed weight" : "is on the meta device and has no values");
    if (offset < 0 || count < 0 || offset > t->elements - count)
        return lr_fail(LR_ESHAPE, "%s: elements %lld to %lld of '%s', which has %lld", what, (long long)offset,
                       (long long)(offset + count), t->name, (long long)t->elements);
    return LR_OK;
}

/* Copy the elements [offset, offset + count) from or to contiguous host memory, whole rows at once where possible. */
static int copy_elements(const lr_tensor *t, int64_t offset, int64_t count, char *host, lr_direction direction)
{
    const lr_driver *driver = lr_driver_of(t->device);
    const size_t size = lr_dtype_size(t->dtype);
    const int64_t width = lr_tensor_contiguous(t) ? t->elements : t->shape[1];
    while (count > 0) {
        const int64_t row = offset / width, column = offset % width;
        const int64_t rows = column == 0 && count >= width ? count / width : 1;
        const int64_t n = lr_min64(count, width - column);
        char *p = (char *)t->data + (size_t)(row * t->ld + column) * size;
        lr_copy c = {.width = (size_t)n * size, .rows = (size_t)rows, .direction = direction};
        if (direction == LR_TO_HOST) {
            c.to = host;
            c.from = p;
        } else {
            c.to = p;
            c.from = host;
        }
        c.to_pitch = direction == LR_TO_HOST ? c.width : (size_t)t->ld * size;
        c.from_pitch = direction == LR_TO_HOST ? (size_t)t->ld * size : c.width;
        const int status = direction == LR_TO_DEVICE && !driver->addressable
                               ? lr_stage_to_device(driver, driver->compute_stream(), &c)
                               : driver->copy(driver->compute_stream(), &c);
        if (status != LR_OK)
            return status;
        host += (size_t)(rows * n) * size;
        offset += rows * n;
        count -= rows * n;
    }
    return direction == LR_TO_HOST ? driver->stream_wait(driver->compute_stream()) : LR_OK;
}

int lr_tensor_read(const lr_tensor *t, int64_t offset, int64_t count, void *dst)
{
    const int status = check_range(t, offset, count, "read");
    return status == LR_OK ? copy_elements(t, offset, count, dst, LR_TO_HOST) : status;
}

int lr_tensor_write(lr_tensor *t, int64_t offset, int64_t count, const void *src)
{
    if (t->device == LR_META && t->storage != NULL)
        return LR_OK;
    const int status = check_range(t, offset, count, "write");
    return status == LR_OK ? copy_elements(t, offset, count, (char *)(uintptr_t)src, LR_TO_DEVICE) : status;
}

int lr_tensor_fill(lr_tensor *t, double value)
{
    if (t->device == LR_META && t->storage != NULL)
        return LR_OK;
    int status = check_range(t, 0, t->elements, "fill");
    if (status != LR_OK)
        return status;
    union {
        float f32;
        uint16_t half;
        int32_t i32;
        int64_t i64;
    } x = {0};
    switch (t->dtype) {
    case LR_F32:
        x.f32 = (float)value;
        break;
    case LR_BF16:
        x.half = lr_f32_to_bf16((float)value);
        break;
    case LR_F16:
        x.half = lr_f32_to_f16((float)value);
        break;
    case LR_I32:
        x.i32 = (int32_t)value;
        break;
    default:
        x.i64 = (int64_t)value;
    }
    const lr_driver *driver = lr_driver_of(t->device);
    const size_t size = lr_dtype_size(t->dtype);
    const int64_t rows = lr_tensor_contiguous(t) ? 1 : t->shape[0];
    const lr_copy to = {.to = t->data,
                        .to_pitch = (size_t)t->ld * size,
                        .width = (size_t)(t->elements / rows) * size,
                        .rows = (size_t)rows};
    return driver->fill(driver->compute_stream(), &to, &x, size);
}

int lr_tensor_uniform(lr_tensor *t, uint64_t seed, uint32_t purpose, double lo, double hi)
{
    if (t->device == LR_META && t->storage != NULL)
        return LR_OK;
    int status = check_range(t, 0, t->elements, "uniform");
    if (status != LR_OK)
        return status;
    if (t->dtype != LR_F32 || !lr_tensor_contiguous(t))
        return lr_fail(LR_EDTYPE, "uniform: '%s' must be contiguous f32", t->name);
    float x[4096];
    for (int64_t at = 0; at < t->elements; at += (int64_t)LR_COUNT_OF(x)) {
        const int64_t n = lr_min64(t->elements - at, LR_COUNT_OF(x));
        for (int64_t i = 0; i < n; i += 4) {
            uint32_t r[4];
            lr_random(seed, purpose, 0, (uint64_t)(at + i) / 4, r);
            for (int64_t j = 0; j < 4; j++) /* 24 bits: exact in a float, so hi is never reached */
                x[i + j] = (float)(lo + (hi - lo) * ((double)(r[j] >> 8) * 0x1p-24));
        }
        status = lr_tensor_write(t, at, n, x);
        if (status != LR_OK)
            return status;
    }
    return LR_OK;
}
