/* reference_loss.h: cases of test_reference.c: pooling, losses, optimisation. */

static double pool_weight_of(int64_t mode, int64_t i, int64_t n)
{
    const double weights[] = {i == 0, 1.0 / (double)n, i == n - 1, 1.0 / sqrt((double)n),
                              (double)(i + 1) * 2.0 / (double)(n * (n + 1))};
    return weights[mode];
}

static const int POOLED[] = {1, 3, 1, 33, 17};
enum { POOLED_TOKENS = 55 };

TEST(pool)
{
    FOR_CONFIGS(c)
    for (int mode = 0; mode < 5; mode++) {
        const mat *x = mat_random(POOLED_TOKENS, c->cols, dtype_of(c), false), *cu = mat_cu(POOLED, 5);
        mat *y = mat_new(5, c->cols, LR_F32, false);
        double *expected = doubles(5 * c->cols);
        for (int64_t b = 0, token = 0; b < 5; b++)
            for (int64_t i = 0; i < POOLED[b]; i++, token++)
                for (int64_t j = 0; j < c->cols; j++)
                    expected[b * c->cols + j] += pool_weight_of(mode, i, POOLED[b]) * x->v[token * c->cols + j];
        OK(lr_op_pool(y->t, x->t, cu->t, mode));
        COMPARE(y, expected, CLOSE);
        release();
    }
}

TEST(pool_backward)
{
    FOR_CONFIGS(c)
    for (int mode = 0; mode < 5; mode++) {
        const mat *dy = mat_random(5, c->cols, LR_F32, false), *cu = mat_cu(POOLED, 5);
        mat *dx = mat_new(POOLED_TOKENS, c->cols, dtype_of(c), false);
        double *expected = doubles(POOLED_TOKENS * c->cols);
        for (int64_t b = 0, token = 0; b < 5; b++) /* pool is linear in x: its weights are its derivative */
            for (int64_t i = 0; i < POOLED[b]; i++, token++)
                for (int64_t j = 0; j < c->cols; j++)
                    expected[token * c->cols + j] = pool_weight_of(mode, i, POOLED[b]) * dy->v[b * c->cols + j];
        OK(lr_op_pool_backward(dx->t, dy->t, cu->t, mode));
        COMPARE(dx, expected, CLOSE);
        release();
    }
}

TEST(pool_rejects)
{
    mat *x = mat_random(POOLED_TOKENS, 4, LR_F32, false), *y = mat_new(5, 4, LR_F32, false);
    const double gap[] = {0, 1, 4, 4, 38, 55};
    CHECK_INT(lr_op_pool(y->t, x->t, mat_cu(POOLED, 5)->t, 5), LR_EINVAL);
    REJECTED(lr_op_pool(y->t, x->t, mat_of(gap, 6, LR_I32)->t, 1));
    CHECK_HAS(lr_last_error(), device == LR_CPU ? "sequence 2 has 0 tokens" : "cu[3] is 4, expected 5 to 55");
    REJECTED(lr_op_pool_backward(x->t, y->t, mat_of(gap, 6, LR_I32)->t, 1));
    release();
}

/* ---- rows ------------------------------------------------------------------------------------------------------------- */
typedef struct row_case {
    double *x;
    const double *g;
    int64_t n, label;
    double eps;
} row_case;

static double l2_objective(const void *context)
{
    const row_case *c = context;
    return inner(c->x, c->g, c->n) / fmax(sqrt(inner(c->x, c->x, c->n)), c->eps);
}

TEST(l2_normalize)
{
    FOR_CONFIGS(c)
    {
        mat *x = mat_random(c->rows, c->cols, LR_F32, false), *y = mat_new(c->rows, c->cols, LR_F32, false);
        mat *norm = mat_new(0, c->rows, LR_F32, false);
        double *expected = doubles(c->rows * c->cols), *norms = doubles(c->rows);
        for (int64_t j = 0; j < c->cols && c->rows > 1; j++) /* a zero row stays zero */
            x->v[j] = 0.0;
        mat_put(x);
        for (int64_t i = 0; i < c->rows * c->cols; i++) {
            const double *row = x->v + i / c->cols * c->cols;
            norms[i / c->cols] = sqrt(inner(row, row, c->cols));
            expected[i] = x->v[i] / fmax(norms[i / c->cols], 1e-12);
        }
        OK(lr_op_l2_normalize(y->t, norm->t, x->t, 1e-12));
        COMPARE(y, expected, CLOSE);
        COMPARE(norm, norms, CLOSE);
    }
}

