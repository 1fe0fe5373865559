/* loader.c: threads that read, tokenise and pack batches ahead of training.
 *
 * Batches are in a ring of slots; each slot has one request and its result. Three counters run along the ring:
 *     returned <= taken <= submitted <= returned + queue
 * submit() fills slot `submitted`, a worker works on slot `taken`, next() waits for slot `returned`. There is one slot more than
 * `queue`, because the batch that next() returned last is the caller's until the next call. One worker makes each batch from its
 * request alone, so neither contents nor order nor errors depend on the number of workers.
 *
 * A loader that balances over ranks tokenises the whole batch, because the shares depend on every length, and then keeps its
 * rank's share. The sequences stay in order, so keeping a share moves ids towards the front.
 *
 * Slots and workers keep their buffers: once they have grown to the largest batch, nothing is allocated.
 *
 * If a batch fails, next() returns the worker's error and the batch is skipped. If memory ran out, the batch stays, and the
 * following next() makes it on the calling thread, so that a caller who frees memory and tries again loses nothing. */
#include "data/balance.h"
#include "data/dataset.h"
#include <stdio.h>
#include <string.h>

enum {
    POSITION_BITS = 16,
    MAX_THREADS = 256,
    MAX_QUEUE = 4096,
    ROOM = 64 /* added to the first guess of a sequence's length */
};
static const int64_t MAX_KEY = INT64_MAX >> POSITION_BITS;
_Static_assert(LR_MOST_TOKENS < 1 << POSITION_BITS, "a position has room in a key");

typedef struct slot {
    bool done;  /* a worker has finished it; under the loader's mutex */
    bool retry; /* memory ran out: next() makes it again; only its thread reads this */
    int64_t n;  /* the request: sequences */
    int64_t *rows, *sequence_keys;
    int32_t *columns;
    size_t row_cap, sequence_key_cap, column_cap;
    lr_batch batch; /* the result; its pointers are set when it is returned */
    int32_t *ids, *positions, *cu_seqlens;
    int64_t *keys;
    size_t id_cap, position_cap, cu_cap, key_cap;
    int32_t *owner, *lengths; /* of a loader that balances */
    int64_t *kept_keys, *weights, *heap, *rank_tokens;
    size_t owner_cap, length_cap, kept_key_cap, weight_cap, heap_cap, rank_cap;
    int status;
    char *error; /* [ERROR_BYTES] */
} slot;

enum { ERROR_BYTES = 2048 };

typedef struct text_buffer {
    char *text;
    size_t cap;
} text_buffer;

struct lr_loader {
    const lr_dataset *d;
    const lr_tokenizer *tok;
    int64_t max_length;
    int64_t width; /* sequences of a group; 0: no balancing */
    int world, rank;
    int columns;
    char **prefixes; /* [columns]; "": none */
    int64_t *prefix_sizes;
    slot *slots; /* [queue + 1] */
    int queue;
    text_buffer caller; /* of the thread that calls next() */
    int threads;
    pthread_t *workers;
    bool locks;
    pthread_mutex_t mutex;
    pthread_cond_t submitted_more, finished_one;
    int64_t submitted, taken, returned; /* under mutex */
    atomic_bool stop;
};

static slot *slot_of(const lr_loader *l, int64_t batch)
{
    return &l->slots[batch % (l->queue + 1)];
}

