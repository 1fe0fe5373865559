/* reference_matrix.h: cases of test_reference.c: matrix products and norms. */

/* c[m, n] = sum over k of a(i, k) b(k, j); a and b by their strides. */
static double *product_of(int64_t m, int64_t n, int64_t k, const double *a, int64_t a_row, int64_t a_column,
                          const double *b, int64_t b_row, int64_t b_column)
{
    double *c = doubles(m * n);
    for (int64_t i = 0; i < m; i++)
        for (int64_t l = 0; l < k; l++)
            for (int64_t j = 0; j < n; j++)
                c[i * n + j] += a[i * a_row + l * a_column] * b[l * b_row + j * b_column];
    return c;
}

/* What the values are once converted to a dtype. */
static void round_values(const mat *m, int dtype)
{
    for (int64_t i = 0; i < m->rows * m->cols; i++)
        m->v[i] = rounded(m->v[i], dtype);
}

static lr_tensor *packed(const mat *w, int direction, int dtype)
{
    mat *m = holder(); /* so that release() destroys it */
    OK(lr_tensor_pack(&m->t, w->t, direction, dtype));
    return m->t;
}

static const int64_t PRODUCTS[][3] = {{1, 1, 1},    {3, 5, 17},   {17, 33, 3},     {1, 64, 96},
                                      {33, 48, 64}, {77, 96, 48}, {130, 130, 129}, {300, 16, 200}}; /* tokens, N, K */
#define FOR_PRODUCTS(t, n, k)                                                                                          \
    for (int64_t case_ = 0; case_ < (int64_t)LR_COUNT_OF(PRODUCTS); case_++)                                           \
        for (int64_t t = PRODUCTS[case_][0], n = PRODUCTS[case_][1], k = PRODUCTS[case_][2], once_ = 1; once_;         \
             once_ = 0)

TEST(linear)
{
    FOR_PRODUCTS(tokens, n, k)
    for (int variant = 0; variant < 32; variant++, release()) {
        const int dtype = variant & 1 ? HALF : LR_F32;
        const bool strided = (variant & 2) != 0, biased = (variant & 4) != 0, added = (variant & 8) != 0;
        const mat *r = added ? mat_random(tokens, n, dtype, (variant & 16) != 0) : NULL;
        const mat *x = mat_random(tokens, k, dtype, strided), *w = mat_random(n, k, dtype, strided);
        const mat *b = biased ? mat_random(0, n, LR_F32, false) : NULL;
        mat *y = mat_new(tokens, n, dtype, strided);
        double *expected = product_of(tokens, n, k, x->v, k, 1, w->v, 1, k);
        if (device == LR_CUDA && biased)
            round_values(b, dtype);
        for (int64_t i = 0; biased && i < tokens * n; i++)
            expected[i] += b->v[i % n];
        for (int64_t i = 0; added && i < tokens * n; i++)
            expected[i] += r->v[i];
        OK(lr_op_linear(y->t, x->t, packed(w, 1, dtype), biased ? b->t : NULL, added ? r->t : NULL));
        COMPARE_SUM(y, expected, CLOSE);
    }
}

TEST(linear_backward)
{
    static const double betas[] = {0.0, 1.0, 0.5};
    FOR_PRODUCTS(tokens, n, k)
    for (int variant = 0; variant < 12; variant++, release()) {
        const int dtype = variant & 1 ? HALF : LR_F32;
        const bool strided = (variant & 2) != 0;
        const double beta = betas[variant / 4];
        const mat *dy = mat_random(tokens, n, dtype, strided), *w = mat_random(n, k, dtype, strided);
        mat *dx = beta != 0.0 ? mat_random(tokens, k, dtype, false) : mat_new(tokens, k, dtype, false);
        double *expected = product_of(tokens, k, n, dy->v, n, 1, w->v, k, 1);
        for (int64_t i = 0; beta != 0.0 && i < tokens * k; i++)
            expected[i] += beta * dx->v[i];
        OK(lr_op_linear_backward(dx->t, dy->t, packed(w, 2, dtype), beta));
        COMPARE_SUM(dx, expected, CLOSE);
    }
}