TEST(l2_normalize_backward)
{
    for (int64_t cols = 1; cols < 70; cols += 17, release())
        for (int small = 0; small < 2; small++) {
            const double eps = small ? 1e3 : 1e-12; /* |x| below eps: the divisor is constant */
            mat *x = mat_random(7, cols, LR_F32, false), *y = mat_new(7, cols, LR_F32, false);
            mat *norm = mat_new(0, 7, LR_F32, false), *dx = mat_new(7, cols, LR_F32, false);
            const mat *dy = mat_random(7, cols, LR_F32, false);
            double *expected = doubles(7 * cols);
            OK(lr_op_l2_normalize(y->t, norm->t, x->t, eps));
            OK(lr_op_l2_normalize_backward(dx->t, dy->t, y->t, norm->t, eps));
            for (int64_t i = 0; i < 7; i++) {
                const row_case row = {x->v + i * cols, dy->v + i * cols, cols, 0, eps};
                memcpy(expected + i * cols, derivative(row.x, cols, l2_objective, &row),
                       (size_t)cols * sizeof *expected);
            }
            if (cols > 1 || small) /* of one number only the sign is left: its derivative is rounding alone */
                COMPARE(dx, expected, 2.0 * CLOSE);
        }
}

TEST(row_dot)
{
    FOR_CONFIGS(c)
    {
        const mat *a = mat_random(c->rows, c->cols, LR_F32, false), *b = mat_random(c->rows, c->cols, LR_F32, false);
        mat *y = mat_new(0, c->rows, LR_F32, false);
        double *expected = doubles(c->rows);
        for (int64_t i = 0; i < c->rows; i++)
            expected[i] = inner(a->v + i * c->cols, b->v + i * c->cols, c->cols);
        OK(lr_op_row_dot(y->t, a->t, b->t));
        COMPARE_SUM(y, expected, c->cols > 1000 ? 1e-4 : 4.0 * CLOSE); /* 4101 terms in one order or another */
    }
}

TEST(row_scale)
{
    FOR_CONFIGS(c)
    for (int accumulate = 0; accumulate < 2; accumulate++) {
        const double beta = accumulate ? -0.5 : 0.0;
        const mat *x = mat_random(c->rows, c->cols, LR_F32, false), *s = mat_random(0, c->rows, LR_F32, false);
        mat *y = accumulate ? mat_random(c->rows, c->cols, LR_F32, false) : mat_new(c->rows, c->cols, LR_F32, false);
        double *expected = doubles(c->rows * c->cols);
        for (int64_t i = 0; i < c->rows * c->cols; i++)
            expected[i] = s->v[i / c->cols] * x->v[i] + (accumulate ? beta * y->v[i] : 0.0);
        OK(lr_op_row_scale(y->t, x->t, s->t, beta));
        COMPARE_SUM(y, expected, CLOSE);
    }
}

/* ---- losses ----------------------------------------------------------------------------------------------------------- */
static double mse_objective(const void *context)
{
    const row_case *c = context;
    double sum = 0.0;
    for (int64_t i = 0; i < c->n; i++)
        sum += (c->x[i] - c->g[i]) * (c->x[i] - c->g[i]);
    return sum / (double)c->n;
}

TEST(mse)
{
    for (int64_t n = 1; n < 200; n += 33, release()) {
        const mat *x = mat_random(0, n, LR_F32, false), *y = mat_random(0, n, LR_F32, false);
        const row_case c = {x->v, y->v, n, 0, 0.0};
        const double expected = mse_objective(&c);
        mat *loss = mat_new(0, 1, LR_F32, false);
        OK(lr_op_mse(loss->t, x->t, y->t));
        COMPARE(loss, &expected, CLOSE);
    }
}

TEST(mse_backward)
{
    const double upstream = 3.0;
    for (int64_t n = 1; n < 200; n += 33, release()) {
        const mat *x = mat_random(0, n, LR_F32, false), *y = mat_random(0, n, LR_F32, false);
        const row_case c = {x->v, y->v, n, 0, 0.0};
        double *expected = derivative(x->v, n, mse_objective, &c);
        mat *dx = mat_new(0, n, LR_F32, false);
        for (int64_t i = 0; i < n; i++)
            expected[i] *= upstream;
        OK(lr_op_mse_backward(dx->t, mat_of(&upstream, 1, LR_F32)->t, x->t, y->t));
        COMPARE(dx, expected, CLOSE);
    }
}

