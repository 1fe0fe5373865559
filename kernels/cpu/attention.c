/* attention.c: softmax(scale q k^T) v over packed sequences of unequal lengths, grouped heads, causal or not, and its
 * backward.
 *
 * One item of work is a sequence and a head (forward) or a sequence and a group of heads that share k and v (backward,
 * so that dk and dv have one writer). Items are dealt out longest first; which thread takes an item does not change its
 * result. Within an item, blocks of QUERIES rows meet blocks of KEYS columns, so no L x L matrix ever exists: forward
 * keeps a running maximum and sum for each row, backward computes the probabilities again from lse.
 *
 * All products are lr_tile_product's, on f32 copies of this head's rows. scale and log2(e) are folded into q, so that
 * the softmax is in powers of two: s = q k^T,  o = p v;   dp = do v^T,  ds = p (dp - sum(do o)),  dq = scale ds k,  dk
 * = ds^T q,  dv = p^T do. */
#include "cpu/tile.h"
#include <omp.h>

/* KEYS is a multiple of LR_PANEL and LR_ROW_UNIT. Rows of scores are SCORES apart: an odd number of cache lines, so
 * that a column of them does not fall into one set of the cache. */
static const float LOG2_E = 1.44269504f, LN_2 = 0.693147181f;
enum { QUERIES = 48, KEYS = 192, SCORES = KEYS + 16 };

/* ---- the sequences of a batch, longest first ------------------------------------------------------------------- */
typedef struct sequence {
    int32_t start, length;
} sequence;

static void sift_down(sequence *s, int64_t i, int64_t n)
{
    const sequence moved = s[i];
    for (int64_t child; (child = 2 * i + 1) < n; i = child) {
        if (child + 1 < n && s[child + 1].length < s[child].length)
            child++;
        if (s[child].length >= moved.length)
            break;
        s[i] = s[child];
    }
    s[i] = moved;
}

/* Heap sort: in place, and qsort may allocate. */
static void sort_longest_first(sequence *s, int64_t n)
{
    for (int64_t i = n / 2; i-- > 0;)
        sift_down(s, i, n);
    for (int64_t end = n - 1; end > 0; end--) {
        const sequence shortest = s[0];
        s[0] = s[end];
        s[end] = shortest;
        sift_down(s, 0, end);
    }
}

typedef struct attention_work {
    int64_t dim, wide_dim; /* head_dim, and that rounded up to whole panels */
    int64_t heads, kv_heads, batch, longest;
    float scale;
    bool causal;
    sequence *sequences;
    float *scratch; /* threads * per_thread floats */
    int64_t per_thread;
} attention_work;

static int attention_setup(attention_work *w, const char *op, const lr_tensor *q, const lr_tensor *k,
                           const lr_tensor *lse, const lr_tensor *cu, int64_t head_dim, int64_t max_length,
                           double scale, int64_t causal)
{
    LR_NEED_CPU_DTYPE(op, q);
    if (head_dim < 1 || head_dim > LR_RUN || q->shape[1] % head_dim != 0 || k->shape[1] % head_dim != 0 ||
        q->shape[1] % k->shape[1] != 0 || lse->shape[1] != q->shape[1] / head_dim)
        return lr_fail(LR_ESHAPE,
                       "%s: q has %lld columns, k %lld, lse %lld: these are no heads of %lld in equal groups", op,
                       (long long)q->shape[1], (long long)k->shape[1], (long long)lse->shape[1], (long long)head_dim);
    const int status = lr_check_cu(op, cu, q->shape[0], max_length);
    if (status != LR_OK)
        return status;
    const int32_t *start = cu->data;
    memset(w, 0, sizeof *w);
    w->dim = head_dim;
    w->wide_dim = lr_round_up(head_dim, LR_PANEL);
    w->heads = q->shape[1] / head_dim;
    w->kv_heads = k->shape[1] / head_dim;
    w->batch = cu->shape[0] - 1;
    w->scale = (float)scale;
    w->causal = causal != 0;
    for (int64_t b = 0; b < w->batch; b++)
        w->longest = lr_max64(w->longest, start[b + 1] - start[b]);
    return LR_OK;
}