/* ---- making a batch ---------------------------------------------------------------------------------------------- */
/* Tokenise one text and append it to the slot. The error does not say where the text is from; the caller adds that. */
static int append_ids(const lr_loader *l, slot *s, const char *text, int64_t size)
{
    const int64_t at = s->batch.tokens;
    int64_t count = 0;
    size_t room = (size_t)(l->max_length > 0 ? lr_min64(l->max_length, size + ROOM) : size / 2 + ROOM);
    do { /* a second time only if the first guess was too small */
        if (lr_reserve((void **)&s->ids, &s->id_cap, (size_t)at + room, sizeof *s->ids) != LR_OK)
            return LR_ENOMEM;
        const int status =
            lr_tokenizer_encode(l->tok, text, size, 1, l->max_length, s->ids + at, (int64_t)s->id_cap - at, &count);
        if (status != LR_OK)
            return status;
        room = (size_t)count;
    } while (count > (int64_t)s->id_cap - at);
    if (count == 0)
        return lr_fail(LR_EINVAL, "the text gives no tokens (is it empty?); leave it out");
    if (count > LR_MOST_TOKENS)
        return lr_fail(LR_EINVAL, "the text has %lld tokens, at most %d are possible; set max_length", (long long)count,
                       LR_MOST_TOKENS);
    if (at + count > INT32_MAX)
        return lr_fail(LR_EINVAL, "the batch has more than %d tokens; make it smaller", INT32_MAX);
    if (l->max_length > 0 &&
        count == l->max_length) { /* it may have been cut: then it has one more if one more is allowed */
        int64_t full;
        int32_t none;
        const int status = lr_tokenizer_encode(l->tok, text, size, 1, l->max_length + 1, &none, 0, &full);
        if (status != LR_OK)
            return status;
        s->batch.truncated += full > count;
    }
    s->batch.tokens += count;
    s->batch.max_length = lr_max64(s->batch.max_length, count);
    return LR_OK;
}

/* Divide the groups of the whole batch among the ranks and keep this rank's. */
static void keep_share(const lr_loader *l, slot *s)
{
    const int64_t groups = s->n / l->width;
    memset(s->weights, 0, (size_t)groups * sizeof *s->weights);
    for (int64_t i = 0; i < s->n; i++) {
        s->lengths[i] = s->cu_seqlens[i + 1] - s->cu_seqlens[i];
        s->weights[i % groups] += s->lengths[i];
    }
    lr_balance_into(groups, s->weights, l->world, s->owner, s->rank_tokens, s->heap);
    lr_batch *b = &s->batch;
    b->sequences = b->tokens = b->max_length = 0;
    int64_t from = 0;
    for (int64_t i = 0; i < s->n; from += s->lengths[i++]) {
        if (s->owner[i % groups] != l->rank)
            continue;
        memmove(s->ids + b->tokens, s->ids + from, (size_t)s->lengths[i] * sizeof *s->ids);
        s->kept_keys[b->sequences++] = s->sequence_keys[i];
        b->tokens += s->lengths[i];
        b->max_length = lr_max64(b->max_length, s->lengths[i]);
        s->cu_seqlens[b->sequences] = (int32_t)b->tokens;
    }
    b->owner = s->owner;
    b->lengths = s->lengths;
    b->rank_tokens = s->rank_tokens;
}

/* Fill what follows from the ids, the lengths of the sequences and their keys. */
static int fill_positions(slot *s, const int64_t *sequence_keys)
{
    const size_t tokens = (size_t)s->batch.tokens;
    if (lr_reserve((void **)&s->positions, &s->position_cap, tokens, sizeof *s->positions) != LR_OK ||
        lr_reserve((void **)&s->keys, &s->key_cap, tokens, sizeof *s->keys) != LR_OK)
        return LR_ENOMEM;
    for (int64_t i = 0; i < s->batch.sequences; i++) {
        const int32_t begin = s->cu_seqlens[i], end = s->cu_seqlens[i + 1];
        const int64_t key = sequence_keys[i] * (1 << POSITION_BITS);
        for (int32_t t = begin; t < end; t++) {
            s->positions[t] = t - begin;
            s->keys[t] = key + (t - begin);
        }
    }
    s->batch.ids = s->ids;
    s->batch.positions = s->positions;
    s->batch.cu_seqlens = s->cu_seqlens;
    s->batch.keys = s->keys;
    return LR_OK;
}