static double lse_of(const double *x, int64_t n)
{
    double top = x[0], sum = 0.0;
    for (int64_t i = 0; i < n; i++)
        top = fmax(top, x[i]);
    for (int64_t i = 0; i < n; i++)
        sum += exp(x[i] - top);
    return top + log(sum);
}

static double cross_entropy_objective(const void *context)
{
    const row_case *c = context;
    return lse_of(c->x, c->n) - c->x[c->label];
}

TEST(cross_entropy)
{
    FOR_CONFIGS(c)
    {
        const mat *scores = mat_scaled(c->rows, c->cols, LR_F32, false, 20.0),
                  *labels = mat_ids(c->rows, LR_I32, c->cols);
        mat *loss = mat_new(0, 1, LR_F32, false), *lse = mat_new(0, c->rows, LR_F32, false);
        double *lses = doubles(c->rows), mean = 0.0;
        for (int64_t i = 0; i < c->rows; i++) {
            lses[i] = lse_of(scores->v + i * c->cols, c->cols);
            mean += (lses[i] - scores->v[i * c->cols + (int64_t)labels->v[i]]) / (double)c->rows;
        }
        OK(lr_op_cross_entropy(loss->t, lse->t, scores->t, labels->t));
        COMPARE(lse, lses, CLOSE);
        CHECK_NEAR(element(loss->t, 0), mean, 1e-5);
    }
}

TEST(cross_entropy_backward)
{
    const double upstream = 3.0;
    for (int64_t cols = 1; cols < 70; cols += 17, release()) {
        const mat *scores = mat_scaled(9, cols, LR_F32, false, 3.0), *labels = mat_ids(9, LR_I32, cols);
        mat *loss = mat_new(0, 1, LR_F32, false), *lse = mat_new(0, 9, LR_F32, false),
            *d = mat_new(9, cols, LR_F32, false);
        double *expected = doubles(9 * cols);
        OK(lr_op_cross_entropy(loss->t, lse->t, scores->t, labels->t));
        OK(lr_op_cross_entropy_backward(d->t, mat_of(&upstream, 1, LR_F32)->t, scores->t, lse->t, labels->t));
        for (int64_t i = 0; i < 9; i++) {
            const row_case row = {scores->v + i * cols, NULL, cols, (int64_t)labels->v[i], 0.0};
            const double *g = derivative(row.x, cols, cross_entropy_objective, &row);
            for (int64_t j = 0; j < cols; j++)
                expected[i * cols + j] = upstream / 9.0 * g[j];
        }
        for (int64_t i = 0; i < 9 * cols; i++) /* a probability near 1 leaves 2^-24 of it */
            CHECK_NEAR(element(d->t, i), expected[i], 1e-6);
    }
}

TEST(cross_entropy_rejects)
{
    const double labels[] = {0, 3};
    const mat *scores = mat_random(2, 3, LR_F32, false);
    mat *loss = mat_new(0, 1, LR_F32, false), *lse = mat_new(0, 2, LR_F32, false), *d = mat_new(2, 3, LR_F32, false);
    REJECTED(lr_op_cross_entropy(loss->t, lse->t, scores->t, mat_of(labels, 2, LR_I32)->t));
    CHECK_HAS(lr_last_error(), "[1] is 3");
    REJECTED(lr_op_cross_entropy_backward(d->t, loss->t, scores->t, lse->t, mat_of(labels, 2, LR_I32)->t));
    release();
}

/* ---- optimisation ----------------------------------------------------------------------------------------------------- */
TEST(clip_factor)
{
    static const int64_t sizes[] = {1, 17, 16384, 50001};
    for (int i = 0; i < 4; i++)
        for (int variant = 0; variant < 3; variant++, release()) {
            const double max_norm = variant == 0 ? 0.0 : variant == 1 ? 0.01 : 1e6, scale = variant == 2 ? 1.0 : 8.0;
            const mat *g = mat_random(0, sizes[i], LR_F32, false);
            mat *factor = mat_new(0, 1, LR_F32, false), *norm = mat_new(0, 1, LR_F32, false);
            const double length = sqrt(inner(g->v, g->v, sizes[i])) / scale;
            const double expected = (max_norm > 0.0 ? fmin(1.0, max_norm / (length + 1e-6)) : 1.0) / scale;
            OK(lr_op_clip_factor(factor->t, norm->t, g->t, variant == 2 ? NULL : mat_of(&scale, 1, LR_F32)->t,
                                 max_norm));
            COMPARE(norm, &length, 1e-7);
            COMPARE(factor, &expected, 1e-7);
        }
}

