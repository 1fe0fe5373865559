/* attention.c: softmax(scale q k^T) v over packed sequences of unequal lengths, grouped heads, causal or not, and its
 * backward.
 *
 * One item of work is a sequence and some of its heads: several of a short one, for they lie side by side in memory, and
 * while one is computed the next is fetched. Backward keeps the heads that share k and v together, so that dk and dv
 * have one writer. Items are dealt out longest first; neither the cut nor the thread that takes an item changes its
 * result. Within an item, blocks of QUERIES rows meet blocks of KEYS columns, so no L x L matrix ever exists: forward
 * keeps a running maximum and sum for each row, backward computes the probabilities again from lse.
 *
 * All products are lr_tile_product's, on operands packed out of this head's rows: of f32, or, where the tensors are bf16
 * and the instruction set multiplies bf16, of bf16 pairs; then p and ds are rounded to bf16 between their two products,
 * as flash attention does, and everything else is f32. With s = scale log2(e) q k^T, so that the softmax is in powers of
 * two:  o = p v;   dp = do v^T,  ds = p (dp - sum(do o)),  dq = scale ds k,  dk = scale ds^T q,  dv = p^T do.
 *
 * Most sequences are short, so what is done once a row counts as much as what is done once a score: the maxima, sums,
 * logarithms and reciprocals of LR_LANES rows are taken at a time. */
#include "check.h"
#include "cpu/pack.h"
#include <omp.h>

/* KEYS is a multiple of LR_PANEL and LR_ROW_UNIT, QUERIES of LR_ROW_UNIT and LR_LANES. Rows of scores are SCORES apart: an
 * odd number of cache lines, so that a column of them does not fall into one set of the cache. */
enum { ITEM_TOKENS = 256 }; /* heads times tokens of an item, if its sequence is shorter */
enum { QUERIES = 48, KEYS = 192, SCORES = KEYS + 16, PAIRED_SCORES = KEYS / 2 + 16 };

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

typedef struct item {
    int32_t start, length, head, heads;
} item;

typedef struct attention_work {
    int64_t dim, wide_dim; /* head_dim, and that rounded up to whole panels */
    int64_t words, row;    /* that a row of a head has as an operand, and those rounded up to whole vectors */
    int64_t heads, kv_heads, tokens, batch;
    int64_t longest; /* tokens that a sequence may have */
    float scale;
    bool causal;
    bool pairs; /* operands are pairs of bf16, not f32 */
    item *items;
    int64_t count;
    lr_word *scratch; /* threads * per_thread words */
    int64_t per_thread;
} attention_work;

/* From shapes alone: no value is read. */
static int attention_setup(attention_work *w, const char *op, const lr_tensor *q, const lr_tensor *k,
                           const lr_tensor *lse, const lr_tensor *cu, int64_t head_dim, int64_t max_length,
                           double scale, int64_t causal)
{
    memset(w, 0, sizeof *w);
    LR_NEED_CPU_DTYPE(op, q);
    const int status = lr_check_attention(op, q, k, lse, cu, head_dim, LR_RUN, scale);
    if (status != LR_OK)
        return status;
    w->dim = head_dim;
    w->wide_dim = lr_round_up(head_dim, LR_PANEL);
    w->heads = q->shape[1] / head_dim;
    w->kv_heads = k->shape[1] / head_dim;
    w->batch = cu->shape[0] - 1;
    w->scale = (float)scale;
    w->causal = causal != 0;
    w->pairs = LR_HAS_PAIRS && q->dtype == LR_BF16 && head_dim % 2 == 0;
    w->words = lr_words_of(w->pairs, head_dim);
    w->row = lr_round_up(w->words, LR_LANES);
    w->tokens = q->shape[0];
    w->longest = lr_max64(1, lr_min64(max_length, w->tokens));
    return LR_OK;
}

/* Cut the sorted sequences into items of whole groups of heads, small enough that every thread gets several. */
static void cut_items(attention_work *w, const sequence *sequences, int64_t group, int64_t tokens, int threads)
{
    const int64_t wanted = lr_min64(ITEM_TOKENS, tokens * w->heads / (8 * threads)), groups = w->heads / group;
    w->count = 0;
    for (int64_t b = 0; b < w->batch; b++) {
        const int64_t fitting = wanted / (sequences[b].length * group);
        const int64_t heads = group * lr_max64(1, lr_min64(fitting, groups));
        for (int64_t head = 0; head < w->heads; head += heads)
            w->items[w->count++] = (item){sequences[b].start, sequences[b].length, (int32_t)head,
                                          (int32_t)lr_min64(heads, w->heads - head)};
    }
}