/* Take all scratch at once: per_thread floats for each thread, and the sorted sequences. */
static int attention_scratch(attention_work *w, const lr_exec *exec, const lr_tensor *cu, int64_t per_thread)
{
    const int32_t *start = cu->data;
    w->per_thread = lr_round_up(per_thread, 16);
    const size_t floats = (size_t)(w->per_thread * exec->threads) * sizeof(float);
    char *block = lr_scratch(floats + (size_t)w->batch * sizeof(sequence));
    if (block == NULL)
        return LR_ENOMEM;
    w->scratch = (float *)block;
    w->sequences = (sequence *)(block + floats);
    for (int64_t b = 0; b < w->batch; b++)
        w->sequences[b] = (sequence){start[b], start[b + 1] - start[b]};
    sort_longest_first(w->sequences, w->batch);
    return LR_OK;
}

/* ---- packing --------------------------------------------------------------------------------------------------- */
/* Rows [first, first + n) of one head as y[n][dim], times factor. */
static void copy_head(float *y, const lr_tensor *x, int64_t first, int64_t n, int64_t column, int64_t dim, float factor)
{
    float run[LR_RUN];
    for (int64_t i = 0; i < n; i++) {
        const float *row = lr_row_in(x, (first + i) * x->ld + column, dim, run);
        float *to = y + i * dim;
#pragma omp simd
        for (int64_t d = 0; d < dim; d++)
            to[d] = factor * row[d];
    }
}

/* y[n][dim] as panels over dim: panel c is [n][32]; columns beyond dim are zero. */
static void panels_of(float *panels, const float *y, int64_t n, int64_t dim)
{
    for (int64_t c = 0; c * LR_PANEL < dim; c++) {
        float *panel = panels + c * n * LR_PANEL;
        const int64_t width = lr_min64(LR_PANEL, dim - c * LR_PANEL);
        for (int64_t i = 0; i < n; i++) {
            memcpy(panel + i * LR_PANEL, y + i * dim + c * LR_PANEL, (size_t)width * sizeof(float));
            for (int64_t d = width; d < LR_PANEL; d++)
                panel[i * LR_PANEL + d] = 0.0f;
        }
    }
}

/* y[n][dim] transposed, as panels over n: panel p is [dim][32]; columns beyond n are zero. */
static void transposed_panels_of(float *panels, const float *y, int64_t n, int64_t dim)
{
    for (int64_t p = 0; p * LR_PANEL < n; p++) {
        float *panel = panels + p * dim * LR_PANEL;
        const float *from = y + p * LR_PANEL * dim;
        const int64_t width = lr_min64(LR_PANEL, n - p * LR_PANEL);
        if (width < LR_PANEL)
            memset(panel, 0, (size_t)(dim * LR_PANEL) * sizeof(float));
        for (int64_t d = 0; d < dim; d++)
            for (int64_t j = 0; j < width; j++)
                panel[d * LR_PANEL + j] = from[j * dim + d];
    }
}

/* Write y[n][wide_dim], times factor, to rows [first, first + n) of one head. */
static void store_head(const lr_tensor *x, int64_t first, int64_t n, int64_t column, int64_t dim, const float *y,
                       int64_t ldy, float factor)
{
    float run[LR_RUN];
    for (int64_t i = 0; i < n; i++) {
        const int64_t at = (first + i) * x->ld + column;
        const float *row = y + i * ldy;
        float *out = lr_row_out(x, at, run);
#pragma omp simd
        for (int64_t d = 0; d < dim; d++)
            out[d] = factor * row[d];
        lr_row_done(x, at, dim, out);
    }
}

/* How many of the keys [key, key + n) query row i may see. */
static inline int64_t visible(const attention_work *w, int64_t i, int64_t key, int64_t n)
{
    return w->causal ? lr_max64(0, lr_min64(n, i - key + 1)) : n;
}

/* One past the last key that the queries [query, query + n) may see: a multiple of LR_ROW_UNIT or the sequence's end,
 * so that rows padded to that unit never reach into keys that count. */
static inline int64_t last_key(const attention_work *w, int64_t query, int64_t n, int64_t length)
{
    return w->causal ? lr_min64(length, query + n) : length;
}

/* Rows of scores are worked on in whole vectors: put what 2^x makes 0 of behind the n visible ones, and return how many
 * elements that makes. SCORES leaves the room. */
static inline int64_t hide_tail(float *s, int64_t n)
{
    const int64_t whole = (n + 15) & ~(int64_t)15;
    for (int64_t j = n; j < whole; j++)
        s[j] = -INFINITY;
    return whole;
}