/* A checkpoint's dtype need not be the run's. */
TEST(pack_converts)
{
    const int stored[] = {LR_F32, LR_BF16, LR_F16};
    for (int variant = 0; variant < 12; variant++, release()) {
        const int dtype = variant & 1 ? HALF : LR_F32, direction = variant & 2 ? 2 : 1;
        const int64_t in = direction == 1 ? 40 : 24, out = direction == 1 ? 24 : 40;
        const mat *w = mat_random(24, 40, stored[variant / 4], true), *x = mat_random(9, in, dtype, false);
        mat *y = mat_new(9, out, dtype, false);
        double *rounded_w = doubles(24 * 40);
        for (int i = 0; i < 24 * 40; i++)
            rounded_w[i] = rounded(w->v[i], dtype);
        lr_tensor *p = packed(w, direction, dtype);
        const double *expected = direction == 1 ? product_of(9, 24, 40, x->v, 40, 1, rounded_w, 1, 40)
                                                : product_of(9, 40, 24, x->v, 24, 1, rounded_w, 40, 1);
        OK(direction == 1 ? lr_op_linear(y->t, x->t, p, NULL, NULL) : lr_op_linear_backward(y->t, x->t, p, 0.0));
        double *terms = doubles(y->rows * y->cols);
        for (int64_t i = 0; i < y->rows * y->cols; i++)
            for (int64_t k = 0; k < in; k++)
                terms[i] +=
                    fabs(x->v[i / out * in + k] * (direction == 1 ? w->v[i % out * 40 + k] : w->v[k * 40 + i % out]));
        COMPARE_TERMS(y, expected, CLOSE,
                      terms); /* where bf16 products run in f32 the weight keeps more bits than bf16 has */
        CHECK_HAS(lr_tensor_name(p), "whole");
    }
}

TEST(pack_survives_failing_allocations)
{
    const mat *w = mat_random(24, 40, LR_F16, false);
    int status = LR_ENOMEM;
    for (int64_t after = 0; status != LR_OK; after++) {
        lr_tensor *t = NULL;
        lr_memory_fail(after, 1);
        status = lr_tensor_pack(&t, w->t, 1, LR_F32);
        lr_memory_fail(-1, 0);
        CHECK(status == LR_OK || status == LR_ENOMEM);
        CHECK(status == LR_OK || t == NULL);
        CHECK(after < 100);
        lr_tensor_destroy(t);
    }
    release();
}

/* The planner packs on the meta device: the same bytes, no values. */
TEST(pack_on_meta)
{
    const int64_t shape[] = {48, 96};
    lr_tensor *w = NULL, *p = NULL;
    lr_memory before, after;
    OK(lr_tensor_new(&w, LR_F32, 2, shape, LR_META, "w"));
    lr_memory_stats(LR_META, &before);
    OK(lr_tensor_pack(&p, w, 2, LR_F32));
    lr_memory_stats(LR_META, &after);
    CHECK(after.live_bytes - before.live_bytes >= 48 * 96 * 4);
    lr_tensor_destroy(p);
    lr_tensor_destroy(w);
}

typedef int (*matmul_op)(lr_tensor *c, const lr_tensor *a, const lr_tensor *b, double alpha, double beta);

