/* arena.h: a range of a device's addresses; pieces of it are taken and given back. See arena.c. */
#ifndef LR_ARENA_H
#define LR_ARENA_H

#include "core/core.h"

/* Pieces lie side by side and together are the whole range; no two neighbours are both free. */
typedef struct lr_piece {
    size_t offset, bytes;
    bool taken;
    struct lr_piece *below, *above;             /* neighbours in the range */
    struct lr_piece *next_free, *previous_free; /* in the list of free pieces, if it is free */
} lr_piece;

/* Where the memory for the addresses comes from, one granule at a time. map returns LR_OK, LR_ENOMEM or another status. */
typedef struct lr_arena_source {
    void *context;
    size_t granule; /* bytes */
    int (*map)(void *context, size_t offset, size_t bytes);
    void (*unmap)(void *context, size_t offset, size_t bytes);
} lr_arena_source;

typedef struct lr_arena {
    lr_arena_source source;
    size_t capacity;        /* bytes of addresses; 0: nothing can be taken yet */
    size_t top;             /* where the last piece ends: a multiple of the granule */
    size_t mapped_bytes;    /* of granules that have memory */
    unsigned char *mapped;  /* for each granule below top: 1 if it has memory */
    size_t mapped_capacity; /* elements of that array */
    lr_piece *first, *last; /* in the order of addresses */
    lr_piece *free;         /* the list of free pieces */
} lr_arena;

enum { LR_PIECE_ALIGNMENT = 256 };

/* Addresses for at least `bytes` (> 0), rounded up to LR_PIECE_ALIGNMENT; some of them may have no memory yet. NULL, without
 * lr_fail: there are no more addresses, or there is no host memory to describe the piece. */
lr_piece *lr_arena_take(lr_arena *a, size_t bytes);

/* Make the piece free, and join it with its free neighbours. */
void lr_arena_give(lr_arena *a, lr_piece *piece);

/* Bytes of memory that must be mapped before the piece can be used. */
size_t lr_arena_missing(const lr_arena *a, const lr_piece *piece);

/* Map what is missing. If the source fails, returns its status; what was mapped by then stays mapped. */
int lr_arena_map(lr_arena *a, const lr_piece *piece);

/* Unmap granules that hold nothing but free pieces, highest addresses first, until at most `bytes` are mapped or no such granule is
 * left. */
void lr_arena_trim(lr_arena *a, size_t bytes);

/* For tests: which invariant does not hold, or NULL. */
const char *lr_arena_fault(const lr_arena *a);

#endif