/* The next n floats of a layout; NULL while it is only counted. */
static inline float *take(float *base, int64_t *used, int64_t n)
{
    float *p = base != NULL ? base + *used : NULL;
    *used += n;
    return p;
}

/* ---- forward --------------------------------------------------------------------------------------------------- */
typedef struct forward_buffers {
    float *keys, *values, *rows, *q, *scores, *sums, *highest, *total;
} forward_buffers;

/* Lay the buffers out from base (NULL to count); returns the floats used. */
static int64_t forward_layout(const attention_work *w, float *base, forward_buffers *f)
{
    int64_t used = 0;
    const int64_t padded = lr_round_up(w->longest, LR_PANEL);
    f->keys = take(base, &used, padded * w->dim);
    f->values = take(base, &used, padded * w->wide_dim);
    f->rows = take(base, &used, padded * w->dim);
    f->q = take(base, &used, QUERIES * w->dim);
    f->scores = take(base, &used, QUERIES * SCORES);
    f->sums = take(base, &used, QUERIES * w->wide_dim);
    f->highest = take(base, &used, QUERIES);
    f->total = take(base, &used, QUERIES);
    return used;
}

/* Turn one row of n scores, of which the first ones are visible, into 2^(s - highest), and bring what was summed before
 * to the new maximum. */
static inline void softmax_row(float *s, int64_t visible_keys, int64_t n, float *highest, float *total, float *sums,
                               int64_t wide_dim)
{
    const int64_t whole = hide_tail(s, visible_keys);
    float top = *highest, sum = 0.0f;
#pragma omp simd reduction(max : top)
    for (int64_t j = 0; j < whole; j++)
        top = s[j] > top ? s[j] : top;
#pragma omp simd reduction(+ : sum)
    for (int64_t j = 0; j < whole; j++) {
        s[j] = lr_exp2(s[j] - top);
        sum += s[j];
    }
    for (int64_t j = visible_keys; j < n; j++)
        s[j] = 0.0f;
    if (top != *highest) {
        const float shrink = lr_exp2(*highest - top);
        *total *= shrink;
#pragma omp simd
        for (int64_t d = 0; d < wide_dim; d++)
            sums[d] *= shrink;
    }
    *highest = top;
    *total += sum;
}

static void forward_item(const attention_work *w, const forward_buffers *f, const sequence *seq, int64_t head,
                         lr_tensor *o, lr_tensor *lse, const lr_tensor *q, const lr_tensor *k, const lr_tensor *v)
{
    const int64_t dim = w->dim, wide = w->wide_dim, length = seq->length, column = head * dim;
    const int64_t kv_column = head / (w->heads / w->kv_heads) * dim;
    float *lses = lse->data;
    copy_head(f->rows, k, seq->start, length, kv_column, dim, 1.0f);
    transposed_panels_of(f->keys, f->rows, length, dim);
    copy_head(f->rows, v, seq->start, length, kv_column, dim, 1.0f);
    panels_of(f->values, f->rows, length, dim);
    for (int64_t query = 0; query < length; query += QUERIES) {
        const int64_t n = lr_min64(QUERIES, length - query);
        copy_head(f->q, q, seq->start + query, n, column, dim, LOG2_E * w->scale);
        memset(f->sums, 0, (size_t)(QUERIES * wide) * sizeof(float));
        for (int64_t i = 0; i < n; i++) {
            f->highest[i] = -INFINITY;
            f->total[i] = 0.0f;
        }
        const int64_t end = last_key(w, query, n, length);
        for (int64_t key = 0; key < end; key += KEYS) {
            const int64_t m = lr_min64(KEYS, end - key);
            lr_tile_product(n, (m + LR_PANEL - 1) / LR_PANEL, dim, f->q, dim, 1, f->keys + key * dim, dim * LR_PANEL,
                            f->scores, SCORES, false);
            for (int64_t i = 0; i < n; i++)
                softmax_row(f->scores + i * SCORES, visible(w, query + i, key, m), m, &f->highest[i], &f->total[i],
                            f->sums + i * wide, wide);
            lr_tile_product(n, wide / LR_PANEL, m, f->scores, SCORES, 1, f->values + key * LR_PANEL, length * LR_PANEL,
                            f->sums, wide, true);
        }
        for (int64_t i = 0; i < n; i++) {
            const int64_t token = seq->start + query + i;
            store_head(o, token, 1, column, dim, f->sums + i * wide, wide, 1.0f / f->total[i]);
            lses[token * w->heads + head] = LN_2 * (f->highest[i] + log2f(f->total[i]));
        }
    }
}

