/* reference_scratch.h: cases of test_reference.c: the working memory of kernels is what their tables say.
 *
 * Each op that ops.def marks with "scratch" is called on the device and on the meta device, which only counts. The two must
 * have taken the same number of bytes, and on the CPU the kernel must have left alone what follows them. (Under AddressSanitizer
 * every case of test_reference.c shows the latter.) */

typedef struct scratch_size {
    int64_t rows, cols, other; /* attention: sequences of `rows` tokens and fewer, heads of `cols`, `other` heads */
    bool half, strided;
} scratch_size;

static const scratch_size SCRATCH_SIZES[] = {
    {1, 1, 1, false, false}, {3, 17, 2, false, true},    {130, 64, 12, true, false},
    {65, 96, 4, true, true}, {300, 128, 2, true, false}, {70, 40, 6, false, false},
};

/* A tensor of `at`, which may be the meta device; the running case owns it. rows 0: a vector of cols. */
static lr_tensor *room_at(int at, int dtype, int64_t rows, int64_t cols, bool strided)
{
    const int64_t shape[2] = {rows, cols}, wide[2] = {rows, cols + 2 * GAP};
    mat *m = holder();
    if (strided && rows > 0) {
        OK(lr_tensor_new(&m->whole, dtype, 2, wide, at, "whole"));
        OK(lr_tensor_fill(m->whole, 0.5));
        OK(lr_tensor_view(&m->t, m->whole, GAP, 2, shape, cols + 2 * GAP));
    } else {
        OK(lr_tensor_new(&m->t, dtype, rows > 0 ? 2 : 1, rows > 0 ? shape : shape + 1, at, "room"));
        OK(lr_tensor_fill(m->t, 0.5));
    }
    return m->t;
}

static int dtype_at(const scratch_size *z)
{
    return z->half ? HALF : LR_F32;
}

static lr_tensor *matrix_at(int at, const scratch_size *z, int64_t rows, int64_t cols)
{
    return room_at(at, dtype_at(z), rows, cols, z->strided);
}

static lr_tensor *dense_at(int at, const scratch_size *z, int64_t rows, int64_t cols)
{
    return room_at(at, dtype_at(z), rows, cols, false);
}

static lr_tensor *vector_at(int at, int64_t n)
{
    return room_at(at, LR_F32, 0, n, false);
}

/* A weight of other x cols, packed. */
static lr_tensor *weight_at(int at, const scratch_size *z, int direction)
{
    lr_tensor *plain = dense_at(at, z, z->other, z->cols);
    mat *m = holder();
    OK(lr_tensor_pack(&m->t, plain, direction, dtype_at(z)));
    return m->t;
}

static int call_linear(int at, const scratch_size *z)
{
    return lr_op_linear(matrix_at(at, z, z->rows, z->other), matrix_at(at, z, z->rows, z->cols), weight_at(at, z, 1),
                        vector_at(at, z->other), NULL);
}

static int call_linear_backward(int at, const scratch_size *z)
{
    return lr_op_linear_backward(dense_at(at, z, z->rows, z->cols), matrix_at(at, z, z->rows, z->other),
                                 weight_at(at, z, 2), 0.0);
}

/* An adapter's products: 16-bit activations meet its f32. */
static int call_matmul_nt(int at, const scratch_size *z)
{
    return lr_op_matmul_nt(matrix_at(at, z, z->rows, z->other), matrix_at(at, z, z->rows, z->cols),
                           room_at(at, LR_F32, z->other, z->cols, z->strided), 1.0, 0.0);
}

static int call_matmul_nn(int at, const scratch_size *z)
{
    return lr_op_matmul_nn(matrix_at(at, z, z->rows, z->cols), matrix_at(at, z, z->rows, z->other),
                           room_at(at, LR_F32, z->other, z->cols, z->strided), 1.0, 0.0);
}

