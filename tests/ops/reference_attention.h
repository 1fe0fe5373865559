/* reference_attention.h: cases of test_reference.c: attention and its backward.
 *
 * The reference is the definition, one query at a time in double. Its gradient is the textbook formula; that formula is
 * itself checked against central differences of the reference on small cases, so what the op is compared with is not
 * another guess.
 *
 * In bf16, probabilities and their gradients may be rounded to bf16 where a product takes them, as flash attention does:
 * each term of a result is then off by up to 2^-8 of itself. The reference therefore sums the absolute values of the
 * terms as well, and that is all the more tolerance that bf16 gets. */

typedef struct attention_case {
    const int *lengths;
    int sequences;
    int64_t heads, kv_heads, dim;
    bool causal;
} attention_case;

/* Offsets of head h's columns in a row of q and of k. */
typedef struct attention_values {
    const attention_case *c;
    double scale;
    int64_t tokens, q_width, k_width;
    double *q, *k, *v, *d_o;                          /* inputs */
    double *o, *lse, *dq, *dk, *dv, *row;             /* results; row: one row of probabilities */
    double *o_terms, *dq_terms, *dk_terms, *dv_terms; /* their terms' absolute values, summed */
} attention_values;

/* Scores of query i of a sequence that starts at `start`, into a->row; returns how many keys it sees. */
static int64_t attention_scores(const attention_values *a, int64_t start, int64_t length, int64_t i, int64_t head)
{
    const attention_case *c = a->c;
    const int64_t n = c->causal ? i + 1 : length, kv = head / (c->heads / c->kv_heads) * c->dim;
    for (int64_t j = 0; j < n; j++)
        a->row[j] = a->scale * inner(a->q + (start + i) * a->q_width + head * c->dim,
                                     a->k + (start + j) * a->k_width + kv, c->dim);
    return n;
}

static void attention_reference(const attention_values *a)
{
    const attention_case *c = a->c;
    for (int64_t b = 0, start = 0; b < c->sequences; start += c->lengths[b++])
        for (int64_t head = 0; head < c->heads; head++)
            for (int64_t i = 0; i < c->lengths[b]; i++) {
                const int64_t n = attention_scores(a, start, c->lengths[b], i, head);
                const int64_t kv = head / (c->heads / c->kv_heads) * c->dim;
                double *o = a->o + (start + i) * a->q_width + head * c->dim, top = a->row[0], sum = 0.0;
                for (int64_t j = 0; j < n; j++)
                    top = fmax(top, a->row[j]);
                for (int64_t j = 0; j < n; j++)
                    sum += exp(a->row[j] - top);
                a->lse[(start + i) * c->heads + head] = top + log(sum);
                double *terms = a->o_terms + (o - a->o);
                for (int64_t d = 0; d < c->dim; d++)
                    o[d] = terms[d] = 0.0;
                for (int64_t j = 0; j < n; j++) {
                    const double p = exp(a->row[j] - top) / sum, *v = a->v + (start + j) * a->k_width + kv;
                    for (int64_t d = 0; d < c->dim; d++) {
                        o[d] += p * v[d];
                        terms[d] += fabs(p * v[d]);
                    }
                }
            }
}

static void attention_gradient_reference(const attention_values *a)
{
    const attention_case *c = a->c;
    for (int64_t b = 0, start = 0; b < c->sequences; start += c->lengths[b++])
        for (int64_t head = 0; head < c->heads; head++)
            for (int64_t i = 0; i < c->lengths[b]; i++) {
                const int64_t n = attention_scores(a, start, c->lengths[b], i, head);
                const int64_t kv = head / (c->heads / c->kv_heads) * c->dim,
                              at = (start + i) * a->q_width + head * c->dim;
                const double lse = a->lse[(start + i) * c->heads + head], along = inner(a->d_o + at, a->o + at, c->dim);
                for (int64_t j = 0; j < n; j++) {
                    const int64_t key = (start + j) * a->k_width + kv;
                    const double p = exp(a->row[j] - lse),
                                 ds = p * (inner(a->d_o + at, a->v + key, c->dim) - along) * a->scale;
                    for (int64_t d = 0; d < c->dim; d++) {
                        a->dq[at + d] += ds * a->k[key + d];
                        a->dk[key + d] += ds * a->q[at + d];
                        a->dv[key + d] += p * a->d_o[at + d];
                        a->dq_terms[at + d] += fabs(ds * a->k[key + d]);
                        a->dk_terms[key + d] += fabs(ds * a->q[at + d]);
                        a->dv_terms[key + d] += fabs(p * a->d_o[at + d]);
                    }
                }
            }
}

