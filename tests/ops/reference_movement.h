/* reference_movement.h: cases of test_reference.c: rows, conversion, arithmetic, activations, dropout, RoPE. */

TEST(embedding)
{
    FOR_CONFIGS(c)
    for (int accumulate = 0; accumulate < 2; accumulate++) {
        const double beta = accumulate ? 0.5 : 0.0;
        const mat *table = mat_random(11, c->cols, dtype_of(c), false), *ids = mat_ids(c->rows, LR_I32, 11);
        mat *y = accumulate ? mat_random(c->rows, c->cols, dtype_of(c), false)
                            : mat_new(c->rows, c->cols, dtype_of(c), false);
        double *expected = doubles(c->rows * c->cols);
        for (int64_t i = 0; i < c->rows * c->cols; i++)
            expected[i] =
                table->v[(int64_t)ids->v[i / c->cols] * c->cols + i % c->cols] + (accumulate ? beta * y->v[i] : 0.0);
        OK(lr_op_embedding(y->t, table->t, ids->t, beta));
        COMPARE(y, expected, CLOSE);
    }
}

TEST(embedding_names_the_bad_id)
{
    mat *y = mat_new(3, 4, LR_F32, false), *table = mat_random(5, 4, LR_F32, false);
    const double bad[] = {0, 5, 1}, negative[] = {0, 1, -2};
    REJECTED(lr_op_embedding(y->t, table->t, mat_of(bad, 3, LR_I32)->t, 0.0));
    CHECK_HAS(lr_last_error(), "[1] is 5");
    CHECK_HAS(lr_last_error(), "0 to 4");
    REJECTED(lr_op_embedding(y->t, table->t, mat_of(negative, 3, LR_I32)->t, 0.0));
    CHECK_HAS(lr_last_error(), "[2] is -2");
    REJECTED(lr_op_gather_rows(y->t, table->t, mat_of(bad, 3, LR_I32)->t));
    REJECTED(lr_op_scatter_rows(table->t, y->t, mat_of(bad, 3, LR_I32)->t));
    release();
}

/* Every bit pattern of the 16-bit formats, and f32 values at the edges of what those can hold. */
TEST(cast)
{
    static const double edges[] = {0.0,       -0.0,      1.0,     -1.0,     65504.0,   65519.0,    65520.0,
                                   -65536.0,  0x1p-14,   0x1p-24, 0x1p-25,  0x1.8p-25, 6.1e-5,     0x1.ffep-15,
                                   3.4e38,    -3.4e38,   1e-40,   INFINITY, NAN,       1.00390625, 1.01171875,
                                   0x1.002p0, 0x1.006p0, 0.1,     1.0 / 3.0};
    const int dtypes[] = {LR_F32, LR_BF16, LR_F16};
    for (int from = 0; from < 3; from++)
        for (int to = 0; to < 3; to++, release()) {
            mat *x =
                mat_new(dtypes[from] == LR_F32 ? 5 : 256, dtypes[from] == LR_F32 ? 5 : 256, dtypes[from], from == to);
            mat *y = mat_new(x->rows, x->cols, dtypes[to], to == 1);
            const int64_t n = x->rows * x->cols;
            static float floats[25];
            static uint16_t bits[1 << 16];
            for (int64_t i = 0; i < n; i++)
                if (dtypes[from] == LR_F32)
                    floats[i] = (float)edges[i];
                else
                    bits[i] = (uint16_t)i;
            OK(lr_tensor_write(x->t, 0, n, dtypes[from] == LR_F32 ? (void *)floats : bits));
            OK(lr_op_cast(y->t, x->t));
            double *inputs = elements_of(x->t), *outputs = elements_of(y->t);
            memcpy(x->v, inputs, (size_t)n * sizeof *inputs);
            memcpy(y->v, outputs, (size_t)n * sizeof *outputs);
            free(inputs);
            free(outputs);
            for (int64_t i = 0; i < n; i++) {
                const double in = x->v[i], out = y->v[i];
                const double expected = rounded(in, dtypes[to]);
                if (isnan(expected) ? !isnan(out) : out != expected || signbit(out) != signbit(expected))
                    LR_TEST_FAIL("%s to %s: %.17g became %.17g, expected %.17g", lr_dtype_name(dtypes[from]),
                                 lr_dtype_name(dtypes[to]), in, out, expected);
            }
        }
}