static int call_matmul_tn(int at, const scratch_size *z)
{
    return lr_op_matmul_tn(room_at(at, LR_F32, z->other, z->cols, false), matrix_at(at, z, z->rows, z->other),
                           matrix_at(at, z, z->rows, z->cols), 1.0, 0.0);
}

static int call_rms_norm(int at, const scratch_size *z)
{
    return lr_op_rms_norm(matrix_at(at, z, z->rows, z->cols), NULL, vector_at(at, z->rows),
                          dense_at(at, z, z->rows, z->cols), NULL, vector_at(at, z->cols), 1e-5);
}

static int call_rms_norm_backward(int at, const scratch_size *z)
{
    return lr_op_rms_norm_backward(dense_at(at, z, z->rows, z->cols), matrix_at(at, z, z->rows, z->cols),
                                   dense_at(at, z, z->rows, z->cols), vector_at(at, z->cols), vector_at(at, z->rows),
                                   NULL);
}

static int call_layer_norm(int at, const scratch_size *z)
{
    return lr_op_layer_norm(matrix_at(at, z, z->rows, z->cols), NULL, vector_at(at, z->rows), vector_at(at, z->rows),
                            dense_at(at, z, z->rows, z->cols), NULL, vector_at(at, z->cols), vector_at(at, z->cols),
                            1e-5);
}

static int call_layer_norm_backward(int at, const scratch_size *z)
{
    return lr_op_layer_norm_backward(dense_at(at, z, z->rows, z->cols), matrix_at(at, z, z->rows, z->cols),
                                     dense_at(at, z, z->rows, z->cols), vector_at(at, z->cols), vector_at(at, z->rows),
                                     vector_at(at, z->rows), NULL);
}

/* Two sequences, of rows tokens and of half as many; two heads share one of k and v where there are two. */
enum { BATCH = 2 };
static int64_t attention_tokens(const scratch_size *z)
{
    return z->rows + (z->rows + 1) / 2;
}

static int64_t attention_kv_width(const scratch_size *z)
{
    return (z->other % 2 == 0 ? z->other / 2 : z->other) * z->cols;
}

static lr_tensor *cu_at(int at, const scratch_size *z)
{
    const int32_t cu[BATCH + 1] = {0, (int32_t)z->rows, (int32_t)attention_tokens(z)};
    lr_tensor *t = room_at(at, LR_I32, 0, BATCH + 1, false);
    OK(lr_tensor_write(t, 0, BATCH + 1, cu));
    return t;
}

static int call_attention(int at, const scratch_size *z)
{
    const int64_t n = attention_tokens(z), kv = attention_kv_width(z), width = z->other * z->cols;
    return lr_op_attention(dense_at(at, z, n, width), room_at(at, LR_F32, n, z->other, false),
                           matrix_at(at, z, n, width), matrix_at(at, z, n, kv), matrix_at(at, z, n, kv), cu_at(at, z),
                           z->cols, z->rows, 0.1, 1);
}

static int call_attention_backward(int at, const scratch_size *z)
{
    const int64_t n = attention_tokens(z), kv = attention_kv_width(z), width = z->other * z->cols;
    return lr_op_attention_backward(matrix_at(at, z, n, width), matrix_at(at, z, n, kv), matrix_at(at, z, n, kv),
                                    dense_at(at, z, n, width), matrix_at(at, z, n, width), matrix_at(at, z, n, kv),
                                    matrix_at(at, z, n, kv), dense_at(at, z, n, width),
                                    room_at(at, LR_F32, n, z->other, false), cu_at(at, z), z->cols, z->rows, 0.1, 1);
}

static int call_clip_factor(int at, const scratch_size *z)
{
    return lr_op_clip_factor(vector_at(at, 1), vector_at(at, 1), vector_at(at, 1000 * z->rows * z->other), NULL, 1.0);
}

