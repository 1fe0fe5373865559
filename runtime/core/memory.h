/* memory.h: buffers that tensors share. See memory.c. */
#ifndef LR_MEMORY_H
#define LR_MEMORY_H

#include "core/core.h"

typedef struct lr_storage {
    void *data;             /* NULL on the meta device */
    size_t bytes;           /* of the tensor; the piece has more */
    struct lr_piece *piece; /* of the device's memory */
    int device;
    int references; /* the number of tensors that have these bytes */
    char name[48];
    struct lr_storage *previous, *next; /* the live list of the device */
} lr_storage;

/* A buffer of at least `bytes` on the device, 256-byte aligned, contents undefined, references = 1. */
int lr_storage_new(lr_storage **out, size_t bytes, int device, const char *name);
/* Drop one reference. With the last one the buffer is free, also for work that is put on the compute stream from now on. */
void lr_storage_release(lr_storage *s);

/* Working memory of one op on a device: kept, and as large as the largest need so far. The bytes are valid until the next call,
 * which on a GPU means: for what is put on the compute stream before it. On the meta device they are counted, and *out is NULL. */
int lr_scratch_take(void **out, int device, size_t bytes);

/* Give the device's free memory back to it, for a library that a kernel calls and that lacks memory. lr_memory_release_cached would
 * take the scratch away, too, which the running op uses. */
void lr_memory_give_back(int device);

#endif
