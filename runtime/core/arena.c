/* arena.c: a range of addresses is cut into pieces and joined again; those that are taken have memory.
 *
 * The memory of a training step comes and goes like a stack: backward frees in the opposite order what forward keeps, and
 * between two steps nothing remains. So pieces of one range are cut to size and joined again, and a step takes what its tensors
 * hold, plus some holes. (Size classes, each with its own list, would waste a sixteenth on average, and more where every batch
 * has another number of tokens, because blocks of the last step's sizes are of no use to this one.)
 *
 * A piece goes where it fits best: into the smallest free one that is large enough, and the lowest of those. The end of the
 * range comes last: it is the only free piece that can grow, so its size of the moment must not count.
 *
 * Addresses are cheap, memory is not. Memory is mapped a granule at a time where a taken piece needs it, and can be unmapped
 * where a granule holds free pieces only. So a hole that is too small for anything costs addresses only: when memory is short, the
 * memory of the hole is unmapped, and memory at the end of the range takes its place.
 *
 * The arena never touches the memory: on the meta device, which has none, it makes the same choices as on a GPU.
 *
 * Cost: taking a piece compares all free ones, some tens in a training step. */
#include "core/arena.h"
#include <stdlib.h>
#include <string.h>

/* ---- pieces ------------------------------------------------------------------------------------------------------------ */
/* Not by lr_alloc: pieces belong to tensors, which are counted themselves. */
static lr_piece *piece_new(size_t offset, size_t bytes)
{
    lr_piece *p = lr_memory_injected() ? NULL : calloc(1, sizeof *p);
    if (p != NULL) {
        p->offset = offset;
        p->bytes = bytes;
    }
    return p;
}

static void free_insert(lr_arena *a, lr_piece *p)
{
    p->taken = false;
    p->previous_free = NULL;
    p->next_free = a->free;
    if (a->free != NULL)
        a->free->previous_free = p;
    a->free = p;
}

static void free_remove(lr_arena *a, lr_piece *p)
{
    if (p->previous_free != NULL)
        p->previous_free->next_free = p->next_free;
    else
        a->free = p->next_free;
    if (p->next_free != NULL)
        p->next_free->previous_free = p->previous_free;
    p->previous_free = p->next_free = NULL;
}

/* Put p above another, or first where that is NULL. */
static void insert_above(lr_arena *a, lr_piece *below, lr_piece *p)
{
    p->below = below;
    p->above = below != NULL ? below->above : a->first;
    if (p->above != NULL)
        p->above->below = p;
    else
        a->last = p;
    if (below != NULL)
        below->above = p;
    else
        a->first = p;
}

/* The piece above p becomes part of p. */
static void join_above(lr_arena *a, lr_piece *p)
{
    lr_piece *gone = p->above;
    p->bytes += gone->bytes;
    p->above = gone->above;
    if (p->above != NULL)
        p->above->below = p;
    else
        a->last = p;
    free(gone);
}

static bool fits_better(const lr_arena *a, const lr_piece *p, const lr_piece *other)
{
    if (p == a->last || other == a->last)
        return other == a->last;
    return p->bytes != other->bytes ? p->bytes < other->bytes : p->offset < other->offset;
}

static lr_piece *best_fit(const lr_arena *a, size_t bytes)
{
    lr_piece *best = NULL;
    for (lr_piece *p = a->free; p != NULL; p = p->next_free)
        if (p->bytes >= bytes && (best == NULL || fits_better(a, p, best)))
            best = p;
    return best;
}

/* Grow the range until it ends with a free piece of at least `bytes`. Returns that piece, or NULL. */
static lr_piece *grow(lr_arena *a, size_t bytes)
{
    lr_piece *last = a->last != NULL && !a->last->taken ? a->last : NULL;
    const size_t granule = a->source.granule, lacking = bytes - (last != NULL ? last->bytes : 0);
    if (lacking > a->capacity - a->top)
        return NULL;
    const size_t more = (lacking + granule - 1) / granule * granule, granules = (a->top + more) / granule;
    const size_t before = a->top / granule;
    if (granules > a->mapped_capacity) {
        const size_t room = granules + granules / 2;
        unsigned char *mapped = lr_memory_injected() ? NULL : realloc(a->mapped, room);
        if (mapped == NULL)
            return NULL;
        a->mapped = mapped;
        a->mapped_capacity = room;
    }
    if (last == NULL) {
        last = piece_new(a->top, more);
        if (last == NULL)
            return NULL;
        insert_above(a, a->last, last);
        free_insert(a, last);
    } else {
        last->bytes += more;
    }
    memset(a->mapped + before, 0, granules - before);
    a->top += more;
    return last;
}