TEST(add)
{
    FOR_CONFIGS(c)
    for (int alias = 0; alias < 3; alias++) {
        mat *a = mat_random(c->rows, c->cols, dtype_of(c), c->strided),
            *b = mat_random(c->rows, c->cols, dtype_of(c), false);
        mat *y = alias == 0 ? mat_new(c->rows, c->cols, dtype_of(c), c->strided) : alias == 1 ? a : b;
        double *expected = doubles(c->rows * c->cols);
        for (int64_t i = 0; i < c->rows * c->cols; i++)
            expected[i] = 0.75 * a->v[i] - 2.0 * b->v[i];
        OK(lr_op_add(y->t, a->t, b->t, 0.75, -2.0));
        COMPARE(y, expected, CLOSE);
    }
}

TEST(mul)
{
    FOR_CONFIGS(c)
    for (int alias = 0; alias < 3; alias++) {
        mat *a = mat_random(c->rows, c->cols, dtype_of(c), false),
            *b = mat_random(c->rows, c->cols, dtype_of(c), false);
        mat *y = alias == 0 ? mat_new(c->rows, c->cols, dtype_of(c), false) : alias == 1 ? a : b;
        double *expected = doubles(c->rows * c->cols);
        for (int64_t i = 0; i < c->rows * c->cols; i++)
            expected[i] = a->v[i] * b->v[i];
        OK(lr_op_mul(y->t, a->t, b->t));
        COMPARE(y, expected, CLOSE);
    }
}

TEST(gather_rows)
{
    FOR_CONFIGS(c)
    {
        const mat *x = mat_random(9, c->cols, dtype_of(c), c->strided), *rows = mat_ids(c->rows, LR_I32, 9);
        mat *y = mat_new(c->rows, c->cols, dtype_of(c), false);
        double *expected = doubles(c->rows * c->cols);
        for (int64_t i = 0; i < c->rows * c->cols; i++)
            expected[i] = x->v[(int64_t)rows->v[i / c->cols] * c->cols + i % c->cols];
        OK(lr_op_gather_rows(y->t, x->t, rows->t));
        COMPARE(y, expected, 0.0);
    }
}

TEST(scatter_rows)
{
    FOR_CONFIGS(c)
    {
        mat *x = mat_new(2 * c->rows + 1, c->cols, dtype_of(c), false), *rows = mat_new(0, c->rows, LR_I32, false);
        const mat *y = mat_random(c->rows, c->cols, dtype_of(c), false);
        double *expected = doubles(x->rows * c->cols);
        for (int64_t i = 0; i < c->rows; i++)
            rows->v[i] = (double)(2 * (c->rows - i) - 1);
        mat_put(rows);
        for (int64_t i = 0; i < c->rows * c->cols; i++)
            expected[(int64_t)rows->v[i / c->cols] * c->cols + i % c->cols] = y->v[i];
        OK(lr_op_scatter_rows(x->t, y->t, rows->t));
        COMPARE(x, expected, 0.0);
    }
}

/* ---- activations ------------------------------------------------------------------------------------------------------ */
/* tanh is taken as a logistic function, which has digits left where 1 + tanh has none. */
static double gelu_of(double x, bool approximate)
{
    return approximate ? x / (1.0 + exp(-2.0 * sqrt(2.0 / 3.14159265358979323846) * (x + 0.044715 * x * x * x)))
                       : 0.5 * x * erfc(-x / sqrt(2.0));
}

static double gelu_slope(double x, bool approximate)
{
    const double h = 1e-5;
    return (gelu_of(x + h, approximate) - gelu_of(x - h, approximate)) / (2.0 * h);
}

/* Values from the middle to far out in both tails. */
static mat *mat_wide(int64_t rows, int64_t cols, int dtype)
{
    return mat_scaled(rows, cols, dtype, false, 3.5);
}

TEST(gelu)
{
    FOR_CONFIGS(c)
    for (int approximate = 0; approximate < 2; approximate++) {
        const mat *x = mat_wide(c->rows, c->cols, dtype_of(c));
        mat *y = mat_new(c->rows, c->cols, dtype_of(c), false);
        double *expected = doubles(c->rows * c->cols);
        for (int64_t i = 0; i < c->rows * c->cols; i++)
            expected[i] = gelu_of(x->v[i], approximate != 0);
        OK(lr_op_gelu(y->t, x->t, approximate));
        COMPARE(y, expected, CLOSE);
    }
}