/* The text of a row with its prefix, in buf. */
static int read_text(const lr_loader *l, int64_t row, int32_t column, text_buffer *buf, int64_t *size)
{
    const int64_t prefix = l->prefix_sizes[column];
    do {
        if (lr_reserve((void **)&buf->text, &buf->cap, (size_t)(prefix + *size) + 1, 1) != LR_OK)
            return LR_ENOMEM;
        memcpy(buf->text, l->prefixes[column], (size_t)prefix);
        const int status = lr_dataset_text(l->d, row, column, buf->text + prefix, (int64_t)buf->cap - prefix, size);
        if (status != LR_OK)
            return status;
    } while (prefix + *size > (int64_t)buf->cap);
    *size += prefix;
    return LR_OK;
}

static int append_row(const lr_loader *l, slot *s, int64_t row, int32_t column, text_buffer *buf)
{
    int64_t size = 0;
    int status = read_text(l, row, column, buf, &size);
    if (status != LR_OK)
        return status;
    status = append_ids(l, s, buf->text, size);
    if (status == LR_OK || status == LR_ENOMEM)
        return status;
    char why[ERROR_BYTES];
    snprintf(why, sizeof why, "%s", lr_last_error());
    return lr_fail(status, "%s:%lld: column '%s': %s", l->d->path, (long long)lr_dataset_line(l->d, row),
                   l->d->schema.names[column], why);
}

static void start_batch(slot *s)
{
    memset(&s->batch, 0, sizeof s->batch);
    s->batch.sequences = s->n;
    s->cu_seqlens[0] = 0;
}

static int make_batch(const lr_loader *l, slot *s, text_buffer *buf)
{
    int status = LR_OK;
    start_batch(s);
    for (int64_t i = 0; i < s->n && status == LR_OK; i++) {
        if (atomic_load_explicit(&l->stop, memory_order_relaxed)) /* nobody will want it */
            return lr_fail(LR_EINTERRUPTED, "the loader was stopped");
        status = append_row(l, s, s->rows[i], s->columns[i], buf);
        s->cu_seqlens[i + 1] = (int32_t)s->batch.tokens;
    }
    if (status != LR_OK)
        return status;
    if (l->width == 0)
        return fill_positions(s, s->sequence_keys);
    keep_share(l, s);
    return fill_positions(s, s->kept_keys);
}

static void make_slot(const lr_loader *l, slot *s, text_buffer *buf)
{
    s->status = make_batch(l, s, buf);
    if (s->status != LR_OK)
        snprintf(s->error, ERROR_BYTES, "%s", lr_last_error());
}

static void *worker(void *context)
{
    lr_loader *l = context;
    text_buffer buf = {0};
    pthread_mutex_lock(&l->mutex);
    for (;;) {
        while (!l->stop && l->taken == l->submitted)
            pthread_cond_wait(&l->submitted_more, &l->mutex);
        if (l->stop)
            break;
        slot *s = slot_of(l, l->taken++);
        pthread_mutex_unlock(&l->mutex);
        make_slot(l, s, &buf);
        pthread_mutex_lock(&l->mutex);
        s->done = true;
        pthread_cond_signal(&l->finished_one);
    }
    pthread_mutex_unlock(&l->mutex);
    lr_free(buf.text);
    return NULL;
}

/* ---- the caller's side ------------------------------------------------------------------------------------------- */
/* Room for balancing n sequences. */
static int slot_reserve_share(const lr_loader *l, slot *s, int64_t n)
{
    const size_t count = (size_t)n, groups = (size_t)(n / l->width);
    if (lr_reserve((void **)&s->lengths, &s->length_cap, count, sizeof *s->lengths) != LR_OK ||
        lr_reserve((void **)&s->kept_keys, &s->kept_key_cap, count, sizeof *s->kept_keys) != LR_OK ||
        lr_reserve((void **)&s->owner, &s->owner_cap, groups, sizeof *s->owner) != LR_OK ||
        lr_reserve((void **)&s->weights, &s->weight_cap, groups, sizeof *s->weights) != LR_OK ||
        lr_reserve((void **)&s->heap, &s->heap_cap, groups, sizeof *s->heap) != LR_OK ||
        lr_reserve((void **)&s->rank_tokens, &s->rank_cap, (size_t)l->world, sizeof *s->rank_tokens) != LR_OK)
        return LR_ENOMEM;
    return LR_OK;
}

