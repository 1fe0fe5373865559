/* test_device.c: the GPU as a device: why there is none, memory, copies, order, numbers that only the device can look at. Runs on a
 * GPU, on its model (LORARUN_CUDA=host), and, as far as it goes, without either. */
#include "core/device.h"
#include "core/op.h"
#include "cuda/cuda.h"
#include "lr_test.h"
#include <omp.h>

#define NEEDS_DEVICE                                                                                                   \
    if (!lr_device_available(LR_CUDA))                                                                                 \
    return

static lr_tensor *tensor(int dtype, int64_t rows, int64_t columns, int device)
{
    lr_tensor *t = NULL;
    CHECK_INT(lr_tensor_new(&t, dtype, 2, (int64_t[]){rows, columns}, device, "x"), LR_OK);
    return t;
}

static lr_tensor *vector(int dtype, int64_t n, int device)
{
    lr_tensor *t = NULL;
    CHECK_INT(lr_tensor_new(&t, dtype, 1, &n, device, "x"), LR_OK);
    return t;
}

TEST(a_device_or_the_reason_why_there_is_none)
{
    char text[512] = "";
    int64_t free_bytes = 0, total = 0;
    if (lr_device_available(LR_CUDA)) {
        CHECK(lr_device_missing(LR_CUDA) == NULL);
        CHECK_INT(lr_device_describe(LR_CUDA, text, sizeof text), LR_OK);
        CHECK(strlen(text) > 10);
        CHECK_INT(lr_device_memory(LR_CUDA, &free_bytes, &total), LR_OK);
        CHECK(free_bytes > 0 && free_bytes <= total);
        CHECK_INT(lr_device_wait(LR_CUDA), LR_OK);
        return;
    }
    lr_tensor *t = NULL;
    const int64_t one = 1;
    CHECK(strlen(lr_device_missing(LR_CUDA)) > 10);
    CHECK_INT(lr_tensor_new(&t, LR_F32, 1, &one, LR_CUDA, "x"), LR_EDEVICE);
    CHECK_HAS(lr_last_error(), lr_device_missing(LR_CUDA));
    CHECK_INT(lr_device_describe(LR_CUDA, text, sizeof text), LR_EDEVICE);
    CHECK_INT(lr_device_memory(LR_CUDA, &free_bytes, &total), LR_EDEVICE);
    CHECK_HAS(lr_last_error(), lr_device_missing(LR_CUDA));
    CHECK_INT(lr_device_wait(LR_CUDA), LR_EDEVICE);
#ifdef LR_HAVE_CUDA /* a program built for GPUs says why it works without */
    CHECK_INT(lr_device_describe(LR_CPU, text, sizeof text), LR_OK);
    CHECK_HAS(text, "; no GPU: ");
    CHECK_HAS(text, lr_device_missing(LR_CUDA));
#endif
}

TEST(the_processor_and_meta_are_devices_too)
{
    char text[512] = "";
    int64_t free_bytes = 0, total = 0;
    CHECK(lr_device_missing(LR_CPU) == NULL && lr_device_missing(LR_META) == NULL);
    CHECK(lr_device_missing(7) != NULL);
    CHECK_INT(lr_device_describe(LR_CPU, text, sizeof text), LR_OK);
    CHECK_HAS(text, "GiB");
    CHECK_INT(lr_device_memory(LR_CPU, &free_bytes, &total), LR_OK);
    CHECK(free_bytes > 0 && free_bytes <= total);
    CHECK_INT(lr_device_memory(LR_META, &free_bytes, &total), LR_EDEVICE);
    CHECK_INT(lr_device_wait(LR_CPU), LR_OK);
    CHECK_INT(lr_device_wait(LR_META), LR_OK);
}

#ifdef LR_HAVE_CUBLASLT
/* The library needs no GPU to be loaded, and has every function that is asked of it. */
TEST(cublaslt_is_found_or_missed_by_name)
{
    if (lr_cublaslt_load() == LR_OK)
        CHECK_INT(lr_cublaslt_load(), LR_OK);
    else
        CHECK_HAS(lr_last_error(), "was not found: install the cuBLAS of CUDA");
}
#endif