/* All eight mixes of f32 and 16 bits, strided or not, adding to what is there or not. */
static void check_matmul(matmul_op op, bool a_transposed, bool b_transposed)
{
    static const double betas[] = {0.0, 1.0, -0.5};
    const int step = device == LR_CPU ? 1 : 5; /* the CPU multiplies in other ways for other variants, a GPU does not */
    FOR_PRODUCTS(m, n, k)
    for (int variant = 0; variant < 48; variant += step, release()) {
        const int c_dtype = variant & 1 ? HALF : LR_F32, a_dtype = variant & 2 ? HALF : LR_F32;
        const int b_dtype = variant & 4 ? HALF : LR_F32;
        const bool strided = (variant & 8) != 0;
        const double beta = betas[variant / 16], alpha = variant % 3 == 0 ? 1.0 : 0.25;
        const mat *a = a_transposed ? mat_random(k, m, a_dtype, strided) : mat_random(m, k, a_dtype, strided);
        const mat *b = b_transposed ? mat_random(n, k, b_dtype, strided) : mat_random(k, n, b_dtype, strided);
        mat *c = beta != 0.0 ? mat_random(m, n, c_dtype, strided) : mat_new(m, n, c_dtype, strided);
        if (device == LR_CUDA &&
            (a_dtype == HALF || b_dtype == HALF || c_dtype == HALF)) { /* tensor cores: 16-bit operands */
            round_values(a, HALF);
            round_values(b, HALF);
        }
        double *expected = product_of(m, n, k, a->v, a_transposed ? 1 : k, a_transposed ? m : 1, b->v,
                                      b_transposed ? 1 : n, b_transposed ? k : 1);
        for (int64_t i = 0; i < m * n; i++)
            expected[i] = alpha * expected[i] + (beta != 0.0 ? beta * c->v[i] : 0.0);
        OK(op(c->t, a->t, b->t, alpha, beta));
        COMPARE_SUM(c, expected, CLOSE);
    }
}

TEST(matmul_nt)
{
    check_matmul(lr_op_matmul_nt, false, true);
}

/* TF32 keeps 10 bits of each f32 number; it is for GPUs, and only where it is turned on (check_matmul has it off). */
TEST(tf32_where_it_is_on)
{
    enum { N = 64 };
    const mat *a = mat_random(N, N, LR_F32, false), *b = mat_random(N, N, LR_F32, false);
    mat *exact = mat_new(N, N, LR_F32, false), *short_of = mat_new(N, N, LR_F32, false);
    OK(lr_op_matmul_nt(exact->t, a->t, b->t, 1.0, 0.0));
    CHECK_INT(lr_tf32(-1), 0);
    CHECK_INT(lr_tf32(1), 1);
    const int status = lr_op_matmul_nt(short_of->t, a->t, b->t, 1.0, 0.0);
    CHECK_INT(lr_tf32(0), 0);
    OK(status);
    double largest = 0.0;
    for (int64_t i = 0; i < N * N; i++)
        largest = fmax(largest, fabs(element(exact->t, i) - element(short_of->t, i)));
    if (device == LR_CPU)
        CHECK_NEAR(largest, 0.0, 0.0);
    else
        CHECK(largest > 1e-4 && largest < 0.05);
    release();
}

TEST(matmul_nn)
{
    check_matmul(lr_op_matmul_nn, false, false);
}

TEST(matmul_tn)
{
    check_matmul(lr_op_matmul_tn, true, false);
}

/* LoRA's dA: a long sum over tokens in few outputs, split between threads, the same bits every time. */
TEST(matmul_tn_repeats)
{
    const mat *a = mat_random(3001, 16, LR_F32, false), *b = mat_random(3001, 40, HALF, false);
    mat *first = mat_new(16, 40, LR_F32, false), *second = mat_new(16, 40, LR_F32, false);
    OK(lr_op_matmul_tn(first->t, a->t, b->t, 1.0, 0.0));
    if (device == LR_CUDA)
        round_values(a, HALF);
    COMPARE(first, product_of(16, 40, 3001, a->v, 1, 16, b->v, 40, 1), CLOSE);
    for (int i = 0; i < 5; i++) {
        OK(lr_op_matmul_tn(second->t, a->t, b->t, 1.0, 0.0));
        double *bits = elements_of(first->t), *again = elements_of(second->t);
        const int difference = memcmp(bits, again, 16 * 40 * sizeof *bits);
        free(bits);
        free(again);
        CHECK_INT(difference, 0);
    }
    release();
}

/* ---- norms ------------------------------------------------------------------------------------------------------------ */
typedef struct norm_case {
    bool layer;
    int64_t rows, cols;
    double eps;
    const double *w, *b; /* b NULL: none */
    double *s;
    const double *dy, *ds;
} norm_case;