/* Lay the scratch out from block (NULL to count): per_thread words for each thread, the items, the sorted sequences. Heads
 * are parted in groups only. Returns the bytes used. */
static int64_t divide_scratch(attention_work *w, int threads, char *block, int64_t group, int64_t per_thread,
                              sequence **sequences)
{
    w->per_thread = lr_round_up(per_thread, 16);
    const int64_t words = w->per_thread * threads * (int64_t)sizeof(lr_word);
    const int64_t items = w->batch * (w->heads / group) * (int64_t)sizeof(item);
    if (block != NULL) {
        w->scratch = (lr_word *)block;
        w->items = (item *)(block + words);
        *sequences = (sequence *)(block + words + items);
    }
    return words + items + w->batch * (int64_t)sizeof(sequence);
}

/* The batch as items, longest first. */
static int deal_out(attention_work *w, const char *op, const lr_exec *exec, const lr_tensor *cu, int64_t max_length,
                    int64_t group, int64_t per_thread)
{
    const int status = lr_check_cu(op, cu, w->tokens, max_length);
    if (status != LR_OK)
        return status;
    const int32_t *start = cu->data;
    sequence *sequences = NULL;
    divide_scratch(w, exec->threads, exec->scratch, group, per_thread, &sequences);
    for (int64_t b = 0; b < w->batch; b++)
        sequences[b] = (sequence){start[b], start[b + 1] - start[b]};
    sort_longest_first(sequences, w->batch);
    cut_items(w, sequences, group, w->tokens, exec->threads);
    return LR_OK;
}

/* ---- rows of a head -------------------------------------------------------------------------------------------- */
static inline lr_source head_rows(const attention_work *w, const lr_tensor *t, int64_t first, int64_t column)
{
    return lr_source_of(t, first * t->ld + column, w->pairs);
}

/* Fetch rows [first, first + n) of one head, to be read later, from the second-level cache, or written. */
static inline __attribute__((always_inline)) void fetch_head(const attention_work *w, const lr_tensor *t, int64_t first,
                                                             int64_t n, int64_t column, bool write)
{
    const int64_t bytes = w->dim * (int64_t)lr_dtype_size(t->dtype);
    for (int64_t i = 0; i < n; i++) {
        const char *row = lr_at(t, (first + i) * t->ld + column);
        for (int64_t b = 0; b < bytes; b += 64)
            if (write)
                __builtin_prefetch(row + b, 1);
            else
                __builtin_prefetch(row + b, 0, 2);
    }
}

/* What items read: rows by queries (NULL at the end), and k and v. */
typedef struct inputs {
    const lr_tensor *by_query[4], *k, *v;
} inputs;

/* Fetch the block of queries that follows (head, query - 1), where the item has one, and its first keys where they are
 * others than before. */
static void fetch_block(const attention_work *w, const inputs *in, const item *it, int64_t head, int64_t query)
{
    const int64_t shared = w->heads / w->kv_heads;
    if (query >= it->length) {
        head++;
        query = 0;
    }
    if (head >= it->head + it->heads)
        return;
    const int64_t n = lr_min64(QUERIES, it->length - query);
    for (const lr_tensor *const *t = in->by_query; *t != NULL; t++)
        fetch_head(w, *t, it->start + query, n, head * w->dim, false);
    if (query == 0 && (head == it->head || head % shared == 0)) {
        fetch_head(w, in->k, it->start, n, head / shared * w->dim, false);
        fetch_head(w, in->v, it->start, n, head / shared * w->dim, false);
    }
}

/* One row of a head = factor * y. */
static inline void store_row(const attention_work *w, const lr_tensor *t, int64_t row, int64_t column, const float *y,
                             float factor)
{
    const int64_t at = row * t->ld + column;
    for (int64_t d = 0; d < w->dim; d += LR_LANES)
        lr_vec_out(t->dtype, lr_at(t, at + d), w->dim - d, factor * lr_vec_load(y + d));
}

