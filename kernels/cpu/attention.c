/* attention.c: softmax(scale q k^T) v over packed sequences of unequal lengths, grouped heads, causal or not, and its
 * backward.
 *
 * One item of work is a sequence and a head (forward) or a sequence and a group of heads that share k and v (backward,
 * so that dk and dv have one writer). Items are dealt out longest first; which thread takes an item does not change its
 * result. Within an item, blocks of QUERIES rows meet blocks of KEYS columns, so no L x L matrix ever exists: forward
 * keeps a running maximum and sum for each row, backward computes the probabilities again from lse.
 *
 * All products are lr_tile_product's, on packed copies of this head's rows: of f32, or, where the tensors are bf16 and
 * the instruction set multiplies bf16, of bf16 pairs; then p and ds are rounded to bf16 between their two products, as
 * flash attention does, and everything else is f32. With s = scale log2(e) q k^T, so that the softmax is in powers of
 * two:  o = p v;   dp = do v^T,  ds = p (dp - sum(do o)),  dq = scale ds k,  dk = scale ds^T q,  dv = p^T do. */
#include "cpu/tile.h"
#include <omp.h>

/* AHEAD: rows of a head that are fetched early. KEYS is a multiple of LR_PANEL and LR_ROW_UNIT. Rows of scores are SCORES apart: an odd number of cache lines, so
 * that a column of them does not fall into one set of the cache. */
static const float LOG2_E = 1.44269504f, LN_2 = 0.693147181f;
enum { QUERIES = 48, KEYS = 192, SCORES = KEYS + 16, PAIRED_SCORES = KEYS / 2 + 16, AHEAD = 12 };

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
    bool pairs; /* operands are pairs of bf16, not f32 */
    sequence *sequences;
    lr_word *scratch; /* threads * per_thread words */
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
    w->pairs = LR_HAS_PAIRS && q->dtype == LR_BF16 && head_dim % 2 == 0;
    for (int64_t b = 0; b < w->batch; b++)
        w->longest = lr_max64(w->longest, start[b + 1] - start[b]);
    return LR_OK;
}

/* Take all scratch at once: per_thread words for each thread, and the sorted sequences. */
static int attention_scratch(attention_work *w, const lr_exec *exec, const lr_tensor *cu, int64_t per_thread)
{
    const int32_t *start = cu->data;
    w->per_thread = lr_round_up(per_thread, 16);
    const size_t bytes = (size_t)(w->per_thread * exec->threads) * sizeof(lr_word);
    char *block = lr_scratch(bytes + (size_t)w->batch * sizeof(sequence));
    if (block == NULL)
        return LR_ENOMEM;
    w->scratch = (lr_word *)block;
    w->sequences = (sequence *)(block + bytes);
    for (int64_t b = 0; b < w->batch; b++)
        w->sequences[b] = (sequence){start[b], start[b + 1] - start[b]};
    sort_longest_first(w->sequences, w->batch);
    return LR_OK;
}

/* ---- packing --------------------------------------------------------------------------------------------------- */
/* Words that n values along a depth take; the last may be half of a pair, then its other half is zero. */
static inline int64_t words_of(const attention_work *w, int64_t n)
{
    return w->pairs ? (n + 1) / 2 : n;
}

/* Rows here are too short for a call of memcpy. */
static inline void copy_words(lr_word *y, const char *x, int64_t n)
{
    for (; n >= 16; n -= 16, y += 16, x += 16 * sizeof *y)
        memcpy(y, x, 16 * sizeof *y);
    for (int64_t i = 0; i < n; i++)
        memcpy(y + i, x + (size_t)i * sizeof *y, sizeof *y);
}

/* Rows [first, first + n) of one head as y[n][words_of(dim)]. */
static void copy_head(const attention_work *w, lr_word *y, const lr_tensor *x, int64_t first, int64_t n, int64_t column)
{
    const int64_t words = words_of(w, w->dim);
    float run[LR_RUN];
    for (int64_t i = 0; i < n; i++, y += words) {
        const int64_t at = (first + i) * x->ld + column;
        const char *row = w->pairs ? lr_at(x, at) : (const char *)lr_row_in(x, at, w->dim, run);
        if (i + AHEAD < n) /* rows are too far apart for the processor to guess the next */
            __builtin_prefetch(lr_at(x, at + AHEAD * x->ld));
        copy_words(y, row, words);
    }
}