static attention_values attention_values_of(const attention_case *c)
{
    attention_values a = {
        .c = c, .scale = 1.0 / sqrt((double)c->dim), .q_width = c->heads * c->dim, .k_width = c->kv_heads * c->dim};
    int64_t longest = 0;
    for (int b = 0; b < c->sequences; b++) {
        a.tokens += c->lengths[b];
        longest = lr_max64(longest, c->lengths[b]);
    }
    a.o = doubles(a.tokens * a.q_width);
    a.lse = doubles(a.tokens * c->heads);
    a.dq = doubles(a.tokens * a.q_width);
    a.dk = doubles(a.tokens * a.k_width);
    a.dv = doubles(a.tokens * a.k_width);
    a.o_terms = doubles(a.tokens * a.q_width);
    a.dq_terms = doubles(a.tokens * a.q_width);
    a.dk_terms = doubles(a.tokens * a.k_width);
    a.dv_terms = doubles(a.tokens * a.k_width);
    a.row = doubles(longest);
    return a;
}

/* Where q, k and v lie, and their gradients: each by itself, in wider tensors, or side by side in one, as a projection makes them.
 * */
typedef enum placement { ALONE, APART, SIDE_BY_SIDE, PLACEMENTS } placement;

typedef struct attention_mats {
    mat *q, *k, *v;
} attention_mats;

static attention_mats place_attention(const attention_values *a, int dtype, placement where)
{
    if (where != SIDE_BY_SIDE)
        return (attention_mats){mat_new(a->tokens, a->q_width, dtype, where == APART),
                                mat_new(a->tokens, a->k_width, dtype, where == APART),
                                mat_new(a->tokens, a->k_width, dtype, where == APART)};
    const mat *all = mat_new(a->tokens, a->q_width + 2 * a->k_width, dtype, false);
    return (attention_mats){mat_slice(all, 0, a->q_width), mat_slice(all, a->q_width, a->k_width),
                            mat_slice(all, a->q_width + a->k_width, a->k_width)};
}

/* |got - expected| / |expected|, over all elements: what rounding to nearest leaves of the bounds above. Where all terms cancel, as
 * with one key, the expected norm is 0. */
static void check_relative_error(const mat *m, const double *expected, const char *what)
{
    const double allowed = m->t->dtype == LR_BF16 ? 3e-3 : m->t->dtype == LR_F16 ? 4e-4 : 1e-5;
    const int64_t n = m->rows * m->cols;
    double *values = elements_of(m->t), difference = 0.0, norm = 0.0;
    for (int64_t i = 0; i < n; i++) {
        difference += (values[i] - expected[i]) * (values[i] - expected[i]);
        norm += expected[i] * expected[i];
    }
    free(values);
    if (!(sqrt(difference) <= allowed * sqrt(norm) + 4.0 * CLOSE * sqrt((double)n)))
        LR_TEST_FAIL("%s of [%lld, %lld] %s: relative error %.3g, allowed %.3g", what, (long long)m->rows,
                     (long long)m->cols, lr_dtype_name(m->t->dtype), sqrt(difference / norm), allowed);
}

