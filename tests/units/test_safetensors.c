/* test_safetensors.c: files that must be read, all ways in which a file can be malformed, the rules of the writer, a full disk. */
#include "folder.h"
#include "io/file.h"
#include <signal.h>
#include <sys/resource.h>

/* ---- making files and tensors --------------------------------------------------------------------------------------- */
/* A file with this header, whose length is given and may be wrong, and `data` bytes that count up. */
static const char *make_file(uint64_t length, const char *header, size_t header_size, size_t data)
{
    const char *path = in_folder("model.safetensors");
    char *bytes = lr_alloc(8 + header_size + data);
    CHECK(bytes != NULL);
    memcpy(bytes, &length, 8);
    memcpy(bytes + 8, header, header_size);
    for (size_t i = 0; i < data; i++)
        bytes[8 + header_size + i] = (char)(i + 1);
    const int status = lr_file_write(path, bytes, (int64_t)(8 + header_size + data));
    lr_free(bytes);
    CHECK_INT(status, LR_OK);
    return path;
}

static const char *make(const char *header, size_t data)
{
    return make_file(strlen(header), header, strlen(header), data);
}

/* LORARUN_TEST_DEVICE=cuda: tensors are on CUDA. */
static int device(void)
{
    const char *name = getenv("LORARUN_TEST_DEVICE");
    return name != NULL && strcmp(name, "cuda") == 0 ? LR_CUDA : LR_CPU;
}

static lr_tensor *new_tensor(int dtype, int ndim, int64_t rows, int64_t columns, int where)
{
    lr_tensor *t = NULL;
    CHECK_INT(lr_tensor_new(&t, dtype, ndim, (int64_t[]){rows, columns}, where, "target"), LR_OK);
    return t;
}

/* f32 values 0.5, 1.0, 1.5 ...: exact in every floating-point dtype up to 256 elements. */
static lr_tensor *counting(int64_t rows, int64_t columns)
{
    lr_tensor *t = new_tensor(LR_F32, 2, rows, columns, device());
    for (int64_t i = 0; i < rows * columns; i++)
        CHECK_INT(lr_tensor_write(t, i, 1, &(float){0.5f * (float)(i + 1)}), LR_OK);
    return t;
}

static void check_counting(const lr_tensor *t, int64_t n)
{
    for (int64_t i = 0; i < n; i++) {
        float x;
        CHECK_INT(lr_tensor_read(t, i, 1, &x), LR_OK);
        CHECK_NEAR(x, 0.5 * (double)(i + 1), 0);
    }
}

static int write_one(const char *path, const char *name, int dtype, const lr_tensor *t, const char *metadata)
{
    lr_safetensors_writer *w;
    lr_tensor_info info;
    lr_tensor_describe(t, &info);
    int status = lr_safetensors_create(&w, path, metadata);
    if (status != LR_OK)
        return status;
    status = lr_safetensors_declare(w, name, dtype, info.ndim, info.shape);
    if (status == LR_OK)
        status = lr_safetensors_write(w, name, t);
    if (status == LR_OK)
        status = lr_safetensors_finish(w);
    lr_safetensors_writer_free(w);
    return status;
}