/* ---- copies ------------------------------------------------------------------------------------------------------------ */
/* More than all staging buffers hold, and no multiple of one. */
TEST(large_copies_arrive_whole)
{
    NEEDS_DEVICE;
    enum { N = 5 * 1000 * 1000 + 3 };
    lr_tensor *t = vector(LR_I32, N, LR_CUDA);
    int32_t *values = lr_alloc(N * sizeof *values);
    CHECK(values != NULL);
    for (int i = 0; i < N; i++)
        values[i] = i * 7 - 3;
    CHECK_INT(lr_tensor_write(t, 0, N, values), LR_OK);
    memset(values, 0xff, N * sizeof *values); /* the caller's again as soon as the call returns */
    CHECK_INT(lr_tensor_read(t, 0, N, values), LR_OK);
    int wrong = 0;
    for (int i = 0; i < N; i++)
        wrong += values[i] != i * 7 - 3;
    CHECK_INT(wrong, 0);
    lr_free(values);
    lr_tensor_destroy(t);
}

/* A view of columns, ranges that begin and end within rows, rows wider than a staging buffer. */
TEST(views_are_copied_row_by_row)
{
    NEEDS_DEVICE;
    enum { ROWS = 5, COLUMNS = 9, WIDE = 13 };
    lr_tensor *whole = tensor(LR_I32, ROWS, WIDE, LR_CUDA), *view = NULL;
    int32_t values[ROWS * WIDE], out[ROWS * WIDE];
    CHECK_INT(lr_tensor_fill(whole, -1.0), LR_OK);
    CHECK_INT(lr_tensor_view(&view, whole, 2, 2, (int64_t[]){ROWS, COLUMNS}, WIDE), LR_OK);
    for (int from = 0; from < ROWS * COLUMNS; from += 4)
        for (int count = 0; count <= ROWS * COLUMNS - from; count += 7) {
            for (int i = 0; i < count; i++)
                values[i] = 100 * from + i;
            CHECK_INT(lr_tensor_write(view, from, count, values), LR_OK);
            CHECK_INT(lr_tensor_read(view, from, count, out), LR_OK);
            CHECK_INT(memcmp(values, out, (size_t)count * sizeof *out), 0);
        }
    CHECK_INT(lr_tensor_read(whole, 0, ROWS * WIDE, out), LR_OK);
    for (int i = 0; i < ROWS * WIDE; i++)
        CHECK(i % WIDE >= 2 && i % WIDE < 2 + COLUMNS ? true : out[i] == -1);
    lr_tensor_destroy(view);
    lr_tensor_destroy(whole);

    enum { BROAD = 1100 * 1000 };
    whole = tensor(LR_I32, 3, BROAD + 1, LR_CUDA);
    CHECK_INT(lr_tensor_view(&view, whole, 1, 2, (int64_t[]){3, BROAD}, BROAD + 1), LR_OK);
    int32_t *row = lr_alloc(3 * BROAD * sizeof *row);
    CHECK(row != NULL);
    for (int i = 0; i < 3 * BROAD; i++)
        row[i] = i;
    CHECK_INT(lr_tensor_write(view, 0, 3 * BROAD, row), LR_OK);
    for (int i = 0; i < 3 * BROAD; i += 99991) {
        CHECK_INT(lr_tensor_read(view, i, 1, out), LR_OK);
        CHECK_INT(out[0], i);
    }
    lr_free(row);
    lr_tensor_destroy(view);
    lr_tensor_destroy(whole);
}

/* As the loader of safetensors does. */
TEST(threads_write_side_by_side)
{
    NEEDS_DEVICE;
    enum { PARTS = 64, PART = 40000 };
    lr_tensor *t = vector(LR_I32, PARTS * PART, LR_CUDA);
    int failed = 0;
#pragma omp parallel for num_threads(8) schedule(dynamic) reduction(+ : failed)
    for (int part = 0; part < PARTS; part++) {
        int32_t values[PART];
        for (int i = 0; i < PART; i++)
            values[i] = part * PART + i;
        failed += lr_tensor_write(t, part * PART, PART, values) != LR_OK;
    }
    CHECK_INT(failed, 0);
    int32_t *values = lr_alloc(PARTS * PART * sizeof *values);
    CHECK(values != NULL);
    CHECK_INT(lr_tensor_read(t, 0, PARTS * PART, values), LR_OK);
    int wrong = 0;
    for (int i = 0; i < PARTS * PART; i++)
        wrong += values[i] != i;
    CHECK_INT(wrong, 0);
    lr_free(values);
    lr_tensor_destroy(t);
}