/* Rows y[n][dim] as a right operand whose depth is the rows: panel c is [words_of(n)][32]; columns beyond dim are
 * zero. */
static void panels_of(const attention_work *w, lr_word *panels, const lr_word *y, int64_t n)
{
    const int64_t dim = w->dim, depth = words_of(w, n), words = words_of(w, dim);
    for (int64_t c = 0; c * LR_PANEL < dim; c++) {
        lr_word *panel = panels + c * depth * LR_PANEL;
        const int64_t width = lr_min64(LR_PANEL, dim - c * LR_PANEL);
        for (int64_t i = 0; i < depth; i++, panel += LR_PANEL) {
            if (!w->pairs) {
                copy_words(panel, (const char *)(y + i * dim + c * LR_PANEL), width);
            } else {
                const lr_word *even = y + 2 * i * words + c * LR_PANEL / 2, *odd = even + words;
                const uint32_t odd_mask = 2 * i + 1 < n ? 0xffff0000u : 0;
                for (int64_t d = 0; d < width / 2; d++) {
                    panel[2 * d].pair = (even[d].pair & 0xffff) | (odd[d].pair << 16 & odd_mask);
                    panel[2 * d + 1].pair = even[d].pair >> 16 | (odd[d].pair & odd_mask);
                }
            }
            for (int64_t d = width; d < LR_PANEL; d++)
                panel[d].pair = 0;
        }
    }
}

/* Rows y[n][dim] as a right operand whose columns are the rows: panel p is [words_of(dim)][32]; columns beyond n are
 * zero. */
