/* test_arena.c: pieces are cut, joined and placed as arena.h says, and have memory when, and only when, they need it. */
#include "core/arena.h"
#include "core/memory.h"
#include "lr_test.h"

enum { KIB = 1 << 10, GRANULE = 64 * KIB, GRANULES = 1 << 12 };

/* A source of memory that counts what is mapped and unmapped. */
typedef struct store {
    size_t room; /* granules that it can still map */
    bool mapped[GRANULES];
    int mistakes, unmapped;
} store;

static int store_map(void *context, size_t offset, size_t bytes)
{
    store *s = context;
    s->mistakes += bytes != GRANULE || offset % GRANULE != 0 || s->mapped[offset / GRANULE];
    if (s->room == 0)
        return LR_ENOMEM;
    s->room--;
    s->mapped[offset / GRANULE] = true;
    return LR_OK;
}

static void store_unmap(void *context, size_t offset, size_t bytes)
{
    store *s = context;
    s->mistakes += bytes != GRANULE || offset % GRANULE != 0 || !s->mapped[offset / GRANULE];
    s->mapped[offset / GRANULE] = false;
    s->room++;
    s->unmapped++;
}

static void start(lr_arena *a, store *s, size_t room)
{
    s->room = room;
    a->source = (lr_arena_source){s, GRANULE, store_map, store_unmap};
    a->capacity = (size_t)GRANULES * GRANULE;
}

static void sound(const lr_arena *a, const store *s)
{
    if (lr_arena_fault(a) != NULL)
        LR_TEST_FAIL("%s", lr_arena_fault(a));
    CHECK_INT(s->mistakes, 0);
}

static lr_piece *take(lr_arena *a, const store *s, size_t bytes)
{
    lr_piece *p = lr_arena_take(a, bytes);
    CHECK(p != NULL && p->taken && p->bytes >= bytes && p->bytes < bytes + LR_PIECE_ALIGNMENT);
    sound(a, s);
    return p;
}

static void give(lr_arena *a, const store *s, lr_piece *p)
{
    lr_arena_give(a, p);
    sound(a, s);
}

TEST(a_piece_goes_where_it_fits_best_and_lowest)
{
    static lr_arena a;
    static store s;
    start(&a, &s, GRANULES);
    lr_piece *p[7];
    const size_t kib[] = {1, 3, 1, 2, 1, 2, 1};
    for (int i = 0; i < 7; i++)
        p[i] = take(&a, &s, kib[i] * KIB);
    CHECK_INT(p[6]->offset, 10 * KIB);
    give(&a, &s, p[1]); /* holes of 3, 2 and 2 KiB, and the end of the granule */
    give(&a, &s, p[5]);
    give(&a, &s, p[3]);
    p[3] = take(&a, &s, 2 * KIB - 1);
    CHECK_INT(p[3]->offset, 5 * KIB);
    p[5] = take(&a, &s, KIB);
    CHECK_INT(p[5]->offset, 8 * KIB);
    lr_piece *rest = take(&a, &s, KIB);
    CHECK_INT(rest->offset, 9 * KIB);
    p[1] = take(&a, &s, 3 * KIB + 1);
    CHECK_INT(p[1]->offset, 11 * KIB);
    CHECK_INT(a.top, GRANULE);
    give(&a, &s, rest);
    for (int i = 0; i < 7; i++)
        give(&a, &s, p[i]);
    CHECK(a.first == a.last && !a.first->taken);
    CHECK_INT(a.first->bytes, GRANULE);
}

TEST(the_range_grows_by_what_its_free_end_lacks)
{
    static lr_arena a;
    static store s;
    start(&a, &s, GRANULES);
    lr_piece *low = take(&a, &s, GRANULE / 2), *high = take(&a, &s, GRANULE + GRANULE / 2);
    CHECK_INT(high->offset, GRANULE / 2);
    CHECK_INT(a.top, 2 * GRANULE);
    give(&a, &s, low);
    give(&a, &s, high);
    CHECK(lr_arena_take(&a, a.capacity + 1) == NULL);
    lr_piece *all = take(&a, &s, a.capacity);
    CHECK(lr_arena_take(&a, 1) == NULL);
    give(&a, &s, all);
}