static int slot_reserve(const lr_loader *l, slot *s, int64_t n)
{
    const size_t count = (size_t)n;
    if (s->error == NULL && (s->error = lr_calloc(1, ERROR_BYTES)) == NULL)
        return LR_ENOMEM;
    if (lr_reserve((void **)&s->rows, &s->row_cap, count, sizeof *s->rows) != LR_OK ||
        lr_reserve((void **)&s->columns, &s->column_cap, count, sizeof *s->columns) != LR_OK ||
        lr_reserve((void **)&s->sequence_keys, &s->sequence_key_cap, count, sizeof *s->sequence_keys) != LR_OK ||
        lr_reserve((void **)&s->cu_seqlens, &s->cu_cap, count + 1, sizeof *s->cu_seqlens) != LR_OK)
        return LR_ENOMEM;
    return l->width > 0 ? slot_reserve_share(l, s, n) : LR_OK;
}

static int check_request(const lr_loader *l, int64_t n, const int64_t *rows, const int32_t *columns,
                         const int64_t *keys)
{
    if (n < 1 || n >= INT32_MAX)
        return lr_fail(LR_EINVAL, "a batch of %lld sequences, expected 1 or more", (long long)n);
    if (l->width > 0 && n % l->width != 0)
        return lr_fail(LR_EINVAL, "a batch of %lld sequences cannot be divided into groups of %lld", (long long)n,
                       (long long)l->width);
    for (int64_t i = 0; i < n; i++) {
        if (rows[i] < 0 || rows[i] >= l->d->rows)
            return lr_fail(LR_EINVAL, "sequence %lld: there is no row %lld in %s, it has %lld", (long long)i,
                           (long long)rows[i], l->d->path, (long long)l->d->rows);
        if (columns[i] < 0 || columns[i] >= l->columns || l->d->schema.kinds[columns[i]] != LR_COLUMN_TEXT)
            return lr_fail(LR_EINVAL, "sequence %lld: column %d of %s is no text column", (long long)i, columns[i],
                           l->d->path);
        if (keys[i] < 0 || keys[i] > MAX_KEY)
            return lr_fail(LR_EINVAL, "sequence %lld: key %lld, expected 0 to %lld", (long long)i, (long long)keys[i],
                           (long long)MAX_KEY);
    }
    return LR_OK;
}

int lr_loader_balance(lr_loader *l, int64_t width, int world, int rank)
{
    if (width < 1 || world < 1 || rank < 0 || rank >= world)
        return lr_fail(LR_EINVAL, "rank %d of %d cannot have a share in groups of %lld", rank, world, (long long)width);
    if (l->submitted > 0)
        return lr_fail(LR_EINVAL, "batches were submitted already; balance the loader before the first one");
    l->width = width;
    l->world = world;
    l->rank = rank;
    return LR_OK;
}

int64_t lr_loader_room(const lr_loader *l)
{
    return l->queue - (l->submitted - l->returned); /* both are written by the caller's thread alone */
}