TEST(clip_factor_overflow)
{
    const double bad[] = {INFINITY, -INFINITY, NAN};
    for (int i = 0; i < 3; i++, release()) {
        mat *g = mat_random(0, 100, LR_F32, false), *factor = mat_new(0, 1, LR_F32, false),
            *norm = mat_new(0, 1, LR_F32, false);
        g->v[37] = bad[i];
        OK(lr_op_clip_factor(factor->t, norm->t, mat_put(g)->t, NULL, 0.0));
        CHECK_NEAR(element(factor->t, 0), 0.0, 0.0);
        CHECK(!isfinite(element(norm->t, 0)));
    }
}

/* Three clean steps double it, one that overflows halves it, and it never becomes infinite. */
TEST(loss_scale)
{
    static const struct {
        double norm, scale, clean;
    } steps[] = {{1.0, 65536.0, 1.0},      {0.0, 65536.0, 2.0}, {3e38, 131072.0, 0.0}, {1.0, 131072.0, 1.0},
                 {INFINITY, 65536.0, 0.0}, {NAN, 32768.0, 0.0}, {1.0, 32768.0, 1.0}};
    const double start[] = {65536.0, 0.0}, highest[] = {0x1p127, 2.0};
    const mat *scale = mat_of(&start[0], 1, LR_F32), *clean = mat_of(&start[1], 1, LR_F32);
    for (int i = 0; i < 7; i++) {
        OK(lr_op_loss_scale(scale->t, clean->t, mat_of(&steps[i].norm, 1, LR_F32)->t, 2.0, 0.5, 3));
        CHECK_NEAR(element(scale->t, 0), steps[i].scale, 0.0);
        CHECK_NEAR(element(clean->t, 0), steps[i].clean, 0.0);
    }
    scale = mat_of(&highest[0], 1, LR_F32);
    clean = mat_of(&highest[1], 1, LR_F32);
    OK(lr_op_loss_scale(scale->t, clean->t, mat_of(&steps[0].norm, 1, LR_F32)->t, 2.0, 0.5, 3));
    CHECK_NEAR(element(scale->t, 0), 0x1p127, 0.0);
    CHECK_NEAR(element(clean->t, 0), 0.0, 0.0);
    CHECK_INT(lr_op_loss_scale(scale->t, clean->t, scale->t, 2.0, 0.5, 0), LR_EINVAL);
    CHECK_INT(lr_op_loss_scale(scale->t, clean->t, scale->t, 2.0, 0.0, 3), LR_EINVAL);
    release();
}

TEST(adamw)
{
    enum { N = 1001 };
    const double lr = 3e-3, beta1 = 0.9, beta2 = 0.999, eps = 1e-8, decay = 0.1, factor = 0.5;
    mat *p = mat_random(0, N, LR_F32, false), *m = mat_new(0, N, LR_F32, false), *v = mat_new(0, N, LR_F32, false);
    OK(lr_tensor_fill(m->t, 0.0));
    OK(lr_tensor_fill(v->t, 0.0));
    const mat *scale = mat_of(&factor, 1, LR_F32);
    for (int step = 1; step <= 5; step++) {
        const mat *g = mat_random(0, N, LR_F32, false);
        for (int i = 0; i < N; i++) {
            const double x = factor * g->v[i];
            p->v[i] -= lr * decay * p->v[i];
            m->v[i] = beta1 * m->v[i] + (1.0 - beta1) * x;
            v->v[i] = beta2 * v->v[i] + (1.0 - beta2) * x * x;
            p->v[i] -= lr * (m->v[i] / (1.0 - pow(beta1, step))) / (sqrt(v->v[i] / (1.0 - pow(beta2, step))) + eps);
        }
        OK(lr_op_adamw(p->t, m->t, v->t, g->t, scale->t, lr, beta1, beta2, eps, decay, step));
        COMPARE(p, p->v, CLOSE);
        COMPARE(m, m->v, CLOSE);
        COMPARE(v, v->v, CLOSE);
    }
    /* a step whose gradient overflowed changes nothing, not even where g is NaN */
    const double zero = 0.0;
    mat *g = mat_new(0, N, LR_F32, false);
    OK(lr_op_adamw(p->t, m->t, v->t, g->t, mat_of(&zero, 1, LR_F32)->t, lr, beta1, beta2, eps, decay, 6));
    COMPARE(p, p->v, CLOSE);
    COMPARE(m, m->v, CLOSE);
    COMPARE(v, v->v, CLOSE);
    CHECK_INT(lr_op_adamw(p->t, m->t, v->t, p->t, scale->t, lr, beta1, beta2, eps, decay, 0), LR_EINVAL);
    release();
}