TEST(fill_in_every_dtype_beside_what_is_not_filled)
{
    NEEDS_DEVICE;
    static const double values[] = {0.0, 1.0, -3.0};
    for (int dtype = 0; dtype < LR_DTYPE_COUNT; dtype++)
        for (int v = 0; v < 3; v++) {
            lr_tensor *whole = tensor(dtype, 7, 11, LR_CUDA), *view = NULL, *on_cpu = tensor(dtype, 7, 11, LR_CPU);
            char got[7 * 11 * 8], expected[7 * 11 * 8];
            const size_t bytes = 7 * 11 * lr_dtype_size(dtype);
            for (int i = 0; i < 2; i++) {
                lr_tensor *t = i == 0 ? whole : on_cpu;
                CHECK_INT(lr_tensor_fill(t, 5.0), LR_OK);
                CHECK_INT(lr_tensor_view(&view, t, 3, 2, (int64_t[]){7, 6}, 11), LR_OK);
                CHECK_INT(lr_tensor_fill(view, values[v]), LR_OK);
                lr_tensor_destroy(view);
                CHECK_INT(lr_tensor_read(t, 0, 77, i == 0 ? got : expected), LR_OK);
            }
            CHECK_INT(memcmp(got, expected, bytes), 0);
            lr_tensor_destroy(whole);
            lr_tensor_destroy(on_cpu);
        }
}

/* ---- the driver -------------------------------------------------------------------------------------------------------- */
TEST(streams_and_events_order_work)
{
    NEEDS_DEVICE;
    enum { N = 1000 };
    const lr_driver *driver = lr_driver_of(LR_CUDA);
    lr_tensor *a = vector(LR_I32, N, LR_CUDA), *b = vector(LR_I32, N, LR_CUDA);
    lr_stream *side = NULL;
    lr_device_event *written = NULL, *copied = NULL;
    CHECK_INT(driver->stream_new(&side), LR_OK);
    CHECK_INT(driver->event_new(&written), LR_OK);
    CHECK_INT(driver->event_new(&copied), LR_OK);
    CHECK_INT(driver->event_wait(written), LR_OK); /* never recorded: past */
    void *memory = NULL;
    CHECK_INT(driver->alloc_pinned(&memory, N * sizeof(int32_t)), LR_OK);
    int32_t *pinned = memory;
    for (int i = 0; i < N; i++)
        pinned[i] = i * i;
    CHECK_INT(lr_tensor_write(a, 0, N, pinned), LR_OK);
    CHECK_INT(driver->event_record(written, driver->compute_stream()), LR_OK);
    CHECK_INT(driver->stream_wait_event(side, written), LR_OK);
    const size_t bytes = N * sizeof *pinned;
    CHECK_INT(driver->copy(side, &(lr_copy){b->data, a->data, bytes, bytes, bytes, 1, LR_WITHIN_DEVICE}), LR_OK);
    memset(pinned, 0, bytes);
    CHECK_INT(driver->copy(side, &(lr_copy){pinned, b->data, bytes, bytes, bytes, 1, LR_TO_HOST}), LR_OK);
    CHECK_INT(driver->event_record(copied, side), LR_OK);
    CHECK_INT(driver->event_wait(copied), LR_OK);
    for (int i = 0; i < N; i++)
        CHECK_INT(pinned[i], i * i);
    double seconds = -1.0;
    CHECK_INT(driver->event_seconds(written, copied, &seconds), LR_OK);
    CHECK(seconds >= 0.0);
    driver->release_pinned(pinned);
    driver->event_free(written);
    driver->event_free(copied);
    driver->stream_free(side);
    lr_tensor_destroy(a);
    lr_tensor_destroy(b);
}

/* ---- ops --------------------------------------------------------------------------------------------------------------- */
/* Both directions of a frozen weight are its own bytes. */
TEST(packing_costs_no_memory)
{
    NEEDS_DEVICE;
    lr_memory before, after;
    lr_tensor *w = tensor(LR_BF16, 48, 64, LR_CUDA), *forward = NULL, *backward = NULL, *wider = NULL;
    lr_memory_stats(LR_CUDA, &before);
    CHECK_INT(lr_tensor_pack(&forward, w, 1, LR_BF16), LR_OK);
    CHECK_INT(lr_tensor_pack(&backward, w, 2, LR_BF16), LR_OK);
    lr_memory_stats(LR_CUDA, &after);
    CHECK_INT(after.live_bytes, before.live_bytes);
    CHECK_INT(lr_tensor_pack(&wider, w, 2, LR_F32), LR_OK);
    lr_tensor_destroy(w); /* the packed ones hold the bytes */
    lr_memory_stats(LR_CUDA, &after);
    CHECK_INT(after.live_storages, before.live_storages + 1);
    lr_tensor_destroy(forward);
    lr_tensor_destroy(backward);
    lr_tensor_destroy(wider);
    lr_memory_stats(LR_CUDA, &after);
    CHECK_INT(after.live_bytes, 0);
}

