/* tensor.h: what a tensor is, for the runtime and the kernels. */
#ifndef LR_TENSOR_H
#define LR_TENSOR_H

#include "core/dtype.h"
#include "core/memory.h"

/* The layout of a packed weight is the driver's own: an opaque state, and the function that frees it. */
typedef struct lr_packing {
    int direction; /* 1 forward, 2 backward, as lr_tensor_pack's */
    void *state;
    void (*free_state)(void *state);
} lr_packing;

struct lr_tensor {
    void *data; /* the first element; NULL on the meta device and after lr_tensor_free */
    int dtype, device, ndim;
    int64_t shape[LR_MAX_DIMS];
    int64_t ld; /* row stride in elements; only a 2-D tensor's may exceed its width, shape[1] */
    int64_t elements;
    lr_storage *storage; /* NULL after lr_tensor_free */
    lr_packing *packing; /* NULL for a plain tensor */
    char name[48];
};

/* Do rows follow each other without a gap? */
static inline bool lr_tensor_contiguous(const lr_tensor *t)
{
    return t->ndim != 2 || t->ld == t->shape[1] || t->shape[0] == 1;
}

/* "[2, 3]" into buf, for messages. */
const char *lr_shape_text(const lr_tensor *t, char buf[96]);

#endif