static void check_attention(const attention_case *c, int dtype, placement where, bool backward)
{
    attention_values a = attention_values_of(c);
    const int64_t longest = 8192;
    const attention_mats x = place_attention(&a, dtype, where), dx = place_attention(&a, dtype, where);
    mat *q = mat_draw(x.q, 1.5), *k = mat_draw(x.k, 1.0), *v = mat_draw(x.v, 1.0), *dq = dx.q, *dk = dx.k, *dv = dx.v;
    mat *d_o = mat_random(a.tokens, a.q_width, dtype, false);
    const mat *cu = mat_cu(c->lengths, c->sequences);
    mat *o = mat_new(a.tokens, a.q_width, dtype, false), *lse = mat_new(a.tokens, c->heads, LR_F32, false);
    a.q = q->v, a.k = k->v, a.v = v->v, a.d_o = d_o->v;
    attention_reference(&a);
    OK(lr_op_attention(o->t, lse->t, q->t, k->t, v->t, cu->t, c->dim, longest, a.scale, c->causal));
    COMPARE_TERMS(o, a.o, CLOSE, a.o_terms);
    COMPARE(lse, a.lse, CLOSE);
    check_relative_error(o, a.o, "o");
    if (!backward) {
        release();
        return;
    }
    double *stored = elements_of(o->t); /* the backward gets o as the forward stored it */
    memcpy(a.o, stored, (size_t)(a.tokens * a.q_width) * sizeof *stored);
    free(stored);
    attention_gradient_reference(&a);
    OK(lr_op_attention_backward(dq->t, dk->t, dv->t, d_o->t, q->t, k->t, v->t, o->t, lse->t, cu->t, c->dim, longest,
                                a.scale, c->causal));
    /* lse is given in f32: a score of 20 leaves 2^-20 of each probability in doubt */
    COMPARE_TERMS(dq, a.dq, 4.0 * CLOSE, a.dq_terms);
    COMPARE_TERMS(dk, a.dk, 4.0 * CLOSE, a.dk_terms);
    COMPARE_TERMS(dv, a.dv, 4.0 * CLOSE, a.dv_terms);
    check_relative_error(dq, a.dq, "dq");
    check_relative_error(dk, a.dk, "dk");
    check_relative_error(dv, a.dv, "dv");
    release();
}

/* Sequences of one tile and of several, that end within one, with it and after it; 512: many of a kernel's rings. */
static const int ONE[] = {1}, SHORT[] = {1, 2, 17, 1, 33}, UNEVEN[] = {12, 64, 1, 65, 33, 130}, LONGER[] = {512};
static const int LONG[] = {300, 1, 205, 192, 48, 97};

/* The head_dims of the tensor cores come first: what a mutant of their kernels gets wrong is soon seen. A modelled device is slow:
 * of the three places only one is tried there with each head_dim, dtype and mask, a different one each time, and f32 only beside
 * bf16. */
static void check_attention_cases(bool backward)
{
    static const int64_t dims[] = {64, 32, 96, 128, 8, 16, 24, 176};
    for (int64_t i = 0; i < (int64_t)LR_COUNT_OF(dims); i++)
        for (int variant = 0; variant < 4 * PLACEMENTS; variant++) {
            const bool causal = (variant & 1) != 0;
            const placement where = (placement)(variant / 4);
            const int dtype = variant & 2 ? HALF : LR_F32;
            if (MODELLED && ((i + variant) % PLACEMENTS != 0 || (dtype == LR_F32 && HALF != LR_BF16)))
                continue;
            check_attention(&(attention_case){SHORT, 5, 4, 2, dims[i], causal}, dtype, where, backward);
            check_attention(&(attention_case){ONE, 1, 3, 1, dims[i], causal}, dtype, where, backward);
        }
    for (int variant = 0; variant < 4; variant++) {
        const int dtype = variant & 2 ? HALF : LR_F32;
        const bool causal = (variant & 1) != 0;
        if (MODELLED && dtype == LR_F32 && HALF != LR_BF16)
            continue;
        for (int64_t dim = 32; dim <= 128; dim += 32)
            check_attention(&(attention_case){UNEVEN, 6, dim == 96 ? 3 : 2, dim == 32 ? 2 : 1, dim, causal}, dtype,
                            SIDE_BY_SIDE, backward);
        check_attention(&(attention_case){LONGER, 1, 1, 1, 32, causal}, dtype, SIDE_BY_SIDE, backward);
        if (MODELLED)
            continue;
        check_attention(&(attention_case){LONG, 6, 2, 2, 32, causal}, dtype, APART, backward);
        check_attention(&(attention_case){LONG, 6, 6, 2, 64, causal}, dtype, ALONE, backward);
    }
}

TEST(attention)
{
    check_attention_cases(false);
}

/* What attention_backward is compared with above: its formula against central differences of the forward. */
static double attention_objective(const void *context)
{
    const attention_values *a = context;
    attention_reference(a);
    return inner(a->o, a->d_o, a->tokens * a->q_width);
}