/* y = norm(s), statistics beside it; any output may be NULL. */
static void norm_of(const norm_case *c, double *y, double *means, double *rstds)
{
    for (int64_t i = 0; i < c->rows; i++) {
        const double *s = c->s + i * c->cols;
        double mean = 0.0, square = 0.0;
        for (int64_t j = 0; c->layer && j < c->cols; j++)
            mean += s[j] / (double)c->cols;
        for (int64_t j = 0; j < c->cols; j++)
            square += (s[j] - mean) * (s[j] - mean) / (double)c->cols;
        const double rstd = 1.0 / sqrt(square + c->eps);
        for (int64_t j = 0; y != NULL && j < c->cols; j++)
            y[i * c->cols + j] = (s[j] - mean) * rstd * c->w[j] + (c->b != NULL ? c->b[j] : 0.0);
        if (means != NULL)
            means[i] = mean;
        if (rstds != NULL)
            rstds[i] = rstd;
    }
}

/* sum of dy y(s) + ds s for one row: what the backward differentiates */
static double norm_objective(const void *context)
{
    const norm_case *c = context;
    double y[8200], sum;
    norm_of(c, y, NULL, NULL);
    sum = inner(c->dy, y, c->cols);
    return c->ds != NULL ? sum + inner(c->ds, c->s, c->cols) : sum;
}

static void check_norm(bool layer)
{
    FOR_CONFIGS(c)
    for (int variant = 0; variant < 3; variant++) { /* no residual; with residual and s; residual, s not wanted */
        const int64_t n = c->rows * c->cols;
        /* without optimisation the CPU adds a row in one chain, whose rounding grows with its length */
        const double close = CLOSE * fmax(1.0, (double)c->cols / 1000.0);
        const mat *x = mat_random(c->rows, c->cols, dtype_of(c), false), *w = mat_random(0, c->cols, LR_F32, false);
        const mat *r = variant > 0 ? mat_scaled(c->rows, c->cols, dtype_of(c), false, 3.0) : NULL;
        const mat *b = layer ? mat_random(0, c->cols, LR_F32, false) : NULL;
        mat *y = mat_new(c->rows, c->cols, dtype_of(c), variant == 1), *mean = mat_new(0, c->rows, LR_F32, false);
        mat *rstd = mat_new(0, c->rows, LR_F32, false);
        mat *s = variant == 1 ? mat_new(c->rows, c->cols, dtype_of(c), false) : NULL;
        norm_case reference = {layer, c->rows, c->cols, 1e-5, w->v, layer ? b->v : NULL, doubles(n), NULL, NULL};
        for (int64_t i = 0; i < n; i++)
            reference.s[i] = x->v[i] + (r != NULL ? r->v[i] : 0.0);
        if (s != NULL) { /* y is the norm of what s stores */
            OK(layer ? lr_op_layer_norm(y->t, s->t, mean->t, rstd->t, x->t, r->t, w->t, b->t, 1e-5)
                     : lr_op_rms_norm(y->t, s->t, rstd->t, x->t, r->t, w->t, 1e-5));
            COMPARE(s, reference.s, CLOSE);
            for (int64_t i = 0; i < n; i++)
                reference.s[i] = element(s->t, i);
        } else {
            OK(layer ? lr_op_layer_norm(y->t, NULL, mean->t, rstd->t, x->t, r != NULL ? r->t : NULL, w->t, b->t, 1e-5)
                     : lr_op_rms_norm(y->t, NULL, rstd->t, x->t, r != NULL ? r->t : NULL, w->t, 1e-5));
        }
        double *expected = doubles(n), *means = doubles(c->rows), *rstds = doubles(c->rows);
        norm_of(&reference, expected, means, rstds);
        if (c->cols == 1 && layer) /* the deviation from the mean of one number is rounding alone */
            continue;
        COMPARE(y, expected, close);
        COMPARE(rstd, rstds, close);
        if (layer)
            COMPARE(mean, means, close);
    }
}