int LR_CPU(attention)(lr_exec *exec, lr_tensor *o, lr_tensor *lse, const lr_tensor *q, const lr_tensor *k,
                      const lr_tensor *v, const lr_tensor *cu, int64_t head_dim, int64_t max_length, double scale,
                      int64_t causal)
{
    attention_work w;
    forward_buffers count;
    int status = attention_setup(&w, "attention", q, k, lse, cu, head_dim, max_length, scale, causal);
    if (status == LR_OK)
        status = attention_scratch(&w, exec, cu, forward_layout(&w, NULL, &count));
    if (status != LR_OK)
        return status;
#pragma omp parallel for num_threads(exec->threads) schedule(dynamic, 1)
    for (int64_t item = 0; item < w.batch * w.heads; item++) {
        forward_buffers f;
        forward_layout(&w, w.scratch + omp_get_thread_num() * w.per_thread, &f);
        forward_item(&w, &f, &w.sequences[item / w.heads], item % w.heads, o, lse, q, k, v);
    }
    return LR_OK;
}

/* ---- backward -------------------------------------------------------------------------------------------------- */
typedef struct backward_buffers {
    float *keys, *key_rows, *values, *dk, *dv;                          /* of the whole sequence */
    float *rows, *q, *q_panels, *d_o, *do_panels, *p, *ds, *dq, *along; /* of a block of queries */
} backward_buffers;

static int64_t backward_layout(const attention_work *w, float *base, backward_buffers *f)
{
    int64_t used = 0;
    const int64_t padded = lr_round_up(w->longest, LR_PANEL * LR_ROW_UNIT / 4); /* whole panels and whole row units */
    f->keys = take(base, &used, padded * w->dim);
    f->key_rows = take(base, &used, padded * w->wide_dim);
    f->values = take(base, &used, padded * w->dim);
    f->dk = take(base, &used, padded * w->wide_dim);
    f->dv = take(base, &used, padded * w->wide_dim);
    f->rows = take(base, &used, padded * w->dim);
    f->q = take(base, &used, QUERIES * w->dim);
    f->q_panels = take(base, &used, QUERIES * w->wide_dim);
    f->d_o = take(base, &used, QUERIES * w->dim);
    f->do_panels = take(base, &used, QUERIES * w->wide_dim);
    f->p = take(base, &used, QUERIES * SCORES);
    f->ds = take(base, &used, QUERIES * SCORES);
    f->dq = take(base, &used, QUERIES * w->wide_dim);
    f->along = take(base, &used, QUERIES);
    return used;
}

/* p = 2^(s - lse) and ds = p (dp - along), in place of s and dp. */
static inline void softmax_backward_row(float *s, float *dp, int64_t visible_keys, int64_t n, float lse, float along)
{
    const int64_t whole = hide_tail(s, visible_keys);
#pragma omp simd
    for (int64_t j = 0; j < whole; j++) {
        const float p = lr_exp2(s[j] - lse);
        s[j] = p;
        dp[j] = p * (dp[j] - along);
    }
    for (int64_t j = visible_keys; j < n; j++)
        s[j] = dp[j] = 0.0f;
}

typedef struct backward_tensors {
    lr_tensor *dq, *dk, *dv;
    const lr_tensor *d_o, *q, *k, *v, *o, *lse;
} backward_tensors;

