/* test_memory.c: the allocator's limit, its table of holders, and the sizes of the meta device. */
#include "lr_test.h"

static lr_tensor *new_tensor(int64_t elements, int device, const char *name)
{
    lr_tensor *t = NULL;
    CHECK_INT(lr_tensor_new(&t, LR_F32, 1, &elements, device, name), LR_OK);
    return t;
}

static lr_memory stats_of(int device)
{
    lr_memory m;
    CHECK_INT(lr_memory_stats(device, &m), LR_OK);
    return m;
}

/* At the limit free memory is given back first; live memory beyond it is an error. */
TEST(limit)
{
    enum { MIB = 1 << 18 }; /* elements */
    for (int device = LR_CPU; device <= LR_META; device += LR_META) {
        CHECK_INT(lr_memory_release_cached(device), LR_OK);
        const int64_t before = stats_of(device).reserved_bytes;
        lr_tensor *a = new_tensor(15 * MIB, device, "a"), *b = new_tensor(30 * MIB, device, "b");
        lr_tensor *c = new_tensor(2 * MIB, device, "c");
        CHECK_INT(stats_of(device).reserved_bytes - before, 48 << 20);
        lr_tensor_free(b); /* a whole granule is free, and its neighbours in part */
        CHECK_INT(stats_of(device).reserved_bytes - before, 48 << 20);
        CHECK_INT(lr_memory_limit(device, before + (64 << 20)), LR_OK);
        CHECK_INT(stats_of(device).reserved_bytes - before, 48 << 20);

        lr_tensor *d = new_tensor(31 * MIB, device, "d"); /* fits in no hole: b's granule is given back */
        CHECK_INT(stats_of(device).reserved_bytes - before, 64 << 20);
        lr_tensor *e = NULL;
        const int64_t elements = 20 * MIB;
        CHECK_INT(lr_tensor_new(&e, LR_F32, 1, &elements, device, "e"), LR_ENOMEM);
        CHECK(e == NULL);
        CHECK_HAS(lr_last_error(), "for e, ");
        CHECK_HAS(lr_last_error(), "and the limit is ");
        lr_tensor_free(d);
        e = new_tensor(elements, device, "e");
        CHECK(stats_of(device).reserved_bytes - before <= 64 << 20);
        if (device == LR_CPU) /* its memory can be written */
            CHECK_INT(lr_tensor_fill(e, 1.0), LR_OK);
        CHECK_INT(lr_memory_limit(device, 0), LR_OK);
        lr_tensor_destroy(a);
        lr_tensor_destroy(b);
        lr_tensor_destroy(c);
        lr_tensor_destroy(d);
        lr_tensor_destroy(e);
        CHECK_INT(lr_memory_release_cached(device), LR_OK);
        CHECK_INT(stats_of(device).reserved_bytes, before);
    }
    CHECK_INT(lr_memory_limit(LR_CPU, -1), LR_EINVAL);
    CHECK_INT(lr_memory_limit(LR_DEVICE_COUNT, 1), LR_EINVAL);
}

/* A limit below the live bytes frees nothing, and allows nothing more. */
TEST(limit_below_what_is_live)
{
    lr_tensor *a = new_tensor(1 << 18, LR_META, "a"), *b = NULL;
    const int64_t elements = 1 << 10;
    CHECK_INT(lr_memory_limit(LR_META, 1 << 10), LR_OK);
    CHECK_INT(lr_tensor_new(&b, LR_F32, 1, &elements, LR_META, "b"), LR_ENOMEM);
    CHECK_INT(lr_memory_limit(LR_META, 0), LR_OK);
    lr_tensor_destroy(a);
}

TEST(holders_add_up_layers)
{
    lr_tensor *list[] = {new_tensor(64, LR_META, "layers.0.mlp.down"),
                         new_tensor(64, LR_META, "layers.1.mlp.down"),
                         new_tensor(128, LR_META, "layers.12.mlp.down"),
                         new_tensor(320, LR_META, "3.x2.4"),
                         new_tensor(384, LR_META, "x2"),
                         new_tensor(448, LR_META, "2x.y")};
    char text[256];
    CHECK_INT(lr_memory_holders(LR_META, 10, text, sizeof text), LR_OK);
    CHECK_STR(text, /* each takes at least one byte more than it has, rounded up to 256 */
              "2x.y\t1\t2048\nlayers.*.mlp.down\t3\t1792\nx2\t1\t1792\n*.x2.*\t1\t1536\n");
    for (size_t i = 0; i < LR_COUNT_OF(list); i++)
        lr_tensor_destroy(list[i]);
}

/* A weight packed for both directions: on the CPU two copies in oneDNN's layout, on a GPU the plain one. */
TEST(meta_has_the_sizes_of_a_device)
{
    const int64_t shape[] = {50, 70};
    for (int direction = 1; direction <= 2; direction++)
        for (int dtype = LR_F32; dtype <= LR_BF16; dtype++) {
            lr_tensor *w = NULL, *meta = NULL, *packed = NULL, *planned = NULL;
            CHECK_INT(lr_tensor_new(&w, dtype, 2, shape, LR_CPU, "w"), LR_OK);
            CHECK_INT(lr_tensor_new(&meta, dtype, 2, shape, LR_META, "w"), LR_OK);
            CHECK_INT(lr_tensor_fill(w, 0.0), LR_OK);
            const int64_t cpu = stats_of(LR_CPU).live_bytes, before = stats_of(LR_META).live_bytes;
            CHECK_INT(lr_tensor_pack(&packed, w, direction, dtype), LR_OK);
            CHECK_INT(lr_tensor_pack(&planned, meta, direction, dtype), LR_OK);
            CHECK_INT(stats_of(LR_META).live_bytes - before, stats_of(LR_CPU).live_bytes - cpu);
            lr_tensor_destroy(planned);

            CHECK_INT(lr_meta_like(LR_CUDA), LR_OK);
            CHECK_INT(lr_tensor_pack(&planned, meta, direction, dtype), LR_OK);
            CHECK_INT(lr_meta_like(LR_CPU), LR_OK);
            CHECK_INT(stats_of(LR_META).live_bytes, before);
            lr_tensor_info info;
            CHECK_INT(lr_tensor_describe(planned, &info), LR_OK);
            CHECK_INT(info.packed, direction);
            lr_tensor_destroy(meta); /* the packed weight keeps the bytes */
            CHECK_INT(stats_of(LR_META).live_bytes, before);
            lr_tensor_destroy(planned);
            lr_tensor_destroy(packed);
            lr_tensor_destroy(w);
        }
    CHECK_INT(lr_meta_like(LR_META), LR_EINVAL);
}

TEST_MAIN()