int lr_loader_submit(lr_loader *l, int64_t n, const int64_t *rows, const int32_t *columns, const int64_t *keys)
{
    if (lr_loader_room(l) <= 0)
        return lr_fail(LR_EINVAL, "the loader's queue of %d batches is full; take one with next first", l->queue);
    int status = check_request(l, n, rows, columns, keys);
    slot *s = slot_of(l, l->submitted);
    if (status == LR_OK)
        status = slot_reserve(l, s, n);
    if (status != LR_OK)
        return status;
    s->n = n;
    s->done = s->retry = false;
    memcpy(s->rows, rows, (size_t)n * sizeof *rows);
    memcpy(s->columns, columns, (size_t)n * sizeof *columns);
    memcpy(s->sequence_keys, keys, (size_t)n * sizeof *keys);
    pthread_mutex_lock(&l->mutex);
    l->submitted++;
    pthread_cond_signal(&l->submitted_more);
    pthread_mutex_unlock(&l->mutex);
    return LR_OK;
}

int lr_loader_next(lr_loader *l, lr_batch *out)
{
    if (l->returned == l->submitted)
        return lr_fail(LR_EEND, "no batch is waiting: none was submitted since the last one came back");
    const double start = lr_time();
    slot *s = slot_of(l, l->returned);
    if (s->retry) {
        make_slot(l, s, &l->caller);
    } else {
        pthread_mutex_lock(&l->mutex);
        while (!s->done)
            pthread_cond_wait(&l->finished_one, &l->mutex);
        pthread_mutex_unlock(&l->mutex);
    }
    s->retry = s->status == LR_ENOMEM;
    if (s->retry)
        return lr_fail(LR_ENOMEM, "%s", s->error);
    l->returned++;
    if (s->status != LR_OK)
        return lr_fail(s->status, "%s", s->error);
    s->batch.wait = lr_time() - start;
    *out = s->batch;
    return LR_OK;
}

/* ---- making and freeing loaders ---------------------------------------------------------------------------------- */
static int loader_new(lr_loader **out, const lr_dataset *d, const lr_tokenizer *tok, int64_t max_length, int queue)
{
    if (max_length < 0 || max_length > LR_MOST_TOKENS)
        return lr_fail(LR_EINVAL, "max_length is %lld, expected 1 to %d, or 0 for no limit", (long long)max_length,
                       LR_MOST_TOKENS);
    lr_loader *l = lr_calloc(1, sizeof *l);
    if (l == NULL)
        return LR_ENOMEM;
    l->d = d;
    l->tok = tok;
    l->max_length = max_length;
    l->queue = queue;
    l->slots = lr_calloc((size_t)queue + 1, sizeof *l->slots);
    if (l->slots == NULL) {
        lr_free(l);
        return LR_ENOMEM;
    }
    *out = l;
    return LR_OK;
}

static int copy_prefixes(lr_loader *l, const char *const *prefixes)
{
    const int n = l->d->schema.columns;
    l->prefixes = lr_calloc((size_t)n, sizeof *l->prefixes);
    l->prefix_sizes = lr_calloc((size_t)n, sizeof *l->prefix_sizes);
    if (l->prefixes == NULL || l->prefix_sizes == NULL)
        return LR_ENOMEM;
    for (; l->columns < n; l->columns++) {
        const char *prefix = prefixes != NULL && prefixes[l->columns] != NULL ? prefixes[l->columns] : "";
        l->prefixes[l->columns] = lr_strdup(prefix);
        if (l->prefixes[l->columns] == NULL)
            return LR_ENOMEM;
        l->prefix_sizes[l->columns] = (int64_t)strlen(prefix);
    }
    return LR_OK;
}

static int start_workers(lr_loader *l, int threads)
{
    l->workers = lr_calloc((size_t)threads, sizeof *l->workers);
    if (l->workers == NULL)
        return LR_ENOMEM;
    pthread_mutex_init(&l->mutex, NULL);
    pthread_cond_init(&l->submitted_more, NULL);
    pthread_cond_init(&l->finished_one, NULL);
    l->locks = true;
    int status = LR_OK;
    while (l->threads < threads && (status = lr_thread_start(&l->workers[l->threads], worker, l)) == LR_OK)
        l->threads++;
    return status;
}