static void check_norm_backward(bool layer)
{
    FOR_CONFIGS(c)
    for (int variant = 0; variant < 4; variant++) { /* no ds; ds; dx is ds; dx is dy */
        const int64_t n = c->rows * c->cols;
        if (c->cols == 1) /* of one number only the sign is left: the derivative is rounding alone */
            continue;
        if (c->cols > 8000 && device == LR_CPU) /* a case of its own on GPUs alone, and slow to differentiate */
            continue;
        mat *dy = mat_random(c->rows, c->cols, dtype_of(c), variant < 3), /* a gradient's rows need not be close */
            *ds = mat_random(c->rows, c->cols, dtype_of(c), false);
        const mat *s = mat_scaled(c->rows, c->cols, dtype_of(c), false, 2.0),
                  *w = mat_random(0, c->cols, LR_F32, false);
        mat *mean = mat_new(0, c->rows, LR_F32, false), *rstd = mat_new(0, c->rows, LR_F32, false);
        mat *dx = variant < 2 ? mat_new(c->rows, c->cols, dtype_of(c), false) : variant == 2 ? ds : dy;
        norm_case all = {layer, c->rows, c->cols, 1e-5, w->v, NULL, s->v, NULL, NULL};
        norm_of(&all, NULL, mean->v, rstd->v);
        mat_put(mean);
        mat_put(rstd);
        double *expected = doubles(n);
        for (int64_t i = 0; i < c->rows && (c->cols < 4000 || variant == 0); i++) {
            const norm_case row = {layer,
                                   1,
                                   c->cols,
                                   1e-5,
                                   w->v,
                                   NULL,
                                   s->v + i * c->cols,
                                   dy->v + i * c->cols,
                                   variant > 0 ? ds->v + i * c->cols : NULL};
            double *d = derivative(row.s, c->cols, norm_objective, &row);
            memcpy(expected + i * c->cols, d, (size_t)c->cols * sizeof *d);
            free(d);
            block_count--;
        }
        if (c->cols >= 4000 && variant > 0)
            continue;
        lr_tensor *ds_t = variant > 0 ? ds->t : NULL;
        OK(layer ? lr_op_layer_norm_backward(dx->t, dy->t, s->t, w->t, mean->t, rstd->t, ds_t)
                 : lr_op_rms_norm_backward(dx->t, dy->t, s->t, w->t, rstd->t, ds_t));
        COMPARE_SUM(dx, expected, 10.0 * CLOSE); /* a row whose values lie close together magnifies its rounding */
    }
}

TEST(rms_norm)
{
    check_norm(false);
}

TEST(rms_norm_backward)
{
    check_norm_backward(false);
}

TEST(layer_norm)
{
    check_norm(true);
}

TEST(layer_norm_backward)
{
    check_norm_backward(true);
}

/* A mean a thousand times the deviation: E[x^2] - E[x]^2 in f32 would have no digit left. */
TEST(layer_norm_far_from_zero)
{
    mat *x = mat_new(2, 384, LR_F32, false);
    for (int i = 0; i < 2 * 384; i++)
        x->v[i] = 4000.0 + normal();
    mat_put(x);
    mat *w = mat_new(0, 384, LR_F32, false), *b = mat_new(0, 384, LR_F32, false), *y = mat_new(2, 384, LR_F32, false);
    mat *mean = mat_new(0, 2, LR_F32, false), *rstd = mat_new(0, 2, LR_F32, false);
    for (int i = 0; i < 384; i++)
        w->v[i] = 1.0;
    mat_put(w);
    mat_put(b);
    norm_case reference = {true, 2, 384, 1e-5, w->v, b->v, x->v, NULL, NULL};
    double *expected = doubles(2 * 384);
    norm_of(&reference, expected, NULL, NULL);
    OK(lr_op_layer_norm(y->t, NULL, mean->t, rstd->t, x->t, NULL, w->t, b->t, 1e-5));
    COMPARE(y, expected, 1e-3); /* the mean is known to 2^-12 of the deviation */
    release();
}
