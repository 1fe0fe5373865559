/* op.c: what every op does before its kernel runs: the arguments are checked against the op's row in ops.def, and the kernel's
 * scratch is taken. One checker serves all ops and devices: a wrong shape is reported in the same words whether the op would have
 * run on the CPU, on a GPU or, on the meta device, not at all. */
#include "core/op.h"
#include "core/device.h"
#include <stdio.h>
#include <string.h>

static lr_exec exec_now;

static bool dtype_fits(lr_op_class class, const lr_tensor *t, int letter_dtype[4])
{
    switch (class) {
    case LR_CLASS_F32:
        return t->dtype == LR_F32;
    case LR_CLASS_I32:
        return t->dtype == LR_I32;
    case LR_CLASS_I64:
        return t->dtype == LR_I64;
    case LR_CLASS_PACKED_FORWARD:
    case LR_CLASS_PACKED_BACKWARD:
        /* A packed weight meets activations of its own dtype. */
        class = LR_CLASS_A;
        break;
    default:
        break;
    }
    if (t->dtype > LR_F16)
        return false;
    if (letter_dtype[class] < 0)
        letter_dtype[class] = t->dtype;
    return letter_dtype[class] == t->dtype;
}

static const char *wanted_dtype(lr_op_class class, const int letter_dtype[4])
{
    switch (class) {
    case LR_CLASS_F32:
        return "f32";
    case LR_CLASS_I32:
        return "i32";
    case LR_CLASS_I64:
        return "i64";
    default:
        if (class <= LR_CLASS_Z && letter_dtype[class] >= 0)
            return lr_dtype_name(letter_dtype[class]);
        if (class >= LR_CLASS_PACKED_FORWARD && letter_dtype[LR_CLASS_A] >= 0)
            return lr_dtype_name(letter_dtype[LR_CLASS_A]);
        return "f32, bf16 or f16";
    }
}

/* Bind the letters of one argument's shape, or compare with what they are bound to already. */
static int check_shape(const char *op, const lr_op_arg *arg, const lr_tensor *t, int64_t size[26], const char *from[26])
{
    char text[96];
    if (t->ndim != arg->ndim)
        return lr_fail(LR_ESHAPE, "%s: %s ('%s') has shape %s, expected %s", op, arg->name, t->name,
                       lr_shape_text(t, text), arg->shape);
    for (int i = 0; i < arg->ndim; i++) {
        const lr_op_dim *d = &arg->dims[i];
        const int letter = d->letter - 'A';
        if (d->mul != 0 && size[letter] < 0) {
            const int64_t rest = t->shape[i] - d->add;
            if (rest <= 0 || rest % d->mul != 0)
                return lr_fail(LR_ESHAPE, "%s: %s ('%s') has shape %s, expected %s", op, arg->name, t->name,
                               lr_shape_text(t, text), arg->shape);
            size[letter] = rest / d->mul;
            from[letter] = arg->name;
        }
        const int64_t expected = d->mul != 0 ? d->mul * size[letter] + d->add : d->add;
        if (t->shape[i] != expected && d->mul != 0)
            return lr_fail(LR_ESHAPE, "%s: %s ('%s') has shape %s, expected %s with %c = %lld as in %s", op, arg->name,
                           t->name, lr_shape_text(t, text), arg->shape, d->letter, (long long)size[letter],
                           from[letter]);
        if (t->shape[i] != expected)
            return lr_fail(LR_ESHAPE, "%s: %s ('%s') has shape %s, expected %s", op, arg->name, t->name,
                           lr_shape_text(t, text), arg->shape);
    }
    return LR_OK;
}

int lr_op_check(const char *op, const lr_op_arg *args, int n, const lr_tensor *const *tensors,
                const lr_backend **backend, lr_exec **exec)
{
    int64_t size[26];
    const char *from[26] = {NULL};
    int letter_dtype[4] = {-1, -1, -1, -1};
    const lr_tensor *first = NULL;
    memset(size, -1, sizeof size);
    if (lr_interrupt_take())
        return lr_fail(LR_EINTERRUPTED, "interrupted");
    for (int i = 0; i < n; i++) {
        const lr_op_arg *arg = &args[i];
        const lr_tensor *t = tensors[i];
        if (t == NULL) {
            if (arg->optional)
                continue;
            return lr_fail(LR_EINVAL, "%s: %s is missing", op, arg->name);
        }
        if (t->storage == NULL)
            return lr_fail(LR_EFREED, "%s: %s ('%s') was freed and is used again", op, arg->name, t->name);
        if (first == NULL)
            first = t;
        if (t->device != first->device)
            return lr_fail(LR_EDEVICE, "%s: %s ('%s') is on %s but %s is on %s", op, arg->name, t->name,
                           lr_device_name(t->device), args[0].name, lr_device_name(first->device));
        if (!dtype_fits(arg->dtype, t, letter_dtype))
            return lr_fail(LR_EDTYPE, "%s: %s ('%s') is %s, expected %s", op, arg->name, t->name,
                           lr_dtype_name(t->dtype), wanted_dtype(arg->dtype, letter_dtype));
        const int direction = t->packing != NULL ? t->packing->direction : 0;
        const int wanted = arg->dtype == LR_CLASS_PACKED_FORWARD ? 1 : arg->dtype == LR_CLASS_PACKED_BACKWARD ? 2 : 0;
        static const char *const layout[] = {"plain", "packed for linear", "packed for linear_backward"};
        if (direction != wanted)
            return lr_fail(LR_EINVAL, "%s: %s ('%s') is %s, expected %s", op, arg->name, t->name, layout[direction],
                           layout[wanted]);
        if (!arg->strided && !lr_tensor_contiguous(t))
            return lr_fail(LR_EINVAL, "%s: %s ('%s') is a view of columns (row stride %lld), it must be contiguous", op,
                           arg->name, t->name, (long long)t->ld);
        const int status = check_shape(op, arg, t, size, from);
        if (status != LR_OK)
            return status;
    }
    if (first == NULL)
        return lr_fail(LR_EINVAL, "%s: no tensor was given", op);
    *exec = &exec_now;
    const lr_driver *driver = lr_driver_like(first->device);
    if (first->device != LR_META)
        driver->prepare(&exec_now);
    else
        exec_now.threads = lr_threads(); /* scratch of the CPU's kernels depends on them */
    *backend = driver->kernels();
    return LR_OK;
}

int lr_op_scratch(lr_exec *exec, const lr_tensor *t, int64_t bytes)
{
    exec->scratch = NULL;
    if (bytes <= 0)
        return (int)bytes;
    return lr_scratch_take(&exec->scratch, t->device, (size_t)bytes);
}

int lr_op_missing(const char *op, const lr_tensor *t)
{
    return lr_fail(LR_EUNSUPPORTED, "%s: there is no kernel for device %s", op, lr_device_name(t->device));
}