int lr_loader_new(lr_loader **out, const lr_dataset *d, const lr_tokenizer *tok, int64_t max_length,
                  const char *const *prefixes, int threads, int queue)
{
    if (threads < 1 || threads > MAX_THREADS)
        return lr_fail(LR_EINVAL, "a loader with %d threads, expected 1 to %d", threads, MAX_THREADS);
    if (queue < 1 || queue > MAX_QUEUE)
        return lr_fail(LR_EINVAL, "a loader's queue of %d batches, expected 1 to %d", queue, MAX_QUEUE);
    lr_loader *l = NULL;
    int status = loader_new(&l, d, tok, max_length, queue);
    if (status != LR_OK)
        return status;
    status = copy_prefixes(l, prefixes);
    if (status == LR_OK)
        status = start_workers(l, threads);
    if (status == LR_OK)
        *out = l;
    else
        lr_loader_free(l);
    return status;
}

static void slot_clear(slot *s)
{
    lr_free(s->rows);
    lr_free(s->columns);
    lr_free(s->sequence_keys);
    lr_free(s->ids);
    lr_free(s->positions);
    lr_free(s->cu_seqlens);
    lr_free(s->keys);
    lr_free(s->owner);
    lr_free(s->lengths);
    lr_free(s->kept_keys);
    lr_free(s->weights);
    lr_free(s->heap);
    lr_free(s->rank_tokens);
    lr_free(s->error);
}

void lr_loader_free(lr_loader *l)
{
    if (l == NULL)
        return;
    if (l->locks) {
        pthread_mutex_lock(&l->mutex);
        l->stop = true;
        pthread_cond_broadcast(&l->submitted_more);
        pthread_mutex_unlock(&l->mutex);
        for (int i = 0; i < l->threads; i++)
            pthread_join(l->workers[i], NULL);
        pthread_cond_destroy(&l->finished_one);
        pthread_cond_destroy(&l->submitted_more);
        pthread_mutex_destroy(&l->mutex);
    }
    for (int i = 0; i <= l->queue; i++)
        slot_clear(&l->slots[i]);
    for (int i = 0; i < l->columns; i++)
        lr_free(l->prefixes[i]);
    lr_free(l->prefixes);
    lr_free(l->prefix_sizes);
    lr_free(l->workers);
    lr_free(l->caller.text);
    lr_free(l->slots);
    lr_free(l);
}

static int pack_texts(lr_loader *l, slot *s, const char *const *texts, const int64_t *sizes)
{
    start_batch(s);
    for (int64_t i = 0; i < s->n; i++) {
        const int status = append_ids(l, s, texts[i], sizes[i]);
        if (status == LR_ENOMEM)
            return status;
        if (status != LR_OK) {
            char why[ERROR_BYTES];
            snprintf(why, sizeof why, "%s", lr_last_error());
            return lr_fail(status, "text %lld of %lld: %s", (long long)i + 1, (long long)s->n, why);
        }
        s->sequence_keys[i] = i;
        s->cu_seqlens[i + 1] = (int32_t)s->batch.tokens;
    }
    return fill_positions(s, s->sequence_keys);
}

int lr_loader_pack(lr_loader **out, const lr_tokenizer *tok, int64_t n, const char *const *texts, const int64_t *sizes,
                   int64_t max_length, lr_batch *batch)
{
    if (n < 1 || n >= INT32_MAX)
        return lr_fail(LR_EINVAL, "%lld texts to pack, expected 1 or more", (long long)n);
    lr_loader *l = NULL;
    int status = loader_new(&l, NULL, tok, max_length, 0);
    if (status != LR_OK)
        return status;
    slot *s = &l->slots[0];
    s->n = n;
    status = slot_reserve(l, s, n);
    if (status == LR_OK)
        status = pack_texts(l, s, texts, sizes);
    if (status != LR_OK) {
        lr_loader_free(l);
        return status;
    }
    *batch = s->batch;
    *out = l;
    return LR_OK;
}