TEST(memory_moves_out_of_holes)
{
    static lr_arena a;
    static store s;
    start(&a, &s, 5);
    lr_piece *hole = take(&a, &s, 2 * GRANULE + KIB), *above = take(&a, &s, GRANULE);
    CHECK_INT(lr_arena_missing(&a, hole), 3 * GRANULE);
    CHECK_INT(lr_arena_missing(&a, above), 2 * GRANULE); /* the two pieces share one of their granules */
    CHECK(lr_arena_map(&a, hole) == LR_OK && lr_arena_map(&a, above) == LR_OK);
    CHECK_INT(a.mapped_bytes, 4 * GRANULE);
    give(&a, &s, hole);
    lr_piece *large = take(&a, &s, 3 * GRANULE);
    CHECK_INT(lr_arena_missing(&a, large), 3 * GRANULE); /* it ends where the range's free end was */
    CHECK_INT(lr_arena_map(&a, large), LR_ENOMEM);
    lr_arena_trim(&a, 0);
    CHECK_INT(s.unmapped, 2); /* the hole shares its third granule */
    CHECK_INT(lr_arena_map(&a, large), LR_OK);
    CHECK_INT(lr_arena_missing(&a, above), 0);
    CHECK_INT(s.room, 0);
    give(&a, &s, large);
    give(&a, &s, above);
    lr_arena_trim(&a, 2 * GRANULE);
    CHECK_INT(a.mapped_bytes, 2 * GRANULE);
    lr_arena_trim(&a, 0);
    CHECK_INT(a.mapped_bytes, 0);
    sound(&a, &s);
}

/* Calls in any order, while memory runs out and host memory for descriptions is missing. */
TEST(any_order)
{
    enum { MOST = 200, TURNS = 20000 };
    static lr_arena a;
    static store s;
    static lr_piece *held[MOST];
    int count = 0, refused = 0;
    start(&a, &s, 300);
    for (uint64_t turn = 0; turn < TURNS; turn++) {
        uint32_t r[4];
        lr_random(5, 0, 0, turn, r);
        if (count > 0 && (r[0] % 100 < 48 || count == MOST)) {
            const int i = (int)(r[1] % (uint32_t)count);
            CHECK_INT(lr_arena_missing(&a, held[i]), 0);
            give(&a, &s, held[i]);
            held[i] = held[--count];
            continue;
        }
        if (r[3] % 64 == 0)
            lr_memory_fail(r[3] / 64 % 2, 1);
        lr_piece *p = lr_arena_take(&a, 1 + r[1] % (r[2] % 8 == 0 ? 40 * GRANULE : 2 * GRANULE));
        lr_memory_fail(-1, 0);
        if (p == NULL || lr_arena_map(&a, p) != LR_OK) {
            lr_arena_trim(&a, a.mapped_bytes / 2);
            if (p == NULL || lr_arena_map(&a, p) != LR_OK) {
                refused++;
                if (p != NULL)
                    lr_arena_give(&a, p);
                sound(&a, &s);
                continue;
            }
        }
        held[count++] = p;
        sound(&a, &s);
    }
    CHECK(refused > 20 && refused < TURNS / 4);
    CHECK(s.unmapped > 100);
    while (count > 0)
        give(&a, &s, held[--count]);
    CHECK(a.first == a.last);
}

/* Like training steps: each layer keeps some buffers and uses others for a while, and backward gives all back in the opposite
 * order. The mapped memory is what is held at the peak, plus holes, whatever sizes the batch before had. */
TEST(a_step_takes_what_it_holds)
{
    enum { LAYERS = 28, KEPT = 6 };
    static const size_t kept[KEPT] = {72, 92, 73, 1, 72, 758},
                        used[3] = {72, 379, 100}; /* about the bytes of a token */
    static lr_arena a;
    static store s;
    start(&a, &s, GRANULES);
    static lr_piece *held[LAYERS][KEPT];
    size_t most = 0;
    for (size_t step = 0; step < 20; step++) {
        const size_t tokens = 1000 + 97 * (step * 7 % 20);
        size_t live = 0;
        for (int l = 0; l < LAYERS; l++) {
            lr_piece *normed = take(&a, &s, used[0] * tokens);
            for (int i = 0; i < KEPT; i++) {
                held[l][i] = take(&a, &s, kept[i] * tokens);
                live += held[l][i]->bytes;
            }
            give(&a, &s, normed);
            lr_piece *inner = take(&a, &s, used[1] * tokens);
            most = most > live + inner->bytes ? most : live + inner->bytes;
            for (const lr_piece *p = a.first; p != NULL; p = p->above)
                CHECK(!p->taken || lr_arena_map(&a, p) == LR_OK);
            give(&a, &s, inner);
        }
        for (int l = LAYERS - 1; l >= 0; l--) {
            lr_piece *gradient = take(&a, &s, used[2] * tokens);
            for (int i = KEPT - 1; i >= 0; i--)
                give(&a, &s, held[l][i]);
            give(&a, &s, gradient);
        }
    }
    CHECK(a.first == a.last);
    CHECK(a.mapped_bytes < most + most / 50);
}

TEST_MAIN()