/* ---- reading -------------------------------------------------------------------------------------------------------- */
TEST(a_file_as_others_write_it)
{
    const char *path = make("{\"__metadata__\":{\"format\":\"pt\"},"
                            "\"z\":{\"dtype\":\"U8\",\"shape\":[3],\"data_offsets\":[16,19]},"
                            "\"a\":{\"dtype\":\"I32\",\"shape\":[2,1,1],\"data_offsets\":[0,8],\"extra\":[]},"
                            "\"none\":{\"dtype\":\"F32\",\"shape\":[0,4],\"data_offsets\":[8,8]},"
                            "\"scalar\":{\"dtype\":\"I64\",\"shape\":[],\"data_offsets\":[8,16]}}   ",
                            19);
    lr_safetensors *f;
    lr_safetensors_entry e;
    CHECK_INT(lr_safetensors_open(&f, path), LR_OK);
    CHECK_INT(lr_safetensors_count(f), 4);
    static const char *const ORDER[] = {"a", "none", "scalar", "z"};
    for (int i = 0; i < 4; i++) {
        CHECK_INT(lr_safetensors_get(f, i, &e), LR_OK);
        CHECK_STR(e.name, ORDER[i]);
        CHECK_INT(lr_safetensors_find(f, ORDER[i]), i);
    }
    CHECK_INT(e.dtype, -1);
    CHECK_STR(e.dtype_name, "U8");
    CHECK_INT(e.bytes, 3);
    CHECK_INT(lr_safetensors_get(f, 0, &e), LR_OK);
    CHECK_INT(e.dtype, LR_I32);
    CHECK_INT(e.ndim, 3);
    CHECK_INT(e.shape[0] * 100 + e.shape[1] * 10 + e.shape[2], 211);
    CHECK_INT(lr_safetensors_find(f, "b"), -1);
    CHECK_INT(lr_safetensors_get(f, 4, &e), LR_EINVAL);
    CHECK_INT(lr_safetensors_get(f, -1, &e), LR_EINVAL);
    CHECK_STR(lr_safetensors_metadata(f, "format"), "pt");
    CHECK(lr_safetensors_metadata(f, "other") == NULL);
    lr_tensor *t = new_tensor(LR_I64, 1, 1, 0, device());
    int64_t x;
    CHECK_INT(lr_safetensors_load(f, 2, t), LR_OK);
    CHECK_INT(lr_tensor_read(t, 0, 1, &x), LR_OK);
    CHECK_INT(x, 0x100f0e0d0c0b0a09);
    CHECK_INT(lr_safetensors_load(f, 3, t), LR_ESHAPE);
    CHECK_INT(lr_safetensors_load(f, 1, t), LR_ESHAPE);
    lr_tensor_destroy(t);
    t = new_tensor(LR_F32, 1, 3, 0, device());
    CHECK_INT(lr_safetensors_load(f, 3, t), LR_EDTYPE);
    CHECK_HAS(lr_last_error(), "tensor 'z' is U8 and cannot be loaded as f32");
    lr_tensor_destroy(t);
    t = new_tensor(LR_F32, 1, 2, 0, device());
    CHECK_INT(lr_safetensors_load(f, 0, t), LR_EDTYPE);
    lr_tensor_destroy(t);
    lr_safetensors_close(f);
}

