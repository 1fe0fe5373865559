/* shadow.cpp: shared memory on the host, and the record of which thread read and wrote what.
 *
 * One arena serves every block: dynamic shared memory first, then the static arrays in the order they are met. Each pair of bytes
 * has a cell with the last write and the last read. Cells are never cleared: epochs only grow, and what is older than the block's
 * first epoch belongs to a block that has ended.
 *
 * Two accesses are ordered where their epochs differ (a barrier of the block lies between), or where both threads are of one warp
 * and the later one has passed a __syncwarp since the earlier access. Several readers of an epoch are kept as one where they are of
 * one warp, else as "many": any write in the same epoch is then a fault. */
#include "cuda/host/scheduler.h"

namespace simt
{

enum { NOBODY = -1, MANY = -2, MAX_ARRAYS = 32, ALIGNMENT = 16, MAX_COPIES = 256, LANES = 32 };

struct cell {
    uint64_t write_epoch, write_sync;
    uint64_t read_epoch, read_sync;
    int16_t writer, reader; /* threads; reader MANY: several, of one warp where reader_warp says so */
    int16_t reader_warp;
    bool under_way; /* the target of a copy that has not been waited for */
};

static const size_t ARENA = MAX_SHARED + MAX_STATIC_SHARED;
alignas(128) static unsigned char arena[ARENA];
static cell cells[ARENA / 2];
static shared_array arrays[MAX_ARRAYS];
static int array_count;
static size_t used;
static uint64_t first_epoch;

struct copy {
    const shared_array *array;
    unsigned char *to;
    const void *from;
    int group; /* commits of this thread before it was begun */
};
static struct {
    copy list[MAX_COPIES];
    int count, commits;
} copies[MAX_THREADS];

/* ---- arrays ------------------------------------------------------------------------------------------------------------ */
static shared_array *add_array(const void *site, const char *name, size_t bytes)
{
    shared_array *a = &arrays[array_count++];
    *a = {site, name, arena + used, bytes};
    memset(a->base, 0xff, bytes); /* NaN in every floating-point format */
    used += (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    return a;
}

void shadow_begin_block(uint64_t epoch, size_t dynamic_bytes)
{
    first_epoch = epoch;
    array_count = 0;
    used = 0;
    add_array(nullptr, "the launch's shared memory", dynamic_bytes);
    for (auto &c : copies)
        c.count = c.commits = 0;
}

const shared_array *shared_dynamic()
{
    return &arrays[0];
}

const shared_array *shared_find(const void *site, const char *name, size_t bytes)
{
    size_t statics = 0;
    for (int i = 1; i < array_count; i++) {
        if (arrays[i].site == site)
            return &arrays[i];
        statics += arrays[i].bytes;
    }
    if (statics + bytes > MAX_STATIC_SHARED || array_count == MAX_ARRAYS)
        fault("%s of %zu bytes: static shared memory ends at %d bytes or %d arrays", name, bytes, MAX_STATIC_SHARED,
              MAX_ARRAYS);
    if (used + bytes > MAX_SHARED)
        fault("%s of %zu bytes: shared memory, static and dynamic, ends at %d bytes", name, bytes, MAX_SHARED);
    return add_array(site, name, bytes);
}

/* ---- accesses ---------------------------------------------------------------------------------------------------------- */
static cell *cells_of(const void *p)
{
    return &cells[static_cast<size_t>(static_cast<const unsigned char *>(p) - arena) / 2];
}

static long long index_of(const shared_array *a, const void *p, size_t size)
{
    return static_cast<long long>(reinterpret_cast<intptr_t>(p) - reinterpret_cast<intptr_t>(a->base)) /
           static_cast<long long>(size);
}

static void check_place(const shared_array *a, const void *p, size_t bytes, size_t size)
{
    const intptr_t offset = reinterpret_cast<intptr_t>(p) - reinterpret_cast<intptr_t>(a->base);
    if (offset < 0 || static_cast<size_t>(offset) + bytes > a->bytes)
        fault("%s[%lld] is outside: it has %lld elements of %zu bytes", a->name, index_of(a, p, size),
              static_cast<long long>(a->bytes / size), size);
    if (reinterpret_cast<uintptr_t>(p) % (bytes < ALIGNMENT ? bytes : static_cast<size_t>(ALIGNMENT)) != 0)
        fault("%s: an access of %zu bytes at offset %lld, which they do not divide", a->name, bytes,
              static_cast<long long>(offset));
}

/* The functions below only touch the record, within bounds that check_place has tested, once for every two bytes that a kernel
 * touches: not instrumented, they are twice as fast under the sanitizers. */
#define UNWATCHED __attribute__((no_sanitize("address", "undefined")))

/* Does anything order the access `sync` of `thread` (or of lanes of `warp`) in this epoch before what the running thread does now?
 * */
UNWATCHED static inline bool ordered(const moment &at, int warp, uint64_t sync)
{
    return warp == at.thread / LANES && at.sync > sync;
}

UNWATCHED static inline void check_write_seen(const cell *c, const moment &at, const shared_array *a, const void *p,
                                              size_t size, const char *what)
{
    if (c->under_way)
        fault("%s %s[%lld], the target of a cp.async of thread %d that was not waited for", what, a->name,
              index_of(a, p, size), c->writer);
    if (c->write_epoch == at.epoch && c->writer != at.thread && !ordered(at, c->writer / LANES, c->write_sync))
        fault("%s %s[%lld], which thread %d wrote with no barrier since", what, a->name, index_of(a, p, size),
              c->writer);
}

UNWATCHED static inline void record_read(cell *c, const moment &at)
{
    const int warp = at.thread / LANES;
    const bool others = c->read_epoch == at.epoch && c->reader != at.thread;
    if (!others || ordered(at, c->reader_warp, c->read_sync)) {
        c->reader = static_cast<int16_t>(at.thread);
        c->reader_warp = static_cast<int16_t>(warp);
        c->read_sync = at.sync;
    } else {
        c->reader = MANY;
        if (c->reader_warp != warp)
            c->reader_warp = NOBODY;
        c->read_sync = c->read_sync > at.sync ? c->read_sync : at.sync;
    }
    c->read_epoch = at.epoch;
}

UNWATCHED void note_read(const shared_array *a, const void *p, size_t bytes, size_t size)
{
    check_place(a, p, bytes, size);
    const moment at = now();
    cell *c = cells_of(p);
    for (size_t i = 0; i < bytes / 2; i++, c++) {
        if (c->write_epoch < first_epoch)
            fault("reads %s[%lld], which nobody wrote", a->name, index_of(a, p, size));
        check_write_seen(c, at, a, p, size, "reads");
        record_read(c, at);
    }
}

UNWATCHED static void write_cells(const shared_array *a, const void *p, size_t bytes, size_t size, bool under_way)
{
    check_place(a, p, bytes, size);
    const moment at = now();
    cell *c = cells_of(p);
    for (size_t i = 0; i < bytes / 2; i++, c++) {
        if (c->write_epoch < first_epoch)
            c->under_way = false;
        check_write_seen(c, at, a, p, size, "writes");
        if (c->read_epoch == at.epoch && c->reader != at.thread && !ordered(at, c->reader_warp, c->read_sync)) {
            if (c->reader == MANY)
                fault("writes %s[%lld], which several threads read with no barrier since", a->name,
                      index_of(a, p, size));
            fault("writes %s[%lld], which thread %d read with no barrier since", a->name, index_of(a, p, size),
                  c->reader);
        }
        c->writer = static_cast<int16_t>(at.thread);
        c->write_epoch = at.epoch;
        c->write_sync = at.sync;
        c->under_way = under_way;
    }
}

void note_write(const shared_array *a, const void *p, size_t bytes, size_t size)
{
    write_cells(a, p, bytes, size, false);
}

/* ---- asynchronous copies ----------------------------------------------------------------------------------------------- */
void copy_begin(const shared_array *array, void *to, const void *from)
{
    auto &mine = copies[current_thread()];
    if (reinterpret_cast<uintptr_t>(from) % 16 != 0)
        fault("cp.async: the source of %s[%lld] is not 16-byte aligned", array->name, index_of(array, to, 1));
    if (mine.count == MAX_COPIES)
        fault("cp.async: more than %d copies of one thread under way", MAX_COPIES);
    write_cells(array, to, 16, 1, true);
    mine.list[mine.count++] = {array, static_cast<unsigned char *>(to), from, mine.commits};
}

void copy_commit()
{
    copies[current_thread()].commits++;
}

void copy_wait(int groups_left)
{
    auto &mine = copies[current_thread()];
    const moment at = now();
    int kept = 0;
    for (int i = 0; i < mine.count; i++) {
        const copy c = mine.list[i];
        if (c.group >= mine.commits - groups_left) { /* of a younger group, or not committed */
            mine.list[kept++] = c;
            continue;
        }
        if (c.from != nullptr)
            memcpy(c.to, c.from, 16);
        else
            memset(c.to, 0, 16);
        for (int k = 0; k < 8; k++) { /* arrives now: others need a barrier from here on */
            cell *to = cells_of(c.to) + k;
            to->under_way = false;
            to->write_epoch = at.epoch;
            to->write_sync = at.sync;
        }
    }
    mine.count = kept;
}

} // namespace simt