lr_piece *lr_arena_take(lr_arena *a, size_t bytes)
{
    if (bytes > a->capacity)
        return NULL;
    bytes = (bytes + LR_PIECE_ALIGNMENT - 1) / LR_PIECE_ALIGNMENT * LR_PIECE_ALIGNMENT;
    lr_piece *p = best_fit(a, bytes);
    if (p == NULL)
        p = grow(a, bytes);
    if (p == NULL)
        return NULL;
    if (p->bytes > bytes) {
        lr_piece *rest = piece_new(p->offset + bytes, p->bytes - bytes);
        if (rest == NULL)
            return NULL;
        insert_above(a, p, rest);
        free_insert(a, rest);
        p->bytes = bytes;
    }
    free_remove(a, p);
    p->taken = true;
    return p;
}

void lr_arena_give(lr_arena *a, lr_piece *p)
{
    if (p->above != NULL && !p->above->taken) {
        free_remove(a, p->above);
        join_above(a, p);
    }
    if (p->below != NULL && !p->below->taken) {
        p = p->below;
        join_above(a, p);
    } else {
        free_insert(a, p);
    }
}

/* ---- memory ------------------------------------------------------------------------------------------------------------ */
size_t lr_arena_missing(const lr_arena *a, const lr_piece *p)
{
    const size_t granule = a->source.granule, end = (p->offset + p->bytes + granule - 1) / granule;
    size_t missing = 0;
    for (size_t i = p->offset / granule; i < end; i++)
        missing += a->mapped[i] ? 0 : granule;
    return missing;
}

int lr_arena_map(lr_arena *a, const lr_piece *p)
{
    const size_t granule = a->source.granule, end = (p->offset + p->bytes + granule - 1) / granule;
    for (size_t i = p->offset / granule; i < end; i++) {
        if (a->mapped[i])
            continue;
        const int status = a->source.map(a->source.context, i * granule, granule);
        if (status != LR_OK)
            return status;
        a->mapped[i] = 1;
        a->mapped_bytes += granule;
    }
    return LR_OK;
}

void lr_arena_trim(lr_arena *a, size_t bytes)
{
    const size_t granule = a->source.granule;
    for (const lr_piece *p = a->last; p != NULL && a->mapped_bytes > bytes; p = p->below) {
        if (p->taken)
            continue;
        const size_t begin = (p->offset + granule - 1) / granule;
        for (size_t i = (p->offset + p->bytes) / granule; i > begin && a->mapped_bytes > bytes; i--)
            if (a->mapped[i - 1]) {
                a->source.unmap(a->source.context, (i - 1) * granule, granule);
                a->mapped[i - 1] = 0;
                a->mapped_bytes -= granule;
            }
    }
}

/* ---- for tests --------------------------------------------------------------------------------------------------------- */
const char *lr_arena_fault(const lr_arena *a)
{
    size_t at = 0, free_pieces = 0, mapped = 0;
    const lr_piece *below = NULL;
    for (const lr_piece *p = a->first; p != NULL; below = p, p = p->above) {
        if (p->offset != at || p->bytes == 0 || p->offset % LR_PIECE_ALIGNMENT != 0)
            return "a piece does not begin where the one below it ends";
        if (p->below != below)
            return "a piece does not know the one below it";
        if (below != NULL && !below->taken && !p->taken)
            return "two free pieces stand side by side";
        free_pieces += !p->taken;
        at += p->bytes;
    }
    if (at != a->top || below != a->last || (a->source.granule > 0 && a->top % a->source.granule != 0))
        return "the pieces do not end where the range does";
    for (const lr_piece *p = a->free; p != NULL; p = p->next_free) {
        if (p->taken || (p->next_free != NULL && p->next_free->previous_free != p))
            return "the list of free pieces is not in order";
        if (free_pieces-- == 0)
            return "a piece is listed as free twice";
    }
    if (free_pieces != 0)
        return "a free piece is not listed";
    for (size_t i = 0; i < (a->source.granule > 0 ? a->top / a->source.granule : 0); i++)
        mapped += a->mapped[i] ? a->source.granule : 0;
    return mapped == a->mapped_bytes ? NULL : "mapped bytes are not those of the mapped granules";
}