TEST(malformed_headers)
{
#define X(fields) "{\"x\":{" fields "}}"
    static const struct {
        const char *header;
        size_t data;
        const char *message;
    } BAD[] = {
        {"", 0, "does not begin with '{'"},
        {" {}", 0, "does not begin with '{'"},
        {"[]", 0, "does not begin with '{'"},
        {"{", 0, ":1:2: not valid JSON"},
        {"{}x", 0, "not valid JSON"},
        {"{\"\xff\":1}", 0, "not UTF-8"},
        {"{}", 1, "1 bytes follow the last tensor"},
        {"{\"x\":1}", 0, "tensor 'x': its dtype is missing"},
        {X("\"shape\":[1],\"data_offsets\":[0,4]"), 4, "tensor 'x': its dtype is missing"},
        {X("\"dtype\":\"F32\",\"data_offsets\":[0,4]"), 4, "tensor 'x': its shape is missing"},
        {X("\"dtype\":\"F32\",\"shape\":[1]"), 4, "tensor 'x': its data_offsets is missing"},
        {X("\"dtype\":\"F31\",\"shape\":[1],\"data_offsets\":[0,4]"), 4, "tensor 'x': unknown dtype 'F31'"},
        {X("\"dtype\":7,\"shape\":[1],\"data_offsets\":[0,4]"), 4, "tensor 'x': unknown dtype"},
        {X("\"dtype\":\"F32\",\"shape\":1,\"data_offsets\":[0,4]"), 4, "its shape is no array"},
        {X("\"dtype\":\"F32\",\"shape\":[-1],\"data_offsets\":[0,4]"), 4, "dimension 1 of its shape is no count"},
        {X("\"dtype\":\"F32\",\"shape\":[1,1.5],\"data_offsets\":[0,4]"), 4, "dimension 2 of its shape is no count"},
        {X("\"dtype\":\"F32\",\"shape\":[1,\"1\"],\"data_offsets\":[0,4]"), 4, "dimension 2 of its shape is no count"},
        {X("\"dtype\":\"F32\",\"shape\":[1e0],\"data_offsets\":[0,4]"), 4, "dimension 1 of its shape is no count"},
        {X("\"dtype\":\"F32\",\"shape\":[1,1,1,1,1,1,1,1,1],\"data_offsets\":[0,4]"), 4, "has 9 dimensions"},
        {X("\"dtype\":\"F32\",\"shape\":[4294967296,4294967296,4294967296],\"data_offsets\":[0,4]"), 4, "countable"},
        {X("\"dtype\":\"F32\",\"shape\":[9007199254740992,1024],\"data_offsets\":[0,4]"), 4, "countable"},
        {X("\"dtype\":\"F32\",\"shape\":[99999999999999999999999],\"data_offsets\":[0,4]"), 4, "is no count"},
        {X("\"dtype\":\"F4\",\"shape\":[3],\"data_offsets\":[0,1]"), 1, "countable"},
        {X("\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0]"), 4, "data_offsets are not [begin, end]"},
        {X("\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":4"), 4, "data_offsets are not [begin, end]"},
        {X("\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[4,0]"), 4, "data_offsets are not [begin, end]"},
        {X("\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[-4,0]"), 4, "data_offsets are not [begin, end]"},
        {X("\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,\"4\"]"), 4, "data_offsets are not [begin, end]"},
        {X("\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,18446744073709551612]"), 4, "data_offsets are not"},
        {X("\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,4]"), 4, "need 8 bytes, its data_offsets give 4"},
        {X("\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[4,8]"), 8, "leaves a gap from 0"},
        {X("\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]"), 7, "has only 7 bytes of data: cut off?"},
        {X("\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]"), 0, "has only 0 bytes of data: cut off?"},
        {X("\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]"), 5, "1 bytes follow the last tensor"},
        {"{\"__metadata__\":[]}", 0, "__metadata__ is no object"},
        {"{\"__metadata__\":{\"a\":1}}", 0, "__metadata__ 'a' is no string"},
        {"{\"x\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]},"
         "\"y\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[2,6]}}",
         6, "tensor 'y' begins at byte 2, inside tensor 'x', which ends at 4"},
        {"{\"x\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]},"
         "\"y\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]}}",
         4, "tensor 'y' begins at byte 0, inside tensor 'x'"},
        {"{\"x\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]},"
         "\"x\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[1,2]}}",
         2, "the key 'x' occurs twice"},
        {X("\"dtype\":\"U8\",\"dtype\":\"I8\",\"shape\":[1],\"data_offsets\":[0,1]"), 1,
         "the key 'dtype' occurs twice"},
    };
    lr_safetensors *f;
    for (size_t i = 0; i < LR_COUNT_OF(BAD); i++) {
        const char *path = make(BAD[i].header, BAD[i].data);
        CHECK_INT(lr_safetensors_open(&f, path), LR_EFORMAT);
        CHECK_HAS(lr_last_error(), BAD[i].message);
        CHECK_HAS(lr_last_error(), path);
    }
}

TEST(lengths_that_lie)
{
    lr_safetensors *f;
    CHECK_INT(lr_safetensors_open(&f, make_file(100, "{}", 2, 0)), LR_EFORMAT);
    CHECK_HAS(lr_last_error(), "cut off: the header has 100 bytes, the whole file 10");
    CHECK_INT(lr_safetensors_open(&f, make_file(3, "{}", 2, 0)), LR_EFORMAT);
    CHECK_HAS(lr_last_error(), "cut off");
    CHECK_INT(lr_safetensors_open(&f, make_file(100000001, "{}", 2, 0)), LR_EFORMAT);
    CHECK_HAS(lr_last_error(), "its header would have 100000001 bytes, the limit is 100000000");
    CHECK_INT(lr_safetensors_open(&f, make_file(UINT64_MAX, "{}", 2, 0)), LR_EFORMAT);
    CHECK_HAS(lr_last_error(), "18446744073709551615 bytes");
    CHECK_INT(lr_safetensors_open(&f, make_file((uint64_t)1 << 63, "{}", 2, 0)), LR_EFORMAT);
}

TEST(files_of_another_kind)
{
    static const struct {
        const char *bytes;
        int64_t size;
        const char *message;
    } OTHER[] = {
        {"", 0, "0 bytes are too few"},
        {"1234567", 7, "7 bytes are too few"},
        {"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 7\n", 64, "git lfs pull"},
        {"PK\3\4\0\0\10\10\0\0\0\0\0\0", 14, "PyTorch pickle (zip)"},
        {"\200\2\212\nl\374\234F\371 j\250P\31.", 16, "Python pickle"},
        {"GGUF\3\0\0\0\1\0\0\0", 12, "GGUF"},
    };
    lr_safetensors *f;
    for (size_t i = 0; i < LR_COUNT_OF(OTHER); i++) {
        const char *path = in_folder("model.safetensors");
        CHECK_INT(lr_file_write(path, OTHER[i].bytes, OTHER[i].size), LR_OK);
        CHECK_INT(lr_safetensors_open(&f, path), LR_EFORMAT);
        CHECK_HAS(lr_last_error(), OTHER[i].message);
    }
    CHECK_INT(lr_safetensors_open(&f, in_folder("missing")), LR_ENOTFOUND);
    CHECK_INT(lr_safetensors_open(&f, lr_test_folder), LR_EINVAL);
}

/* ---- values --------------------------------------------------------------------------------------------------------- */
/* Every pair of stored and loaded dtype, into a contiguous tensor and into a slice of columns. */
TEST(conversions)
{
    static const int FLOATS[] = {LR_F32, LR_F16, LR_BF16};
    const char *path = in_folder("model.safetensors"), *again = in_folder("again"), *all_of_it = in_folder("whole");
    lr_tensor *values = counting(10, 20);
    for (int stored = 0; stored < 3; stored++) {
        CHECK_INT(write_one(path, "w", FLOATS[stored], values, NULL), LR_OK);
        for (int loaded = 0; loaded < 3; loaded++) {
            lr_safetensors *f;
            CHECK_INT(lr_safetensors_open(&f, path), LR_OK);
            lr_tensor *whole = new_tensor(FLOATS[loaded], 2, 10, 50, device()), *slice = NULL, *row = NULL;
            CHECK_INT(lr_tensor_fill(whole, -1), LR_OK);
            CHECK_INT(lr_tensor_view(&slice, whole, 20, 2, (int64_t[]){10, 20}, 50), LR_OK);
            CHECK_INT(lr_safetensors_load(f, 0, slice), LR_OK);
            CHECK_INT(write_one(again, "w", LR_F32, slice, NULL), LR_OK);
            CHECK_INT(write_one(all_of_it, "w", LR_F32, whole, NULL), LR_OK);
            lr_safetensors_close(f);
            CHECK_INT(lr_safetensors_open(&f, again), LR_OK);
            row = new_tensor(LR_F32, 1, 200, 0, device());
            CHECK_INT(lr_safetensors_load(f, 0, row), LR_OK);
            check_counting(row, 200);
            lr_safetensors_close(f);
            /* Nothing outside the slice was changed. */
            lr_tensor *all = new_tensor(LR_F32, 2, 10, 50, device());
            CHECK_INT(lr_safetensors_open(&f, all_of_it), LR_OK);
            CHECK_INT(lr_safetensors_load(f, 0, all), LR_OK);
            for (int64_t i = 0; i < 500; i++) {
                float x;
                CHECK_INT(lr_tensor_read(all, i, 1, &x), LR_OK);
                CHECK((i % 50 >= 20 && i % 50 < 40) == (x != -1));
            }
            lr_safetensors_close(f);
            lr_tensor_destroy(all);
            lr_tensor_destroy(row);
            lr_tensor_destroy(slice);
            lr_tensor_destroy(whole);
        }
    }
    lr_tensor_destroy(values);
}

/* Several chunks and threads, whose borders fall inside rows. */
TEST(large_tensors)
{
    enum { ROWS = 701, COLUMNS = 2999 };
    const char *path = in_folder("large");
    float *expected = lr_alloc(sizeof(float) * ROWS * COLUMNS), *got = lr_alloc(sizeof(float) * ROWS * COLUMNS);
    CHECK(expected != NULL && got != NULL);
    for (int i = 0; i < ROWS * COLUMNS; i++) /* 8 bits: exact in bf16 */
        expected[i] = (float)((unsigned)i * 2654435761u >> 24);
    lr_tensor *t = new_tensor(LR_F32, 2, ROWS, COLUMNS, device()),
              *wide = new_tensor(LR_F32, 2, ROWS, COLUMNS + 5, device()), *slice;
    CHECK_INT(lr_tensor_view(&slice, wide, 3, 2, (int64_t[]){ROWS, COLUMNS}, COLUMNS + 5), LR_OK);
    CHECK_INT(lr_tensor_write(t, 0, ROWS * COLUMNS, expected), LR_OK);
    for (int stored = LR_F32; stored <= LR_BF16; stored++) {
        CHECK_INT(write_one(path, "w", stored, t, NULL), LR_OK);
        lr_safetensors *f;
        CHECK_INT(lr_safetensors_open(&f, path), LR_OK);
        lr_tensor *targets[] = {t, slice};
        for (int k = 0; k < 2; k++) {
            CHECK_INT(lr_tensor_fill(targets[k], 0), LR_OK);
            CHECK_INT(lr_safetensors_load(f, 0, targets[k]), LR_OK);
            CHECK_INT(lr_tensor_read(targets[k], 0, ROWS * COLUMNS, got), LR_OK);
            CHECK_INT(memcmp(got, expected, sizeof(float) * ROWS * COLUMNS), 0);
        }
        lr_safetensors_close(f);
    }
    CHECK_INT(write_one(path, "w", LR_BF16, slice, NULL), LR_OK);
    lr_tensor_destroy(slice);
    lr_tensor_destroy(wide);
    lr_tensor_destroy(t);
    lr_free(got);
    lr_free(expected);
}

TEST(a_file_that_shrinks_while_open)
{
    const char *path = in_folder("model.safetensors");
    lr_tensor *t = counting(10, 20);
    lr_safetensors *f;
    CHECK_INT(write_one(path, "w", LR_BF16, t, NULL), LR_OK);
    CHECK_INT(lr_safetensors_open(&f, path), LR_OK);
    CHECK_INT(truncate(path, 200), 0);
    for (int i = 0; i < 40; i++) /* more than there are buffers for copying to a device */
        CHECK_INT(lr_safetensors_load(f, 0, t), LR_EIO);
    CHECK_HAS(lr_last_error(), "tensor 'w': the file became shorter while it was read");
    lr_safetensors_close(f);
    lr_tensor_destroy(t);
}

TEST(targets_that_cannot_be_loaded)
{
    const char *path = in_folder("model.safetensors");
    lr_tensor *t = counting(4, 5), *meta = new_tensor(LR_BF16, 2, 4, 5, LR_META),
              *other = new_tensor(LR_F32, 2, 4, 6, LR_META);
    lr_safetensors *f;
    CHECK_INT(write_one(path, "w", LR_F32, t, NULL), LR_OK);
    CHECK_INT(lr_safetensors_open(&f, path), LR_OK);
    CHECK_INT(lr_safetensors_load(f, 0, meta), LR_OK);
    CHECK_INT(lr_safetensors_load(f, 0, other), LR_ESHAPE);
    CHECK_HAS(lr_last_error(), "tensor 'w' has 20 elements, but 'target' [4, 6] has 24");
    CHECK_INT(lr_safetensors_load(f, 1, t), LR_EINVAL);
    CHECK_INT(write_one(in_folder("other"), "w", LR_BF16, meta, NULL), LR_EUNSUPPORTED);
    lr_tensor_free(t);
    CHECK_INT(lr_safetensors_load(f, 0, t), LR_EFREED);
    CHECK_INT(write_one(in_folder("other"), "w", LR_F32, t, NULL), LR_EFREED);
    lr_safetensors_close(f);
    lr_tensor_destroy(other);
    lr_tensor_destroy(meta);
    lr_tensor_destroy(t);
}

/* ---- writing -------------------------------------------------------------------------------------------------------- */
/* The very bytes that Python's safetensors 0.8.0 writes for these tensors. */
TEST(bytes_of_the_reference)
{
    static const char EXPECTED[] =
        "\xb8\0\0\0\0\0\0\0{\"__metadata__\":{\"format\":\"pt\"},"
        "\"a\":{\"dtype\":\"F32\",\"shape\":[2,1],\"data_offsets\":[0,8]},"
        "\"b\\\"\\\\\\n\xc3\xa9\":{\"dtype\":\"BF16\",\"shape\":[2],\"data_offsets\":[8,12]}}"
        "                                   \0\0\0\x3f\0\0\x80\x3f\0\x3f\x80\x3f";
    const char *path = in_folder("model.safetensors");
    lr_safetensors_writer *w;
    lr_tensor *t = counting(2, 1);
    char *data;
    int64_t size;
    CHECK_INT(lr_safetensors_create(&w, path, "{ \"format\" : \"pt\" }"), LR_OK);
    CHECK_INT(lr_safetensors_declare(w, "a", LR_F32, 2, (int64_t[]){2, 1}), LR_OK);
    CHECK_INT(lr_safetensors_declare(w, "b\"\\\n\xc3\xa9", LR_BF16, 1, (int64_t[]){2}), LR_OK);
    CHECK_INT(lr_safetensors_write(w, "a", t), LR_OK);
    CHECK_INT(lr_safetensors_write(w, "b\"\\\n\xc3\xa9", t), LR_OK);
    CHECK_INT(lr_safetensors_finish(w), LR_OK);
    lr_safetensors_writer_free(w);
    lr_tensor_destroy(t);
    CHECK_INT(lr_file_read(path, &data, &size), LR_OK);
    const char *header_end = memchr(data + 8, ' ', (size_t)size - 8);
    const bool same_header = header_end != NULL && memcmp(data + 8, EXPECTED + 8, (size_t)(header_end - data) - 8) == 0;
    const bool same_values = size > 12 && memcmp(data + size - 12, EXPECTED + sizeof EXPECTED - 13, 12) == 0;
    const bool aligned = (size - 12) % 8 == 0 && size - 20 == (unsigned char)data[0];
    lr_free(data);
    CHECK(same_header);
    CHECK(same_values);
    CHECK(aligned);
}

TEST(rules_of_the_writer)
{
    const char *path = in_folder("ruled");
    lr_safetensors_writer *w;
    lr_tensor *t = counting(2, 3), *i64 = new_tensor(LR_I64, 1, 6, 0, device());
    CHECK_INT(lr_safetensors_create(&w, path, NULL), LR_OK);
    CHECK_INT(lr_safetensors_declare(w, "a", LR_F32, 1, (int64_t[]){6}), LR_OK);
    CHECK_INT(lr_safetensors_declare(w, "b", LR_F32, 1, (int64_t[]){5}), LR_OK);
    CHECK_INT(lr_safetensors_declare(w, "a", LR_F32, 1, (int64_t[]){6}), LR_EINVAL);
    CHECK_HAS(lr_last_error(), "tensor 'a' is declared twice");
    CHECK_INT(lr_safetensors_declare(w, "__metadata__", LR_F32, 1, (int64_t[]){6}), LR_EINVAL);
    CHECK_INT(lr_safetensors_declare(w, "c", 99, 1, (int64_t[]){6}), LR_EDTYPE);
    CHECK_INT(lr_safetensors_declare(w, "c", -1, 1, (int64_t[]){6}), LR_EDTYPE);
    CHECK_INT(lr_safetensors_declare(w, "c", LR_F32, 9, (int64_t[9]){1, 1, 1, 1, 1, 1, 1, 1, 1}), LR_ESHAPE);
    CHECK_INT(lr_safetensors_declare(w, "c", LR_F32, 2, (int64_t[]){6, 0}), LR_ESHAPE);
    CHECK_INT(lr_safetensors_declare(w, "c", LR_F32, 2, (int64_t[]){INT64_MAX, 2}), LR_ESHAPE);
    CHECK_INT(lr_safetensors_write(w, "b", t), LR_EINVAL);
    CHECK_HAS(lr_last_error(), "tensor 'b' is out of order: 'a' comes next");
    CHECK_INT(lr_safetensors_write(w, "x", t), LR_EINVAL);
    CHECK_HAS(lr_last_error(), "tensor 'x' was not declared");
    CHECK_INT(lr_safetensors_write(w, "a", i64), LR_EDTYPE);
    CHECK_INT(lr_safetensors_write(w, "a", t), LR_OK);
    CHECK_INT(lr_safetensors_write(w, "a", t), LR_EINVAL);
    CHECK_INT(lr_safetensors_declare(w, "c", LR_F32, 1, (int64_t[]){6}), LR_EINVAL);
    CHECK_HAS(lr_last_error(), "after the first was written");
    CHECK_INT(lr_safetensors_write(w, "b", t), LR_ESHAPE);
    CHECK_HAS(lr_last_error(), "tensor 'b' was declared with 5 elements, but 'target' [2, 3] has 6");
    CHECK_INT(lr_safetensors_finish(w), LR_EINVAL);
    CHECK_HAS(lr_last_error(), "tensor 'b' was declared and not written");
    lr_safetensors_writer_free(w);
    lr_stat st;
    CHECK_INT(lr_file_stat(path, &st), LR_ENOTFOUND);
    CHECK_INT(lr_safetensors_create(&w, path, "[]"), LR_EINVAL);
    CHECK_INT(lr_safetensors_create(&w, path, "{\"a\":1}"), LR_EINVAL);
    CHECK_HAS(lr_last_error(), "metadata 'a' is no string");
    CHECK_INT(lr_safetensors_create(&w, path, "{"), LR_EFORMAT);
    CHECK_INT(lr_safetensors_create(&w, in_folder("no/folder"), NULL), LR_ENOTFOUND);
    CHECK_INT(write_one(path, "\xff", LR_F32, t, NULL), LR_EINVAL);
    CHECK_INT(lr_safetensors_create(&w, path, "{}"), LR_OK); /* an empty object is allowed */
    CHECK_INT(lr_safetensors_finish(w), LR_OK);
    CHECK_INT(lr_safetensors_finish(w), LR_EINVAL);
    lr_safetensors_writer_free(w);
    lr_safetensors *f;
    CHECK_INT(lr_safetensors_open(&f, path), LR_OK);
    CHECK_INT(lr_safetensors_count(f), 0);
    CHECK_INT(lr_safetensors_find(f, "a"), -1);
    lr_safetensors_close(f);
    lr_tensor_destroy(i64);
    lr_tensor_destroy(t);
}

TEST(a_full_disk_leaves_the_old_file)
{
    CHECK_INT(lr_tree_remove(in_folder("")), LR_OK);
    CHECK_INT(lr_dir_make(lr_test_folder), LR_OK);
    const char *path = in_folder("model.safetensors");
    lr_tensor *t = counting(10, 20);
    CHECK_INT(write_one(path, "old", LR_F32, t, NULL), LR_OK);
    struct rlimit before, limit;
    CHECK_INT(getrlimit(RLIMIT_FSIZE, &before), 0);
    void (*handler)(int) = signal(SIGXFSZ, SIG_IGN);
    for (rlim_t bytes = 1; bytes < 800; bytes += 61) { /* within the length, the header and the data */
        limit = before;
        limit.rlim_cur = bytes;
        CHECK_INT(setrlimit(RLIMIT_FSIZE, &limit), 0);
        const int status = write_one(path, "new", LR_F32, t, NULL);
        setrlimit(RLIMIT_FSIZE, &before);
        CHECK_INT(status, LR_EIO);
        CHECK_HAS(lr_last_error(), path);
    }
    signal(SIGXFSZ, handler);
    lr_safetensors *f;
    CHECK_INT(lr_safetensors_open(&f, path), LR_OK);
    CHECK_INT(lr_safetensors_find(f, "old"), 0);
    lr_safetensors_close(f);
    CHECK_INT(names_in_folder(), 1);
    lr_tensor_destroy(t);
}

/* ---- faults --------------------------------------------------------------------------------------------------------- */
static int load_all(const char *path, lr_tensor *t)
{
    lr_safetensors *f;
    int status = lr_safetensors_open(&f, path);
    if (status != LR_OK)
        return status;
    status = lr_safetensors_load(f, 0, t);
    lr_safetensors_close(f);
    return status;
}

TEST(every_allocation_may_fail)
{
    const char *path = in_folder("model.safetensors");
    lr_tensor *t = counting(10, 20), *half = new_tensor(LR_BF16, 2, 10, 20, device());
    FAIL_EACH_ALLOCATION(write_one(path, "a \"name\"", LR_F16, t, "{\"format\": \"pt\", \"more\": \"\"}"));
    FAIL_EACH_ALLOCATION(load_all(path, half));
    lr_tensor_destroy(half);
    lr_tensor_destroy(t);
}

/* Bytes of a good file changed, cut or repeated: an error or a file, never a crash (the sanitizers watch). */
TEST(mutations)
{
    const char *path = in_folder("model.safetensors");
    lr_tensor *t = counting(2, 3);
    char *seed, bytes[1024];
    int64_t seed_size;
    uint64_t random = 99;
    int good = 0, bad = 0;
    CHECK_INT(write_one(path, "w", LR_F32, t, "{\"format\": \"pt\"}"), LR_OK);
    CHECK_INT(lr_file_read(path, &seed, &seed_size), LR_OK);
    CHECK(seed_size < (int64_t)sizeof bytes - 8);
    for (int round = 0; round < 2000; round++) {
        size_t size = (size_t)seed_size;
        memcpy(bytes, seed, size);
        for (int change = 0; change < 1 + round % 3; change++) {
            random = random * 6364136223846793005u + 1442695040888963407u;
            const size_t at = (size_t)(random >> 33) % size, kind = (size_t)(random >> 20) % 4;
            if (kind <= 1) {
                bytes[at] = kind == 0 ? (char)(random >> 50) : "0123456789\"[]{},:"[(random >> 50) % 17];
            } else if (kind == 2) {
                size = at + 1;
            } else if (size < sizeof bytes) {
                memmove(bytes + at + 1, bytes + at, size - at);
                size++;
            }
        }
        write_in_folder("model.safetensors", bytes, size);
        lr_safetensors *f;
        const int status = lr_safetensors_open(&f, path);
        CHECK(status == LR_OK || status == LR_EFORMAT);
        status == LR_OK ? good++ : bad++;
        if (status != LR_OK)
            continue;
        for (int64_t i = 0; i < lr_safetensors_count(f); i++) {
            const int loaded = lr_safetensors_load(f, i, t);
            CHECK(loaded == LR_OK || loaded == LR_ESHAPE || loaded == LR_EDTYPE);
        }
        lr_safetensors_close(f);
    }
    CHECK(good > 50 && bad > 500);
    lr_free(seed);
    lr_tensor_destroy(t);
}

TEST_MAIN()
