/* tensor.h: what a tensor is, for the runtime and the kernels. */
#ifndef LR_TENSOR_H
#define LR_TENSOR_H

#include "core/half.h"
#include "core/memory.h"

/* A packed weight's layout belongs to the backend: opaque state plus the function that frees it. */
typedef struct lr_packing {
    int direction; /* 1 forward, 2 backward, as lr_tensor_pack's */
    void *state;
    void (*free_state)(void *state);
} lr_packing;

struct lr_tensor {
    void *data; /* first element; NULL on meta and after lr_tensor_free */
    int dtype, device, ndim;
    int64_t shape[LR_MAX_DIMS];
    int64_t ld; /* row stride in elements: 2-D only may exceed shape[1] */
    int64_t elements;
    lr_storage *storage; /* NULL after lr_tensor_free */
    lr_packing *packing; /* NULL for a plain tensor */
    char name[48];
};

size_t lr_dtype_size(int dtype); /* bytes an element */

/* True where rows follow each other without a gap. */
static inline bool lr_tensor_contiguous(const lr_tensor *t)
{
    return t->ndim != 2 || t->ld == t->shape[1] || t->shape[0] == 1;
}

/* "[2, 3]" into buf, for messages. */
const char *lr_shape_text(const lr_tensor *t, char buf[96]);

/* Convert n elements between any two of F32, BF16, F16 (or copy equal dtypes), host memory. LR_EDTYPE for other pairs. */
int lr_convert(void *dst, int dst_dtype, const void *src, int src_dtype, int64_t n);

#endif