/* Where the tails end: no NaN, the right limits. */
TEST(gelu_extremes)
{
    const double values[] = {-1e30, -100.0, -20.0, -13.5, -0.0, 0.0, 20.0, 1e30, -INFINITY, INFINITY, NAN};
    for (int approximate = 0; approximate < 2; approximate++, release()) {
        mat *x = mat_new(1, 11, LR_F32, false), *y = mat_new(1, 11, LR_F32, false);
        memcpy(x->v, values, sizeof values);
        mat_put(x);
        OK(lr_op_gelu(y->t, x->t, approximate));
        for (int i = 0; i < 5; i++)
            CHECK_NEAR(element(y->t, i), 0.0, 1e-30);
        CHECK_NEAR(element(y->t, 6), 20.0, 0.0);
        CHECK_NEAR(element(y->t, 7), (double)1e30f, 0.0);
        CHECK(isnan(element(y->t, 10)));
    }
}

TEST(gelu_backward)
{
    FOR_CONFIGS(c)
    for (int approximate = 0; approximate < 2; approximate++)
        for (int alias = 0; alias < 2; alias++) {
            const mat *x = mat_wide(c->rows, c->cols, dtype_of(c));
            mat *dy = mat_random(c->rows, c->cols, dtype_of(c), false);
            mat *dx = alias ? dy : mat_new(c->rows, c->cols, dtype_of(c), false);
            double *expected = doubles(c->rows * c->cols);
            for (int64_t i = 0; i < c->rows * c->cols; i++)
                expected[i] = dy->v[i] * gelu_slope(x->v[i], approximate != 0);
            OK(lr_op_gelu_backward(dx->t, dy->t, x->t, approximate));
            COMPARE_SUM(dx, expected, CLOSE);
        }
}

static double swiglu_of(double gate, double up)
{
    return gate / (1.0 + exp(-gate)) * up;
}

TEST(swiglu)
{
    FOR_CONFIGS(c)
    {
        const mat *gu = mat_wide(c->rows, 2 * c->cols, dtype_of(c));
        mat *y = mat_new(c->rows, c->cols, dtype_of(c), false);
        double *expected = doubles(c->rows * c->cols);
        for (int64_t i = 0; i < c->rows * c->cols; i++) {
            const double *row = gu->v + i / c->cols * 2 * c->cols + i % c->cols;
            expected[i] = swiglu_of(row[0], row[c->cols]);
        }
        OK(lr_op_swiglu(y->t, gu->t));
        COMPARE(y, expected, CLOSE);
    }
}

TEST(swiglu_backward)
{
    FOR_CONFIGS(c)
    for (int alias = 0; alias < 2; alias++) {
        mat *gu = mat_wide(c->rows, 2 * c->cols, dtype_of(c));
        const mat *dy = mat_random(c->rows, c->cols, dtype_of(c), false);
        mat *dgu = alias ? gu : mat_new(c->rows, 2 * c->cols, dtype_of(c), false);
        double *expected = doubles(2 * c->rows * c->cols);
        for (int64_t i = 0; i < c->rows * c->cols; i++) {
            const int64_t at = i / c->cols * 2 * c->cols + i % c->cols;
            const double gate = gu->v[at], up = gu->v[at + c->cols], h = 1e-5;
            expected[at] = dy->v[i] * (swiglu_of(gate + h, up) - swiglu_of(gate - h, up)) / (2.0 * h);
            expected[at + c->cols] = dy->v[i] * swiglu_of(gate, 1.0);
        }
        OK(lr_op_swiglu_backward(dgu->t, dy->t, gu->t));
        COMPARE_SUM(dgu, expected, CLOSE);
    }
}

/* ---- dropout ---------------------------------------------------------------------------------------------------------- */
static bool kept(int64_t key, int64_t column, double p, uint64_t seed, uint32_t purpose, uint32_t step)
{
    uint32_t counter[4] = {(uint32_t)key, (uint32_t)((uint64_t)key >> 32), step,
                           purpose << 16 | (uint32_t)(column / 8)};
    lr_philox4x32((uint32_t)seed, (uint32_t)(seed >> 32), counter);
    const uint32_t word = counter[column % 8 / 2], number = column % 2 ? word >> 16 : word & 0xffff;
    return number >= (uint32_t)lround(p * 65536.0);
}