/* Rows [first, first + n) of a head = factor * y[n][wide_dim]. */
static void store_head(const attention_work *w, const lr_tensor *t, int64_t first, int64_t n, int64_t column,
                       const float *y, float factor)
{
    for (int64_t i = 0; i < n; i++) {
        if (i % QUERIES == 0)
            fetch_head(w, t, first + i, lr_min64(QUERIES, n - i), column, true);
        store_row(w, t, first + i, column, y + i * w->wide_dim, factor);
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

/* The next n words of a layout, from a new cache line on; NULL while it is only counted. */
static inline lr_word *take(lr_word *base, int64_t *used, int64_t n)
{
    lr_word *p = base != NULL ? base + *used : NULL;
    *used += lr_round_up(n, 16);
    return p;
}

static inline float *take_floats(lr_word *base, int64_t *used, int64_t n)
{
    return (float *)take(base, used, n);
}

/* ---- forward --------------------------------------------------------------------------------------------------- */
typedef struct forward_buffers {
    lr_word *keys, *values, *q;
    float *scores, *sums;
    float *partial;                  /* a vector for each row, whose lanes are to be summed or compared */
    float *highest, *total, *factor; /* of each row; factor: what its sums are still to be multiplied with */
} forward_buffers;

/* Lay the buffers out from base (NULL to count); returns the words used. */
static int64_t forward_layout(const attention_work *w, lr_word *base, forward_buffers *f)
{
    int64_t used = 0;
    const int64_t padded = lr_round_up(w->longest, LR_PANEL);
    f->keys = take(base, &used, padded * w->words);
    f->values = take(base, &used, lr_words_of(w->pairs, padded) * w->wide_dim);
    f->q = take(base, &used, QUERIES * w->row);
    f->scores = take_floats(base, &used, QUERIES * SCORES);
    f->sums = take_floats(base, &used, QUERIES * w->wide_dim);
    f->partial = take_floats(base, &used, QUERIES * LR_LANES);
    f->highest = take_floats(base, &used, QUERIES);
    f->total = take_floats(base, &used, QUERIES);
    f->factor = take_floats(base, &used, QUERIES);
    return used;
}

/* Scores as exponents of two; those beyond the n visible ones as what 2^x makes 0 of. */
static inline lr_vec exponents(const float *s, int64_t n, float factor)
{
    return lr_vec_first(factor * lr_vec_load(s), n, -INFINITY);
}

/* The largest exponent of one row, a vector of candidates. */
static inline lr_vec row_top(const float *s, int64_t n, float factor)
{
    lr_vec top = exponents(s, n, factor);
    for (int64_t j = LR_LANES; j < n; j += LR_LANES)
        top = lr_vec_max(exponents(s + j, n - j, factor), top);
    return top;
}

/* Turn a row of m scores, of which n are visible, into the operand of 2^(factor s - highest), in place; returns a vector
 * of partial sums. */
static inline lr_vec row_exp(bool pairs, float *s, int64_t n, int64_t m, float factor, float highest)
{
    lr_vec sum = {0};
    for (int64_t j = 0; j < m; j += 2 * LR_LANES) {
        const lr_vec first = lr_vec_exp2(exponents(s + j, n - j, factor) - highest);
        const lr_vec second = lr_vec_exp2(exponents(s + j + LR_LANES, n - j - LR_LANES, factor) - highest);
        sum += first + second;
        if (pairs) {
            lr_pair_along((lr_word *)s + j / 2, first, second);
        } else {
            lr_vec_store(s + j, first);
            lr_vec_store(s + j + LR_LANES, second);
        }
    }
    return sum;
}

/* n rows of scores against the keys [key, key + m): probabilities relative to the highest exponent so far. */
static void softmax_block(const attention_work *w, const forward_buffers *f, int64_t query, int64_t n, int64_t key,
                          int64_t m)
{
    const float factor = LR_LOG2_E * w->scale;
    for (int64_t i = 0; i < n; i++)
        lr_vec_store(f->partial + i * LR_LANES, row_top(f->scores + i * SCORES, visible(w, query + i, key, m), factor));
    for (int64_t i = 0; i < n; i += LR_LANES) {
        const lr_vec before = lr_vec_load(f->highest + i);
        const lr_vec now = lr_vec_max(lr_largest_of(f->partial + i * LR_LANES), before);
        const lr_vec shrink = lr_vec_exp2(before - now);
        lr_vec_store(f->highest + i, now);
        lr_vec_store(f->factor + i, shrink);
        lr_vec_store(f->total + i, shrink * lr_vec_load(f->total + i));
    }
    for (int64_t i = 0; i < n; i++) {
        const lr_vec sum =
            row_exp(w->pairs, f->scores + i * SCORES, visible(w, query + i, key, m), m, factor, f->highest[i]);
        lr_vec_store(f->partial + i * LR_LANES, sum);
        for (int64_t d = 0; key > 0 && d < w->dim; d += LR_LANES) {
            float *sums = f->sums + i * w->wide_dim + d;
            lr_vec_store(sums, f->factor[i] * lr_vec_load(sums));
        }
    }
    for (int64_t i = 0; i < n; i += LR_LANES)
        lr_vec_store(f->total + i, lr_vec_load(f->total + i) + lr_sums_of(f->partial + i * LR_LANES));
}

/* Divide n rows by their sums of probabilities, store them and their lse. */
static void finish_block(const attention_work *w, const forward_buffers *f, int64_t first, int64_t n, int64_t head,
                         const lr_tensor *o, const lr_tensor *lse)
{
    float *lses = lse->data;
    for (int64_t i = 0; i < n; i += LR_LANES) {
        const lr_vec total = lr_vec_load(f->total + i);
        lr_vec_store(f->factor + i, 1.0f / total);
        lr_vec_store(f->total + i, LR_LN_2 * (lr_vec_load(f->highest + i) + lr_vec_log2(total)));
    }
    for (int64_t i = 0; i < n; i++) {
        lses[(first + i) * w->heads + head] = f->total[i];
        store_row(w, o, first + i, head * w->dim, f->sums + i * w->wide_dim, f->factor[i]);
    }
}

/* One head's block of n queries against all its keys. */
static void forward_block(const attention_work *w, const forward_buffers *f, const item *it, int64_t head,
                          int64_t query, const inputs *in, const lr_tensor *o, const lr_tensor *lse)
{
    const int64_t n = lr_min64(QUERIES, it->length - query), first = it->start + query, words = w->words;
    const int64_t value_panel = lr_words_of(w->pairs, it->length) * LR_PANEL;
    const lr_source rows = head_rows(w, in->by_query[0], first, head * w->dim);
    lr_pack_rows(f->q, w->row, &rows, n, words);
    fetch_head(w, o, first, n, head * w->dim, true);
    fetch_block(w, in, it, head, query + n);
    for (int64_t i = 0; i < QUERIES; i++) {
        f->highest[i] = -INFINITY;
        f->total[i] = 0.0f;
    }
    const int64_t end = last_key(w, query, n, it->length);
    for (int64_t key = 0; key < end; key += KEYS) {
        const int64_t m = lr_min64(KEYS, end - key);
        lr_tile_product(w->pairs, n, m, words, f->q, w->row, 1, f->keys + key * words, words * LR_PANEL, f->scores,
                        SCORES, false);
        softmax_block(w, f, query, n, key, m);
        lr_tile_product(w->pairs, n, w->dim, lr_words_of(w->pairs, m), (const lr_word *)f->scores, SCORES, 1,
                        f->values + lr_words_of(w->pairs, key) * LR_PANEL, value_panel, f->sums, w->wide_dim, key > 0);
    }
    finish_block(w, f, first, n, head, o, lse);
}

static void forward_item(const attention_work *w, const forward_buffers *f, const item *it, const inputs *in,
                         const lr_tensor *o, const lr_tensor *lse)
{
    const int64_t shared = w->heads / w->kv_heads;
    fetch_block(w, in, it, it->head, 0);
    for (int64_t head = it->head; head < it->head + it->heads; head++) {
        if (head == it->head || head % shared == 0) {
            const lr_source k = head_rows(w, in->k, it->start, head / shared * w->dim);
            const lr_source v = head_rows(w, in->v, it->start, head / shared * w->dim);
            lr_pack_across(f->keys, &k, it->length, w->words);
            lr_pack_down(f->values, lr_words_of(w->pairs, it->length) * LR_PANEL, LR_PANEL, &v, it->length, w->dim);
        }
        for (int64_t query = 0; query < it->length; query += QUERIES)
            forward_block(w, f, it, head, query, in, o, lse);
    }
}

int64_t LR_CPU(attention_scratch)(const lr_exec *exec, const lr_attention_call *call)
{
    attention_work w;
    forward_buffers count;
    const int status = attention_setup(&w, "attention", call->q, call->k, call->lse, call->cu, call->head_dim,
                                       call->max_length, call->scale, call->causal);
    return status == LR_OK ? divide_scratch(&w, exec->threads, NULL, 1, forward_layout(&w, NULL, &count), NULL)
                           : status;
}

int LR_CPU(attention)(lr_exec *exec, lr_tensor *o, lr_tensor *lse, const lr_tensor *q, const lr_tensor *k,
                      const lr_tensor *v, const lr_tensor *cu, int64_t head_dim, int64_t max_length, double scale,
                      int64_t causal)
{
    attention_work w;
    forward_buffers count;
    const inputs in = {{q, NULL}, k, v};
    int status = attention_setup(&w, "attention", q, k, lse, cu, head_dim, max_length, scale, causal);
    if (status == LR_OK)
        status = deal_out(&w, "attention", exec, cu, max_length, 1, forward_layout(&w, NULL, &count));
    if (status != LR_OK)
        return status;
#pragma omp parallel for num_threads(exec->threads) schedule(dynamic, 1)
    for (int64_t i = 0; i < w.count; i++) {
        forward_buffers f;
        forward_layout(&w, w.scratch + omp_get_thread_num() * w.per_thread, &f);
        forward_item(&w, &f, &w.items[i], &in, o, lse);
    }
    return LR_OK;
}

/* ---- backward -------------------------------------------------------------------------------------------------- */
typedef struct backward_buffers {
    lr_word *keys, *key_rows, *values; /* of the whole sequence */
    float *dk, *dv;
    lr_word *q, *q_panels, *d_o, *do_panels, *ds_rows; /* of a block of queries */
    float *p, *ds, *dq;
    float *partial, *along, *lse; /* partial: a vector for each row; the others of each row */
} backward_buffers;

static int64_t backward_layout(const attention_work *w, lr_word *base, backward_buffers *f)
{
    int64_t used = 0;
    const int64_t padded = lr_round_up(w->longest, LR_PANEL * LR_ROW_UNIT / 4); /* whole panels and whole row units */
    const int64_t query_panels = lr_words_of(w->pairs, QUERIES) * w->wide_dim;
    f->keys = take(base, &used, padded * w->words);
    f->key_rows = take(base, &used, lr_words_of(w->pairs, padded) * w->wide_dim);
    f->values = take(base, &used, padded * w->words);
    f->dk = take_floats(base, &used, padded * w->wide_dim);
    f->dv = take_floats(base, &used, padded * w->wide_dim);
    f->q = take(base, &used, QUERIES * w->row);
    f->q_panels = take(base, &used, query_panels);
    f->d_o = take(base, &used, QUERIES * w->row);
    f->do_panels = take(base, &used, query_panels);
    f->ds_rows = take(base, &used, w->pairs ? QUERIES * PAIRED_SCORES : 0);
    f->p = take_floats(base, &used, QUERIES * SCORES);
    f->ds = take_floats(base, &used, QUERIES * SCORES);
    f->dq = take_floats(base, &used, QUERIES * w->wide_dim);
    f->partial = take_floats(base, &used, QUERIES * LR_LANES);
    f->along = take_floats(base, &used, QUERIES);
    f->lse = take_floats(base, &used, QUERIES);
    return used;
}

/* What a block of n queries from row `first` on brings along: q and do as operands of both kinds, sum(do o), and lse as
 * an exponent of two. */
static void load_queries(const attention_work *w, const backward_buffers *f, const inputs *in, const lr_tensor *lse,
                         int64_t first, int64_t n, int64_t head)
{
    const lr_tensor *q_rows = in->by_query[0], *do_rows = in->by_query[1], *o_rows = in->by_query[2];
    const int64_t dim = w->dim, column = head * dim, panel = lr_words_of(w->pairs, n) * LR_PANEL;
    const lr_source q = head_rows(w, q_rows, first, column), d_o = head_rows(w, do_rows, first, column);
    const float *lses = lse->data;
    lr_pack_rows(f->q, w->row, &q, n, w->words);
    lr_pack_down(f->q_panels, panel, LR_PANEL, &q, n, dim);
    lr_pack_rows(f->d_o, w->row, &d_o, n, w->words);
    lr_pack_down(f->do_panels, panel, LR_PANEL, &d_o, n, dim);
    for (int64_t i = 0; i < n; i++) {
        const int64_t o_at = (first + i) * o_rows->ld + column, do_at = (first + i) * do_rows->ld + column;
        lr_vec sum = {0};
        for (int64_t d = 0; d < dim; d += LR_LANES)
            sum += lr_vec_in(o_rows->dtype, lr_at(o_rows, o_at + d), dim - d) *
                   lr_vec_in(do_rows->dtype, lr_at(do_rows, do_at + d), dim - d);
        lr_vec_store(f->partial + i * LR_LANES, sum);
        f->lse[i] = LR_LOG2_E * lses[(first + i) * w->heads + head];
    }
    for (int64_t i = 0; i < n; i += LR_LANES)
        lr_vec_store(f->along + i, lr_sums_of(f->partial + i * LR_LANES));
}

/* p = 2^(factor s - lse) and ds = p (dp - along) for a vector of row i from key j on; n of the row's keys are visible. */
static inline void gradients(const backward_buffers *f, int64_t i, int64_t j, int64_t n, float factor, lr_vec *p,
                             lr_vec *ds)
{
    *p = *ds = (lr_vec){0};
    if (j >= n)
        return;
    *p = lr_vec_exp2(exponents(f->p + i * SCORES + j, n - j, factor) - f->lse[i]);
    *ds = *p * (lr_vec_load(f->ds + i * SCORES + j) - f->along[i]);
}

/* p and ds of row i, in place of s and dp; m keys, of which n are visible. */
static inline void row_gradients(const backward_buffers *f, int64_t i, int64_t n, int64_t m, float factor)
{
    for (int64_t j = 0; j < m; j += LR_LANES) {
        lr_vec p, ds;
        gradients(f, i, j, n, factor, &p, &ds);
        lr_vec_store(f->p + i * SCORES + j, p);
        lr_vec_store(f->ds + i * SCORES + j, ds);
    }
}

/* The same of rows i and i + 1 as pairs of bf16: ds in pairs along its rows, into ds_rows, for dq; both in pairs of rows,
 * in place of the first of the two, for dk and dv. Where there is no second row, none of its keys is visible. */
static inline void paired_row_gradients(const backward_buffers *f, int64_t i, const int64_t n[2], int64_t m,
                                        float factor)
{
    lr_word *rows = f->ds_rows + i * PAIRED_SCORES;
    for (int64_t j = 0; j < m; j += LR_LANES) {
        lr_vec p[2], ds[2];
        gradients(f, i, j, n[0], factor, &p[0], &ds[0]);
        gradients(f, i + 1, j, n[1], factor, &p[1], &ds[1]);
        lr_vec_narrow_first(rows + j / 2, ds[0], LR_LANES);
        lr_vec_narrow_first(rows + PAIRED_SCORES + j / 2, ds[1], LR_LANES);
        lr_pair_down((lr_word *)f->p + i * SCORES + j, p[0], p[1]);
        lr_pair_down((lr_word *)f->ds + i * SCORES + j, ds[0], ds[1]);
    }
}

/* One head's block of n queries against all its keys. */
static void backward_block(const attention_work *w, const backward_buffers *f, const item *it, int64_t head,
                           int64_t query, const inputs *in, const lr_tensor *dq, const lr_tensor *lse)
{
    const int64_t dim = w->dim, wide = w->wide_dim, words = w->words, length = it->length;
    const int64_t n = lr_min64(QUERIES, length - query), first = it->start + query, depth = lr_words_of(w->pairs, n);
    /* the strides of p and ds read as transposed left operands, and ds as it is */
    const int64_t down = w->pairs ? 2 * SCORES : SCORES, across = w->pairs ? PAIRED_SCORES : SCORES;
    const lr_word *p = (const lr_word *)f->p, *ds = (const lr_word *)f->ds, *ds_rows = w->pairs ? f->ds_rows : ds;
    const float factor = LR_LOG2_E * w->scale;
    load_queries(w, f, in, lse, first, n, head);
    fetch_head(w, dq, first, n, head * dim, true);
    fetch_block(w, in, it, head, query + n);
    const int64_t end = last_key(w, query, n, length);
    for (int64_t key = 0; key < end; key += KEYS) {
        const int64_t m = lr_min64(KEYS, end - key);
        lr_tile_product(w->pairs, n, m, words, f->q, w->row, 1, f->keys + key * words, words * LR_PANEL, f->p, SCORES,
                        false);
        lr_tile_product(w->pairs, n, m, words, f->d_o, w->row, 1, f->values + key * words, words * LR_PANEL, f->ds,
                        SCORES, false);
        for (int64_t i = 0; i < n; i += w->pairs ? 2 : 1) {
            const int64_t seen[2] = {visible(w, query + i, key, m), i + 1 < n ? visible(w, query + i + 1, key, m) : 0};
            if (w->pairs)
                paired_row_gradients(f, i, seen, m, factor);
            else
                row_gradients(f, i, seen[0], m, factor);
        }
        lr_tile_product(w->pairs, n, dim, lr_words_of(w->pairs, m), ds_rows, across, 1,
                        f->key_rows + lr_words_of(w->pairs, key) * LR_PANEL, lr_words_of(w->pairs, length) * LR_PANEL,
                        f->dq, wide, key > 0);
        lr_tile_product(w->pairs, m, dim, depth, ds, 1, down, f->q_panels, depth * LR_PANEL, f->dk + key * wide, wide,
                        true);
        lr_tile_product(w->pairs, m, dim, depth, p, 1, down, f->do_panels, depth * LR_PANEL, f->dv + key * wide, wide,
                        true);
    }
    store_head(w, dq, first, n, head * dim, f->dq, w->scale);
}

static void backward_item(const attention_work *w, const backward_buffers *f, const item *it, const inputs *in,
                          const lr_tensor *dq, const lr_tensor *dk, const lr_tensor *dv, const lr_tensor *lse)
{
    const int64_t dim = w->dim, length = it->length, shared = w->heads / w->kv_heads;
    const size_t key_bytes = (size_t)(lr_round_up(length, LR_ROW_UNIT) * w->wide_dim) * sizeof(float);
    fetch_block(w, in, it, it->head, 0);
    for (int64_t first = it->head; first < it->head + it->heads; first += shared) {
        const int64_t column = first / shared * dim;
        const lr_source k = head_rows(w, in->k, it->start, column), v = head_rows(w, in->v, it->start, column);
        lr_pack_across(f->keys, &k, length, w->words);
        lr_pack_down(f->key_rows, lr_words_of(w->pairs, length) * LR_PANEL, LR_PANEL, &k, length, dim);
        lr_pack_across(f->values, &v, length, w->words);
        memset(f->dk, 0, key_bytes);
        memset(f->dv, 0, key_bytes);
        for (int64_t head = first; head < first + shared; head++)
            for (int64_t query = 0; query < length; query += QUERIES)
                backward_block(w, f, it, head, query, in, dq, lse);
        store_head(w, dk, it->start, length, column, f->dk, w->scale);
        store_head(w, dv, it->start, length, column, f->dv, 1.0f);
    }
}

int64_t LR_CPU(attention_backward_scratch)(const lr_exec *exec, const lr_attention_backward_call *call)
{
    attention_work w;
    backward_buffers count;
    const int status = attention_setup(&w, "attention_backward", call->q, call->k, call->lse, call->cu, call->head_dim,
                                       call->max_length, call->scale, call->causal);
    return status == LR_OK
               ? divide_scratch(&w, exec->threads, NULL, w.heads / w.kv_heads, backward_layout(&w, NULL, &count), NULL)
               : status;
}

int LR_CPU(attention_backward)(lr_exec *exec, lr_tensor *dq, lr_tensor *dk, lr_tensor *dv, const lr_tensor *d_o,
                               const lr_tensor *q, const lr_tensor *k, const lr_tensor *v, const lr_tensor *o,
                               const lr_tensor *lse, const lr_tensor *cu, int64_t head_dim, int64_t max_length,
                               double scale, int64_t causal)
{
    attention_work w;
    backward_buffers count;
    const inputs in = {{q, d_o, o, NULL}, k, v};
    int status = attention_setup(&w, "attention_backward", q, k, lse, cu, head_dim, max_length, scale, causal);
    if (status == LR_OK)
        status = deal_out(&w, "attention_backward", exec, cu, max_length, w.heads / w.kv_heads,
                          backward_layout(&w, NULL, &count));
    if (status != LR_OK)
        return status;
#pragma omp parallel for num_threads(exec->threads) schedule(dynamic, 1)
    for (int64_t i = 0; i < w.count; i++) {
        backward_buffers f;
        backward_layout(&w, w.scratch + omp_get_thread_num() * w.per_thread, &f);
        backward_item(&w, &f, &w.items[i], &in, dq, dk, dv, lse);
    }
    return LR_OK;
}