TEST(attention_backward)
{
    static const int lengths[] = {5, 1, 3};
    for (int causal = 0; causal < 2; causal++, release()) {
        const attention_case c = {lengths, 3, 4, 2, 8, causal};
        attention_values a = attention_values_of(&c);
        a.q = mat_random(a.tokens, a.q_width, LR_F32, false)->v;
        a.k = mat_random(a.tokens, a.k_width, LR_F32, false)->v;
        a.v = mat_random(a.tokens, a.k_width, LR_F32, false)->v;
        a.d_o = mat_random(a.tokens, a.q_width, LR_F32, false)->v;
        attention_reference(&a);
        attention_gradient_reference(&a);
        const struct {
            double *x, *gradient;
            int64_t n;
        } inputs[] = {
            {a.q, a.dq, a.tokens * a.q_width}, {a.k, a.dk, a.tokens * a.k_width}, {a.v, a.dv, a.tokens * a.k_width}};
        for (int i = 0; i < 3; i++) {
            const double *numeric = derivative(inputs[i].x, inputs[i].n, attention_objective, &a);
            for (int64_t j = 0; j < inputs[i].n; j++)
                CHECK_NEAR(inputs[i].gradient[j], numeric[j], 1e-7);
        }
    }
    check_attention_cases(true);
}

/* Scores far beyond what exp can take, and rows whose maximum comes in a later block of keys. */
TEST(attention_large_scores)
{
    static const int lengths[] = {400};
    const attention_case c = {lengths, 1, 1, 1, 32, false};
    attention_values a = attention_values_of(&c);
    const mat *q = mat_scaled(400, 32, LR_F32, false, 20.0), *k = mat_scaled(400, 32, LR_F32, false, 20.0);
    const mat *v = mat_random(400, 32, LR_F32, false), *cu = mat_cu(lengths, 1);
    mat *o = mat_new(400, 32, LR_F32, false), *lse = mat_new(400, 1, LR_F32, false);
    a.q = q->v, a.k = k->v, a.v = v->v;
    attention_reference(&a);
    OK(lr_op_attention(o->t, lse->t, q->t, k->t, v->t, cu->t, 32, 400, a.scale, 0));
    COMPARE(lse, a.lse, CLOSE);
    COMPARE(o, a.o, 1e-3); /* scores near 1000 are known to 2^-14 */
    release();
}

TEST(attention_rejects)
{
    static const int lengths[] = {3, 2};
    mat *q = mat_random(5, 16, LR_F32, false), *o = mat_new(5, 16, LR_F32, false), *lse = mat_new(5, 2, LR_F32, false);
    const double backwards[] = {0, 4, 3, 5}, shortened[] = {0, 3, 4};
    lr_tensor *cu = mat_cu(lengths, 2)->t;
    REJECTED(lr_op_attention(o->t, lse->t, q->t, q->t, q->t, cu, 8, 2, 1.0, 0));
    CHECK_HAS(lr_last_error(), device == LR_CPU ? "sequence 0 has 3 tokens" : "cu[1] is 3, expected 1 to 2");
    REJECTED(lr_op_attention(o->t, lse->t, q->t, q->t, q->t, mat_of(backwards, 4, LR_I32)->t, 8, 8, 1.0, 0));
    REJECTED(lr_op_attention(o->t, lse->t, q->t, q->t, q->t, mat_of(shortened, 3, LR_I32)->t, 8, 8, 1.0, 0));
    CHECK_HAS(lr_last_error(), device == LR_CPU ? "expected 0 to 5" : "cu[2] is 4, expected 5 to 5");
    CHECK_INT(lr_op_attention(o->t, lse->t, q->t, q->t, q->t, cu, 5, 8, 1.0, 0), LR_ESHAPE);
    CHECK_INT(lr_op_attention(o->t, lse->t, q->t, q->t, q->t, cu, 0, 8, 1.0, 0), LR_ESHAPE);
    CHECK_INT(lr_op_attention(o->t, lse->t, q->t, q->t, q->t, cu, 16, 8, 1.0, 0), LR_ESHAPE);
    CHECK_INT(lr_op_attention(o->t, lse->t, q->t, q->t, q->t, cu, 8, 8, 0.0, 0), LR_EINVAL);
    CHECK_INT(lr_op_attention(o->t, lse->t, q->t, q->t, q->t, cu, 8, 8, (double)NAN, 0), LR_EINVAL);
    const double nothing = 0;
    CHECK_INT(lr_op_attention(o->t, lse->t, q->t, q->t, q->t, mat_of(&nothing, 1, LR_I32)->t, 8, 8, 1.0, 0), LR_ESHAPE);
    release();
}
