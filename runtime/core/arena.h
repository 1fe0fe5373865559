/* arena.h: a range of a device's addresses, of which pieces are taken and given back. See arena.c. */
#ifndef LR_ARENA_H
#define LR_ARENA_H

#include "core/core.h"

/* Pieces stand side by side and together are the whole range; no two neighbours are both free. */
typedef struct lr_piece {
    size_t offset, bytes;
    bool taken;
    struct lr_piece *below, *above;             /* neighbours in the range */
    struct lr_piece *next_free, *previous_free; /* where it is free */
} lr_piece;

/* Where the memory behind the addresses comes from, a granule at a time. map returns LR_OK, LR_ENOMEM or another status. */
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
    size_t mapped_bytes;    /* of granules with memory behind them */
    unsigned char *mapped;  /* for each granule below top: has it? */
    size_t mapped_capacity; /* elements of that array */
    lr_piece *first, *last; /* in the order of addresses */
    lr_piece *free;         /* those that are */
} lr_arena;

enum { LR_PIECE_ALIGNMENT = 256 };

/* Addresses for at least `bytes` (> 0), rounded up to LR_PIECE_ALIGNMENT; behind some of them there may be no memory yet. NULL, without
 * lr_fail: there are no more, or no host memory to describe them. */
lr_piece *lr_arena_take(lr_arena *a, size_t bytes);

/* The piece is free, and what its neighbours are that are free, too. */
void lr_arena_give(lr_arena *a, lr_piece *piece);

/* How many bytes of memory have to be mapped before the piece can be used. */
size_t lr_arena_missing(const lr_arena *a, const lr_piece *piece);

/* Map what is missing. Where the source fails, its status; what it gave stays mapped. */
int lr_arena_map(lr_arena *a, const lr_piece *piece);

/* Give memory that is behind free pieces alone back to the source, highest addresses first, until no more than `bytes` are mapped or
 * none is left to give. */
void lr_arena_trim(lr_arena *a, size_t bytes);

/* What is wrong with the arena's own account, or NULL; for tests. */
const char *lr_arena_fault(const lr_arena *a);

#endif