/* The masks of the CPU, bit for bit: a run may move from one to the other. */
TEST(dropout_has_the_masks_of_the_cpu)
{
    NEEDS_DEVICE;
    enum { ROWS = 37, COLUMNS = 131 };
    static const double rates[] = {0.05, 0.1, 0.5, 0.9};
    float ones[ROWS * COLUMNS], y[2][ROWS * COLUMNS];
    int64_t keys[ROWS];
    for (int i = 0; i < ROWS * COLUMNS; i++)
        ones[i] = 1.0f;
    for (int i = 0; i < ROWS; i++)
        keys[i] = (int64_t)i * 0x100000003 - 5;
    for (int r = 0; r < 4; r++) {
        for (int device = LR_CPU; device <= LR_CUDA; device++) {
            lr_tensor *x = tensor(LR_F32, ROWS, COLUMNS, device), *key = vector(LR_I64, ROWS, device);
            CHECK_INT(lr_tensor_write(x, 0, ROWS * COLUMNS, ones), LR_OK);
            CHECK_INT(lr_tensor_write(key, 0, ROWS, keys), LR_OK);
            CHECK_INT(lr_op_dropout(x, x, key, rates[r], -77, 3, 12345 + r, 0.0), LR_OK);
            CHECK_INT(lr_tensor_read(x, 0, ROWS * COLUMNS, y[device]), LR_OK);
            lr_tensor_destroy(x);
            lr_tensor_destroy(key);
        }
        CHECK_INT(memcmp(y[0], y[1], sizeof y[0]), 0);
    }
}

/* A bad number is reported once, by the call that waits; what follows is not troubled by it. */
TEST(a_bad_number_is_reported_once)
{
    NEEDS_DEVICE;
    lr_tensor *table = tensor(LR_F32, 3, 8, LR_CUDA), *y = tensor(LR_F32, 2, 8, LR_CUDA),
              *ids = vector(LR_I32, 2, LR_CUDA);
    CHECK_INT(lr_tensor_fill(table, 2.0), LR_OK);
    CHECK_INT(lr_tensor_fill(y, 1.0), LR_OK);
    CHECK_INT(lr_tensor_write(ids, 0, 2, (int32_t[]){3, 1}), LR_OK);
    CHECK_INT(lr_op_embedding(y, table, ids, 0.0), LR_OK);
    float values[16];
    CHECK_INT(lr_tensor_read(y, 0, 16, values), LR_EINVAL);
    CHECK_STR(lr_last_error(), "embedding: ids[0] is 3, expected 0 to 2");
    CHECK_INT(lr_tensor_read(y, 0, 16, values), LR_OK);
    CHECK_NEAR(values[0], 1.0, 0.0); /* left alone */
    CHECK_NEAR(values[8], 2.0, 0.0);
    lr_tensor_destroy(table);
    lr_tensor_destroy(y);
    lr_tensor_destroy(ids);
}

TEST(tensors_of_two_devices_do_not_meet)
{
    NEEDS_DEVICE;
    lr_tensor *a = tensor(LR_F32, 2, 2, LR_CUDA), *b = tensor(LR_F32, 2, 2, LR_CPU);
    CHECK_INT(lr_op_mul(a, a, b), LR_EDEVICE);
    CHECK_HAS(lr_last_error(), "is on cpu but y is on cuda");
    lr_tensor_destroy(a);
    lr_tensor_destroy(b);
}

/* Each allocation in turn fails: an error, no leak, and all is well afterwards. */
TEST(out_of_memory_at_every_place)
{
    NEEDS_DEVICE;
    int status = LR_ENOMEM;
    for (int after = 0; status != LR_OK; after++) {
        lr_tensor *a = NULL, *b = NULL, *packed = NULL;
        const int64_t shape[] = {300, 200};
        lr_memory_fail(after, 1);
        status = lr_tensor_new(&a, LR_F32, 2, shape, LR_CUDA, "a");
        if (status == LR_OK)
            status = lr_tensor_uniform(a, 1, 1, -1.0, 1.0);
        if (status == LR_OK)
            status = lr_tensor_new(&b, LR_F32, 2, (int64_t[]){300, 300}, LR_CUDA, "b");
        if (status == LR_OK)
            status = lr_op_matmul_nt(b, a, a, 1.0, 0.0);
        if (status == LR_OK)
            status = lr_tensor_pack(&packed, a, 1, LR_BF16);
        lr_memory_fail(-1, 0);
        CHECK(status == LR_OK || status == LR_ENOMEM);
        CHECK(after < 200);
        lr_tensor_destroy(packed);
        lr_tensor_destroy(b);
        lr_tensor_destroy(a);
    }
    CHECK_INT(lr_device_wait(LR_CUDA), LR_OK);
}

TEST_MAIN()