static const struct {
    const char *op;
    int (*call)(int at, const scratch_size *z);
} SCRATCH_OPS[] = {
    {"linear", call_linear},
    {"linear_backward", call_linear_backward},
    {"matmul_nt", call_matmul_nt},
    {"matmul_nn", call_matmul_nn},
    {"matmul_tn", call_matmul_tn},
    {"rms_norm", call_rms_norm},
    {"rms_norm_backward", call_rms_norm_backward},
    {"layer_norm", call_layer_norm},
    {"layer_norm_backward", call_layer_norm_backward},
    {"attention", call_attention},
    {"attention_backward", call_attention_backward},
    {"clip_factor", call_clip_factor},
};

static int64_t scratch_taken(int at)
{
    lr_memory stats;
    OK(lr_memory_stats(at, &stats));
    return stats.scratch_bytes;
}

/* On the CPU: is all as it was from byte `from` on of the scratch after the call? */
static void check_beyond_scratch(const char *op, int (*call)(int, const scratch_size *), const scratch_size *z,
                                 int64_t from)
{
    enum { BEYOND = 1 << 16, PATTERN = 0xa5 };
    void *start = NULL;
    OK(lr_scratch_take(&start, LR_CPU, (size_t)from + BEYOND));
    memset((char *)start + from, PATTERN, BEYOND);
    CHECK_INT(call(LR_CPU, z), LR_OK);
    for (int64_t i = 0; i < BEYOND; i++)
        if (((const unsigned char *)start)[from + i] != PATTERN)
            LR_TEST_FAIL("%s [%lld, %lld, %lld]: byte %lld of scratch was written, %lld were asked for", op,
                         (long long)z->rows, (long long)z->cols, (long long)z->other, (long long)(from + i),
                         (long long)from);
}

TEST(scratch_is_what_the_meta_device_counts)
{
    static const int threads[] = {1, 3};
    const int before = lr_threads();
    OK(lr_meta_like(device));
    for (size_t t = 0; t < (device == LR_CPU ? LR_COUNT_OF(threads) : 1); t++)
        for (size_t i = 0; i < LR_COUNT_OF(SCRATCH_OPS); i++)
            for (size_t j = 0; j < LR_COUNT_OF(SCRATCH_SIZES); j++, release()) {
                const scratch_size *z = &SCRATCH_SIZES[j];
                OK(lr_threads_set(threads[t]));
                OK(lr_memory_release_cached(device));
                OK(lr_memory_reset_peak(LR_META));
                OK(SCRATCH_OPS[i].call(device, z));
                OK(SCRATCH_OPS[i].call(LR_META, z));
                const int64_t taken = scratch_taken(device), counted = scratch_taken(LR_META);
                if (taken != counted)
                    LR_TEST_FAIL("%s [%lld, %lld, %lld]: %lld bytes of scratch were taken, %lld counted",
                                 SCRATCH_OPS[i].op, (long long)z->rows, (long long)z->cols, (long long)z->other,
                                 (long long)taken, (long long)counted);
                if (device == LR_CPU)
                    check_beyond_scratch(SCRATCH_OPS[i].op, SCRATCH_OPS[i].call, z, counted);
            }
    OK(lr_threads_set(before));
    OK(lr_meta_like(LR_CPU));
}

TEST(every_op_with_scratch_has_a_case)
{
    char name[64];
    bool scratch;
    size_t marked = 0;
    FILE *f = ops_open();
    while (ops_next(f, name, &scratch)) {
        if (!scratch)
            continue;
        size_t i = 0;
        while (i < LR_COUNT_OF(SCRATCH_OPS) && strcmp(SCRATCH_OPS[i].op, name) != 0)
            i++;
        if (i == LR_COUNT_OF(SCRATCH_OPS))
            LR_TEST_FAIL("op %s has scratch and no case here", name);
        marked++;
    }
    fclose(f);
    CHECK_INT(marked, LR_COUNT_OF(SCRATCH_OPS));
}