TEST(dropout)
{
    static const double rates[] = {0.0, 0.1, 0.5, 1.0};
    FOR_CONFIGS(c)
    for (int variant = 0; variant < 8; variant++) {
        const double p = rates[variant % 4], beta = variant >= 4 ? 0.5 : 0.0;
        const bool in_place = variant == 1 || variant == 5, strided = variant % 2 == 1 || variant == 6;
        const uint64_t seed = 0x123456789abcdef0u + (uint64_t)variant;
        mat *x = mat_random(c->rows, c->cols, dtype_of(c), strided), *keys = mat_new(0, c->rows, LR_I64, false);
        mat *y = in_place       ? x
                 : variant >= 4 ? mat_random(c->rows, c->cols, dtype_of(c), variant == 7)
                                : mat_new(c->rows, c->cols, dtype_of(c), variant == 2 || variant == 3);
        double *expected = doubles(c->rows * c->cols);
        for (int64_t i = 0; i < c->rows; i++)
            keys->v[i] = (double)(i * 0x100000007 + 3);
        mat_put(keys);
        for (int64_t i = 0; i < c->rows * c->cols; i++) {
            const bool keep = kept((int64_t)keys->v[i / c->cols], i % c->cols, p, seed, 9, 77);
            expected[i] =
                (keep ? x->v[i] * 65536.0 / (65536.0 - round(p * 65536.0)) : 0.0) + (beta > 0.0 ? beta * y->v[i] : 0.0);
        }
        OK(lr_op_dropout(y->t, x->t, keys->t, p, (int64_t)seed, 9, 77, beta));
        COMPARE(y, expected, CLOSE);
        release();
    }
}

TEST(dropout_rejects)
{
    const mat *x = mat_random(2, 8, LR_F32, false), *keys = mat_ids(2, LR_I64, 9);
    CHECK_INT(lr_op_dropout(x->t, x->t, keys->t, 1.5, 1, 1, 1, 0.0), LR_EINVAL);
    CHECK_INT(lr_op_dropout(x->t, x->t, keys->t, NAN, 1, 1, 1, 0.0), LR_EINVAL);
    CHECK_INT(lr_op_dropout(x->t, x->t, keys->t, 0.5, 1, 65536, 1, 0.0), LR_EINVAL);
    const mat *wide = mat_random(2, 8 * 65536 + 1, HALF, false);
    CHECK_INT(lr_op_dropout(wide->t, wide->t, keys->t, 0.5, 1, 1, 1, 0.0), LR_EUNSUPPORTED);
    release();
}

/* ---- rope ------------------------------------------------------------------------------------------------------------- */
TEST(rope)
{
    static const int64_t shapes[][3] = {{1, 1, 2}, {17, 3, 8}, {33, 2, 64}, {5, 4, 96}}; /* tokens, heads, head_dim */
    for (int64_t i = 0; i < (int64_t)LR_COUNT_OF(shapes); i++)
        for (int variant = 0; variant < 8; variant++, release()) {
            const int64_t tokens = shapes[i][0], dim = shapes[i][2], width = shapes[i][1] * dim, half = dim / 2;
            const int dtype = variant & 1 ? HALF : LR_F32;
            const double sign = variant & 2 ? -1.0 : 1.0;
            const mat *table = mat_random(40, dim, LR_F32, false), *positions = mat_ids(tokens, LR_I32, 40);
            mat *x = mat_random(tokens, width, dtype, true), *y = variant & 4 ? x : mat_new(tokens, width, dtype, true);
            double *expected = doubles(tokens * width);
            for (int64_t e = 0; e < tokens * width; e++) {
                const int64_t d = e % dim, j = d % half;
                const double *row = table->v + (int64_t)positions->v[e / width] * dim;
                const double other = d < half ? -x->v[e + half] : x->v[e - half];
                expected[e] = x->v[e] * row[j] + other * sign * row[half + j];
            }
            OK(lr_op_rope(y->t, x->t, table->t, positions->t, sign));
            COMPARE(y, expected, CLOSE);
        }
}

TEST(rope_rejects)
{
    const mat *x = mat_random(2, 12, LR_F32, false), *table = mat_random(4, 8, LR_F32, false);
    const double far[] = {0, 4};
    CHECK_INT(lr_op_rope(x->t, x->t, table->t, mat_ids(2, LR_I32, 4)->t, 1.0), LR_ESHAPE);
    const mat *fitting = mat_random(2, 16, LR_F32, false);
    REJECTED(lr_op_rope(fitting->t, fitting->t, table->t, mat_of(far, 2, LR_I32)->t, 1.0));
    CHECK_HAS(lr_last_error(), "[1] is 4");
    release();
}