static void transposed_panels_of(const attention_work *w, lr_word *panels, const lr_word *y, int64_t n)
{
    const int64_t words = words_of(w, w->dim);
    for (int64_t p = 0; p * LR_PANEL < n; p++) {
        lr_word *panel = panels + p * words * LR_PANEL;
        const lr_word *from = y + p * LR_PANEL * words;
        const int64_t width = lr_min64(LR_PANEL, n - p * LR_PANEL);
        if (width < LR_PANEL)
            memset(panel, 0, (size_t)(words * LR_PANEL) * sizeof *panel);
        for (int64_t d = 0; d < words; d++)
            for (int64_t j = 0; j < width; j++)
                panel[d * LR_PANEL + j] = from[j * words + d];
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

/* Rows of scores are worked on in whole vectors: put what 2^(factor x) makes 0 of behind the n visible ones, and return
 * how many elements that makes. SCORES leaves the room. */
static inline int64_t hide_tail(float *s, int64_t n, float factor)
{
    const lr_vec hidden = (lr_vec){0} - (factor < 0.0f ? -INFINITY : INFINITY);
    for (int64_t j = 0; j < SCORES - KEYS; j += LR_LANES)
        lr_vec_store(s + n + j, hidden);
    return lr_round_up(n, LR_LANES);
}

/* Set what stands behind the first `from` of n elements to zero, and one element more: it may be the other half of the
 * last one's pair. */
static inline void zero_tail(float *s, int64_t from, int64_t n)
{
    for (int64_t j = from; j <= n; j++)
        s[j] = 0.0f;
}

/* The next n words of a layout; NULL while it is only counted. */
static inline lr_word *take(lr_word *base, int64_t *used, int64_t n)
{
    lr_word *p = base != NULL ? base + *used : NULL;
    *used += n;
    return p;
}

static inline float *take_floats(lr_word *base, int64_t *used, int64_t n)
{
    return (float *)take(base, used, n);
}

/* ---- forward --------------------------------------------------------------------------------------------------- */
typedef struct forward_buffers {
    lr_word *keys, *values, *rows, *q;
    float *scores, *sums, *highest, *total;
} forward_buffers;

/* Lay the buffers out from base (NULL to count); returns the words used. */
static int64_t forward_layout(const attention_work *w, lr_word *base, forward_buffers *f)
{
    int64_t used = 0;
    const int64_t padded = lr_round_up(w->longest, LR_PANEL);
    f->keys = take(base, &used, padded * w->dim);
    f->values = take(base, &used, padded * w->wide_dim);
    f->rows = take(base, &used, padded * w->dim);
    f->q = take(base, &used, QUERIES * w->dim);
    f->scores = take_floats(base, &used, QUERIES * SCORES);
    f->sums = take_floats(base, &used, QUERIES * w->wide_dim);
    f->highest = take_floats(base, &used, QUERIES);
    f->total = take_floats(base, &used, QUERIES);
    return used;
}

/* Turn one row of n scores, of which the first ones are visible, into 2^(factor s - highest), and bring what was summed
 * before to the new maximum. */
static inline void softmax_row(float *s, float factor, int64_t visible_keys, int64_t n, float *highest, float *total,
                               float *sums, int64_t wide_dim)
{
    const int64_t whole = hide_tail(s, visible_keys, factor);
    lr_vec tops = (lr_vec){0} + *highest, sum = {0};
    for (int64_t j = 0; j < whole; j += LR_LANES)
        tops = lr_vec_max(factor * lr_vec_load(s + j), tops);
    const float top = lr_vec_highest(tops);
    for (int64_t j = 0; j < whole; j += LR_LANES) {
        const lr_vec p = lr_vec_exp2(factor * lr_vec_load(s + j) - top);
        lr_vec_store(s + j, p);
        sum += p;
    }
    zero_tail(s, whole, n);
    if (top != *highest) {
        const float shrink = exp2f(*highest - top);
        *total *= shrink;
#pragma omp simd
        for (int64_t d = 0; d < wide_dim; d++)
            sums[d] *= shrink;
    }
    *highest = top;
    *total += lr_vec_sum(sum);
}

static void forward_item(const attention_work *w, const forward_buffers *f, const sequence *seq, int64_t head,
                         lr_tensor *o, lr_tensor *lse, const lr_tensor *q, const lr_tensor *k, const lr_tensor *v)
{
    const int64_t dim = w->dim, wide = w->wide_dim, length = seq->length, column = head * dim;
    const int64_t kv_column = head / (w->heads / w->kv_heads) * dim, words = words_of(w, dim);
    float *lses = lse->data;
    copy_head(w, f->rows, k, seq->start, length, kv_column);
    transposed_panels_of(w, f->keys, f->rows, length);
    copy_head(w, f->rows, v, seq->start, length, kv_column);
    panels_of(w, f->values, f->rows, length);
    for (int64_t query = 0; query < length; query += QUERIES) {
        const int64_t n = lr_min64(QUERIES, length - query);
        copy_head(w, f->q, q, seq->start + query, n, column);
        memset(f->sums, 0, (size_t)(QUERIES * wide) * sizeof(float));
        for (int64_t i = 0; i < n; i++) {
            f->highest[i] = -INFINITY;
            f->total[i] = 0.0f;
        }
        const int64_t end = last_key(w, query, n, length);
        for (int64_t key = 0; key < end; key += KEYS) {
            const int64_t m = lr_min64(KEYS, end - key);
            lr_tile_product(w->pairs, n, m, words, f->q, words, 1, f->keys + key * words, words * LR_PANEL, f->scores,
                            SCORES, false);
            for (int64_t i = 0; i < n; i++) {
                float *s = f->scores + i * SCORES;
                softmax_row(s, LOG2_E * w->scale, visible(w, query + i, key, m), m, &f->highest[i], &f->total[i],
                            f->sums + i * wide, wide);
                if (w->pairs)
                    lr_pair_row((lr_word *)s, s, m);
            }
            lr_tile_product(w->pairs, n, dim, words_of(w, m), (const lr_word *)f->scores, SCORES, 1,
                            f->values + words_of(w, key) * LR_PANEL, words_of(w, length) * LR_PANEL, f->sums, wide,
                            true);
        }
        for (int64_t i = 0; i < n; i++) {
            const float inverse = 1.0f / f->total[i];
#pragma omp simd
            for (int64_t d = 0; d < wide; d++)
                f->sums[i * wide + d] *= inverse;
            lses[(seq->start + query + i) * w->heads + head] = LN_2 * (f->highest[i] + log2f(f->total[i]));
        }
        store_head(o, seq->start + query, n, column, dim, f->sums, wide, 1.0f);
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
    lr_word *keys, *key_rows, *values, *rows; /* of the whole sequence */
    float *dk, *dv;
    lr_word *q, *q_panels, *d_o, *do_panels, *ds_rows; /* of a block of queries */
    float *p, *ds, *dq, *along;
} backward_buffers;

static int64_t backward_layout(const attention_work *w, lr_word *base, backward_buffers *f)
{
    int64_t used = 0;
    const int64_t padded = lr_round_up(w->longest, LR_PANEL * LR_ROW_UNIT / 4); /* whole panels and whole row units */
    f->keys = take(base, &used, padded * w->dim);
    f->key_rows = take(base, &used, padded * w->wide_dim);
    f->values = take(base, &used, padded * w->dim);
    f->rows = take(base, &used, padded * w->dim);
    f->dk = take_floats(base, &used, padded * w->wide_dim);
    f->dv = take_floats(base, &used, padded * w->wide_dim);
    f->q = take(base, &used, QUERIES * w->dim);
    f->q_panels = take(base, &used, QUERIES * w->wide_dim);
    f->d_o = take(base, &used, QUERIES * w->dim);
    f->do_panels = take(base, &used, QUERIES * w->wide_dim);
    f->ds_rows = take(base, &used, w->pairs ? QUERIES * PAIRED_SCORES : 0);
    f->p = take_floats(base, &used, QUERIES * SCORES);
    f->ds = take_floats(base, &used, QUERIES * SCORES);
    f->dq = take_floats(base, &used, QUERIES * w->wide_dim);
    f->along = take_floats(base, &used, QUERIES);
    return used;
}

/* p = 2^(factor s - lse) and ds = p (dp - along), in place of s and dp. */
static inline void softmax_backward_row(float *s, float *dp, float factor, int64_t visible_keys, int64_t n, float lse,
                                        float along)
{
    const int64_t whole = hide_tail(s, visible_keys, factor);
    for (int64_t j = 0; j < whole; j += LR_LANES) {
        const lr_vec p = lr_vec_exp2(factor * lr_vec_load(s + j) - lse);
        lr_vec_store(s + j, p);
        lr_vec_store(dp + j, p * (lr_vec_load(dp + j) - along));
    }
    zero_tail(s, whole, n);
    zero_tail(dp, whole, n);
}

/* Round n rows of m elements of p and ds to pairs: ds in pairs along its rows, into ds_rows, for dq; both in pairs of
 * rows, each in place of the first of the two, for dk and dv. */
static void pair_scores(const backward_buffers *f, int64_t n, int64_t m)
{
    if (n % 2 != 0) {
        memset(f->p + n * SCORES, 0, (size_t)SCORES * sizeof(float));
        memset(f->ds + n * SCORES, 0, (size_t)SCORES * sizeof(float));
    }
    for (int64_t i = 0; i < n; i += 2) {
        float *p = f->p + i * SCORES, *ds = f->ds + i * SCORES;
        lr_pair_row(f->ds_rows + i * PAIRED_SCORES, ds, m);
        lr_pair_row(f->ds_rows + (i + 1) * PAIRED_SCORES, ds + SCORES, m);
        lr_pair_rows((lr_word *)p, p, p + SCORES, m);
        lr_pair_rows((lr_word *)ds, ds, ds + SCORES, m);
    }
}

typedef struct backward_tensors {
    lr_tensor *dq, *dk, *dv;
    const lr_tensor *d_o, *q, *k, *v, *o, *lse;
} backward_tensors;

/* along[i] = sum(do o) of n rows from `first` of one head. */
static void sums_along(const attention_work *w, float *along, const backward_tensors *t, int64_t first, int64_t n,
                       int64_t column)
{
    float o_run[LR_RUN], do_run[LR_RUN];
    for (int64_t i = 0; i < n; i++) {
        const float *o = lr_row_in(t->o, (first + i) * t->o->ld + column, w->dim, o_run);
        const float *d_o = lr_row_in(t->d_o, (first + i) * t->d_o->ld + column, w->dim, do_run);
        float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
        for (int64_t d = 0; d < w->dim; d++)
            sum += o[d] * d_o[d];
        along[i] = sum;
    }
}

/* One head's block of n queries against all its keys. */
static void backward_block(const attention_work *w, const backward_buffers *f, const sequence *seq, int64_t head,
                           int64_t query, const backward_tensors *t)
{
    const int64_t dim = w->dim, wide = w->wide_dim, length = seq->length, column = head * dim;
    const int64_t n = lr_min64(QUERIES, length - query), first = seq->start + query;
    const int64_t words = words_of(w, dim), depth = words_of(w, n);
    /* the strides of p and ds read as transposed left operands, and ds as it is */
    const int64_t down = w->pairs ? 2 * SCORES : SCORES, across = w->pairs ? PAIRED_SCORES : SCORES;
    const lr_word *p = (const lr_word *)f->p, *ds = (const lr_word *)f->ds, *ds_rows = w->pairs ? f->ds_rows : ds;
    const float *lses = t->lse->data;
    copy_head(w, f->q, t->q, first, n, column);
    copy_head(w, f->d_o, t->d_o, first, n, column);
    panels_of(w, f->q_panels, f->q, n);
    panels_of(w, f->do_panels, f->d_o, n);
    sums_along(w, f->along, t, first, n, column);
    const int64_t end = last_key(w, query, n, length);
    for (int64_t key = 0; key < end; key += KEYS) {
        const int64_t m = lr_min64(KEYS, end - key);
        lr_tile_product(w->pairs, n, m, words, f->q, words, 1, f->keys + key * words, words * LR_PANEL, f->p, SCORES,
                        false);
        lr_tile_product(w->pairs, n, m, words, f->d_o, words, 1, f->values + key * words, words * LR_PANEL, f->ds,
                        SCORES, false);
        for (int64_t i = 0; i < n; i++)
            softmax_backward_row(f->p + i * SCORES, f->ds + i * SCORES, LOG2_E * w->scale,
                                 visible(w, query + i, key, m), m, LOG2_E * lses[(first + i) * w->heads + head],
                                 f->along[i]);
        if (w->pairs)
            pair_scores(f, n, m);
        lr_tile_product(w->pairs, n, dim, words_of(w, m), ds_rows, across, 1, f->key_rows + words_of(w, key) * LR_PANEL,
                        words_of(w, length) * LR_PANEL, f->dq, wide, key > 0);
        lr_tile_product(w->pairs, m, dim, depth, ds, 1, down, f->q_panels, depth * LR_PANEL, f->dk + key * wide, wide,
                        true);
        lr_tile_product(w->pairs, m, dim, depth, p, 1, down, f->do_panels, depth * LR_PANEL, f->dv + key * wide, wide,
                        true);
    }
    store_head(t->dq, first, n, column, dim, f->dq, wide, w->scale);
}

static void backward_item(const attention_work *w, const backward_buffers *f, const sequence *seq, int64_t group,
                          const backward_tensors *t)
{
    const int64_t dim = w->dim, wide = w->wide_dim, length = seq->length, column = group * dim;
    const int64_t heads = w->heads / w->kv_heads, padded = lr_round_up(length, LR_ROW_UNIT);
    copy_head(w, f->rows, t->k, seq->start, length, column);
    transposed_panels_of(w, f->keys, f->rows, length);
    panels_of(w, f->key_rows, f->rows, length);
    copy_head(w, f->rows, t->v, seq->start, length, column);
    transposed_panels_of(w, f->values, f->rows, length);
    memset(f->dk, 0, (size_t)(padded * wide) * sizeof(float));
    memset(f->dv, 0, (size_t)(padded * wide) * sizeof(float));
    for (int64_t head = group * heads; head < (group + 1) * heads; head++)
        for (int64_t query = 0; query < length; query += QUERIES)
            backward_block(w, f, seq, head, query, t);
    store_head(t->dk, seq->start, length, column, dim, f->dk, wide, w->scale);
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