/* One head's block of n queries against all its keys. */
static void backward_block(const attention_work *w, const backward_buffers *f, const sequence *seq, int64_t head,
                           int64_t query, const backward_tensors *t)
{
    const int64_t dim = w->dim, wide = w->wide_dim, length = seq->length, column = head * dim;
    const int64_t n = lr_min64(QUERIES, length - query), first = seq->start + query;
    const float *lses = t->lse->data;
    float run[LR_RUN];
    copy_head(f->q, t->q, first, n, column, dim, LOG2_E * w->scale);
    copy_head(f->d_o, t->d_o, first, n, column, dim, 1.0f);
    panels_of(f->q_panels, f->q, n, dim);
    panels_of(f->do_panels, f->d_o, n, dim);
    for (int64_t i = 0; i < n; i++) {
        const float *o_row = lr_row_in(t->o, (first + i) * t->o->ld + column, dim, run), *do_row = f->d_o + i * dim;
        float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
        for (int64_t d = 0; d < dim; d++)
            sum += o_row[d] * do_row[d];
        f->along[i] = sum;
    }
    const int64_t end = last_key(w, query, n, length);
    for (int64_t key = 0; key < end; key += KEYS) {
        const int64_t m = lr_min64(KEYS, end - key), panels = (m + LR_PANEL - 1) / LR_PANEL;
        lr_tile_product(n, panels, dim, f->q, dim, 1, f->keys + key * dim, dim * LR_PANEL, f->p, SCORES, false);
        lr_tile_product(n, panels, dim, f->d_o, dim, 1, f->values + key * dim, dim * LR_PANEL, f->ds, SCORES, false);
        for (int64_t i = 0; i < n; i++)
            softmax_backward_row(f->p + i * SCORES, f->ds + i * SCORES, visible(w, query + i, key, m), m,
                                 LOG2_E * lses[(first + i) * w->heads + head], f->along[i]);
        lr_tile_product(n, wide / LR_PANEL, m, f->ds, SCORES, 1, f->key_rows + key * LR_PANEL, length * LR_PANEL, f->dq,
                        wide, key > 0);
        lr_tile_product(m, wide / LR_PANEL, n, f->ds, 1, SCORES, f->q_panels, n * LR_PANEL, f->dk + key * wide, wide,
                        true);
        lr_tile_product(m, wide / LR_PANEL, n, f->p, 1, SCORES, f->do_panels, n * LR_PANEL, f->dv + key * wide, wide,
                        true);
    }
    store_head(t->dq, first, n, column, dim, f->dq, wide, w->scale);
}

static void backward_item(const attention_work *w, const backward_buffers *f, const sequence *seq, int64_t group,
                          const backward_tensors *t)
{
    const int64_t dim = w->dim, wide = w->wide_dim, length = seq->length, column = group * dim;
    const int64_t heads = w->heads / w->kv_heads, padded = lr_round_up(length, LR_ROW_UNIT);
    copy_head(f->rows, t->k, seq->start, length, column, dim, 1.0f);
    transposed_panels_of(f->keys, f->rows, length, dim);
    panels_of(f->key_rows, f->rows, length, dim);
    copy_head(f->rows, t->v, seq->start, length, column, dim, 1.0f);
    transposed_panels_of(f->values, f->rows, length, dim);
    memset(f->dk, 0, (size_t)(padded * wide) * sizeof(float));
    memset(f->dv, 0, (size_t)(padded * wide) * sizeof(float));
    for (int64_t head = group * heads; head < (group + 1) * heads; head++)
        for (int64_t query = 0; query < length; query += QUERIES)
            backward_block(w, f, seq, head, query, t);
    store_head(t->dk, seq->start, length, column, dim, f->dk, wide, LN_2);
    store_head(t->dv, seq->start, length, column, dim, f->dv, wide, 1.0f);
}

int LR_CPU(attention_backward)(lr_exec *exec, lr_tensor *dq, lr_tensor *dk, lr_tensor *dv, const lr_tensor *d_o,
                               const lr_tensor *q, const lr_tensor *k, const lr_tensor *v, const lr_tensor *o,
                               const lr_tensor *lse, const lr_tensor *cu, int64_t head_dim, int64_t max_length,
                               double scale, int64_t causal)
{
    attention_work w;
    backward_buffers count;
    const backward_tensors t = {dq, dk, dv, d_o, q, k, v, o, lse};
    int status = attention_setup(&w, "attention_backward", q, k, lse, cu, head_dim, max_length, scale, causal);
    if (status == LR_OK)
        status = attention_scratch(&w, exec, cu, backward_layout(&w, NULL, &count));
    if (status != LR_OK)
        return status;
#pragma omp parallel for num_threads(exec->threads) schedule(dynamic, 1)
    for (int64_t item = 0; item < w.batch * w.kv_heads; item++) {
        backward_buffers f;
        backward_layout(&w, w.scratch + omp_get_thread_num() * w.per_thread, &f);
        backward_item(&w, &f, &w.sequences[item / w.kv_heads], item % w.kv_heads, &t);
    }
    return LR_OK;
}
