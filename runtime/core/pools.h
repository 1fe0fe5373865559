/* pools.h: the memory of each device, in two pools of which pieces are taken. For memory.c and memory_report.c; see pools.c. */
#ifndef LR_POOLS_H
#define LR_POOLS_H

#include "core/arena.h"
#include "core/device.h"
#include "core/memory.h"

typedef enum lr_pool_kind { LR_POOL_SMALL, LR_POOL_LARGE, LR_POOL_KINDS } lr_pool_kind;

typedef struct lr_pool {
    lr_arena arena;
    const lr_driver *driver; /* NULL on the meta device */
    char *base;              /* where the arena's offset 0 is; NULL on the meta device */
} lr_pool;

typedef struct lr_pools {
    lr_storage *live; /* doubly linked */
    lr_pool pool[LR_POOL_KINDS];
    lr_memory stats;   /* all but reserved_bytes */
    int64_t limit;     /* of live bytes; 0: none */
    lr_piece *scratch; /* of the large pool */
} lr_pools;

/* Those of a device, 0 <= device < LR_DEVICE_COUNT. */
lr_pools *lr_pools_of(int device);

/* Bytes of memory that the device gave, live or kept for reuse. */
int64_t lr_pools_reserved(const lr_pools *m);

/* A piece with at least one byte more than `bytes`, and memory for all of it. LR_ENOMEM names `name`. */
int lr_pool_take(int device, lr_pool_kind kind, size_t bytes, const char *name, lr_piece **out);
void lr_pool_give(int device, lr_pool_kind kind, lr_piece *piece);

/* Give the working memory of ops (lr_scratch_take) back to the pool; the next op takes it again. */
void lr_scratch_drop(int device);

/* Where a piece is; NULL on the meta device. */
void *lr_pool_address(int device, lr_pool_kind kind, const lr_piece *piece);

#endif
