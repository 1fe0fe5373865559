/* dataset_index.c: the index of a data set.
 *
 * Opening walks the whole file once, so that whatever is wrong with it is reported now and not in the third hour of a training.
 * The file is cut into chunks of LR_CHUNK bytes, which threads read in parallel. Each thread guesses where the first row of its
 * chunk starts. Then one thread goes over the chunks in order and checks that each began where the one before had ended. If a
 * guess was wrong, or a chunk was not read, it reads that chunk itself. So the result is always, bit by bit, that of one thread
 * that reads from the first byte to the last, and the bad row that is reported is the first one of the file.
 *
 * In JSON Lines every line feed ends a row. In CSV a line feed inside quotes does not: a first pass counts the quotes of every
 * chunk, and the parity of their sum tells whether a chunk starts inside a quoted field.
 *
 * Memory: for each row 8 bytes (where it starts) and 8 bytes for each of its numbers; for each chunk the line on which it
 * starts. Texts stay in the file and are found by reading their row again. */
#include "data/dataset.h"
#include <stdio.h>
#include <string.h>

enum { MAX_THREADS = 64 };

/* ---- work for several threads ------------------------------------------------------------------------------------ */
static void *work_thread(void *context)
{
    lr_work *w = context;
    while (!atomic_load(&w->stop)) {
        const int64_t i = atomic_fetch_add(&w->next, 1);
        if (i >= w->count)
            break;
        w->run(w, i);
    }
    return NULL;
}

void lr_work_run(lr_work *w)
{
    pthread_t threads[MAX_THREADS];
    const int64_t wanted = lr_min64(lr_min64(lr_threads(), MAX_THREADS), w->count) - 1;
    int started = 0;
    while (started < wanted && lr_thread_start(&threads[started], work_thread, w) == LR_OK)
        started++;
    work_thread(w);
    for (int i = 0; i < started; i++)
        pthread_join(threads[i], NULL);
}

/* ---- reading a chunk --------------------------------------------------------------------------------------------- */
int64_t lr_count_bytes(const char *p, const char *end, char c)
{
    int64_t n = 0;
    for (; end - p >= 8; p += 8) { /* set the high bit of exactly those bytes that are c, then add the bits */
        const uint64_t x = lr_bytes_load(p) ^ (LR_BYTE_ONES * (unsigned char)c);
        const uint64_t equal = ~(((x & ~LR_BYTE_HIGHS) + ~LR_BYTE_HIGHS) | x) & LR_BYTE_HIGHS;
        n += (int64_t)(((equal >> 7) * LR_BYTE_ONES) >> 56);
    }
    for (; p < end; p++)
        n += *p == c;
    return n;
}

lr_row_state lr_dataset_read_row(const lr_dataset *d, const char *p, const char **next, lr_cell *cells, char *why)
{
    const char *end = d->data + d->size;
    return d->csv ? lr_csv_row(&d->schema, p, end, next, cells, why)
                  : lr_jsonl_row(&d->schema, p, end, next, cells, why);
}

static int add_row(const lr_dataset *d, lr_chunk *c, int64_t offset, const lr_cell *cells)
{
    if (lr_reserve((void **)&c->offsets, &c->offset_cap, (size_t)c->rows + 1, sizeof *c->offsets) != LR_OK ||
        lr_reserve((void **)&c->numbers, &c->number_cap, (size_t)((c->rows + 1) * d->width), sizeof *c->numbers) !=
            LR_OK)
        return LR_ENOMEM;
    int64_t at = c->rows * d->width;
    for (int i = 0; i < d->schema.columns; i++)
        if (d->schema.kinds[i] == LR_COLUMN_NUMBER)
            c->numbers[at++] = cells[i].number;
    c->offsets[c->rows++] = offset;
    return LR_OK;
}

/* Read the rows that start in [begin, c->limit); stop after max_rows good ones. */
static void read_chunk(const lr_dataset *d, lr_chunk *c, int64_t begin, int64_t max_rows)
{
    lr_cell cells[LR_ROW_COLUMNS];
    char why[LR_ROW_WHY];
    lr_free(c->why);
    c->why = NULL;
    c->rows = c->skipped = c->lines = 0;
    c->failed = false;
    c->read = true;
    c->status = LR_OK;
    c->begin = begin;
    const char *p = d->data + begin, *limit = d->data + c->limit, *next;
    for (; p < limit && c->rows < max_rows && !c->failed && c->status == LR_OK; p = next) {
        const lr_row_state state = lr_dataset_read_row(d, p, &next, cells, why);
        if (state == LR_ROW_GOOD) {
            c->status = add_row(d, c, p - d->data, cells);
        } else if (state == LR_ROW_BAD) {
            c->skipped++;
            c->failed = !d->skip_bad;
            if (c->why == NULL) {
                c->why = lr_strdup(why);
                c->why_line = c->lines;
                c->status = c->why == NULL ? LR_ENOMEM : LR_OK;
            }
        }
        c->lines += d->csv ? lr_count_bytes(p, next, '\n') : next[-1] == '\n';
    }
    c->stop = p - d->data;
}

static void count_quotes(lr_work *w, int64_t index)
{
    lr_chunk *c = &w->d->chunks[index];
    const int64_t begin = index * LR_CHUNK;
    c->quotes = lr_count_bytes(w->d->data + begin, w->d->data + c->limit, '"');
}

/* Guess where the first row of a chunk starts, without reading the chunks before it. */
static int64_t guess_begin(const lr_dataset *d, const lr_chunk *c, int64_t index)
{
    const int64_t nominal = index * LR_CHUNK;
    if (nominal <= d->start)
        return d->start;
    const char *p = d->data + nominal - 1, *end = d->data + lr_min64(d->size, nominal + LR_ROW_BYTES);
    bool quoted = d->csv && ((c->quotes - (*p == '"')) & 1) != 0;
    for (; p < end; p++) {
        if (d->csv && *p == '"')
            quoted = !quoted;
        else if (*p == '\n' && !quoted)
            return p + 1 - d->data;
    }
    return d->size;
}

static void read_guessed(lr_work *w, int64_t index)
{
    const lr_dataset *d = w->d;
    lr_chunk *c = &d->chunks[index];
    const int64_t max = d->max_rows > 0 ? d->max_rows : INT64_MAX;
    read_chunk(d, c, guess_begin(d, c, index), max);
    if (c->status != LR_OK || c->failed || atomic_fetch_add(&w->rows, c->rows) + c->rows >= max)
        atomic_store(&w->stop, true);
}

/* ---- the index --------------------------------------------------------------------------------------------------- */
int lr_dataset_bad_row(const lr_dataset *d, int64_t line, const char *why)
{
    return lr_fail(LR_EFORMAT, "%s:%lld: %s", d->path, (long long)line, why);
}

/* Go over the chunks in order, as the head of this file says. */
static int join_chunks(lr_dataset *d)
{
    int64_t at = d->start, line = d->start_line;
    const int64_t max = d->max_rows > 0 ? d->max_rows : INT64_MAX;
    for (int64_t i = 0; i < d->chunk_count && d->rows < max; i++) {
        lr_chunk *c = &d->chunks[i];
        if (at >= c->limit) { /* a long row ends after this chunk */
            c->rows = 0;
            c->line = line;
            continue;
        }
        if (!c->read || c->begin != at || c->rows >= max - d->rows || c->status != LR_OK)
            read_chunk(d, c, at, max - d->rows);
        if (c->status != LR_OK)
            return c->status;
        c->line = line;
        if (c->failed)
            return lr_dataset_bad_row(d, line + c->why_line, c->why);
        if (c->why != NULL && d->first_skip == NULL) {
            d->first_skip = lr_format("%s:%lld: %s", d->path, (long long)(line + c->why_line), c->why);
            if (d->first_skip == NULL)
                return LR_ENOMEM;
        }
        d->rows += c->rows;
        d->skipped += c->skipped;
        at = c->stop;
        line += c->lines;
    }
    if (d->rows == 0 && d->skipped > 0)
        return lr_fail(LR_EFORMAT, "%s: none of its %lld rows can be used; the first: %s", d->path,
                       (long long)d->skipped, d->first_skip);
    if (d->rows == 0)
        return lr_fail(LR_EFORMAT, "%s has no rows", d->path);
    return LR_OK;
}

/* Read all chunks in parallel, join them, and copy what they found into one index. */
int lr_dataset_index(lr_dataset *d)
{
    d->chunk_count = (d->size + LR_CHUNK - 1) / LR_CHUNK;
    d->chunks = lr_calloc((size_t)d->chunk_count, sizeof *d->chunks);
    if (d->chunks == NULL)
        return LR_ENOMEM;
    for (int64_t i = 0; i < d->chunk_count; i++)
        d->chunks[i].limit = lr_min64((i + 1) * LR_CHUNK, d->size);
    if (d->csv) {
        lr_work quotes = {.d = d, .run = count_quotes, .count = d->chunk_count};
        lr_work_run(&quotes);
        for (int64_t i = 0, sum = 0; i < d->chunk_count; i++) {
            const int64_t here = d->chunks[i].quotes;
            d->chunks[i].quotes = sum;
            sum += here;
        }
    }
    lr_work rows = {.d = d, .run = read_guessed, .count = d->chunk_count};
    lr_work_run(&rows);
    const int status = join_chunks(d);
    if (status != LR_OK)
        return status;
    d->offsets = lr_alloc((size_t)d->rows * sizeof *d->offsets);
    d->numbers = lr_alloc((size_t)(d->rows * d->width) * sizeof *d->numbers);
    if (d->offsets == NULL || d->numbers == NULL)
        return LR_ENOMEM;
    for (int64_t i = 0, at = 0; i < d->chunk_count && at < d->rows; i++) {
        lr_chunk *c = &d->chunks[i];
        if (c->rows == 0)
            continue;
        memcpy(d->offsets + at, c->offsets, (size_t)c->rows * sizeof *d->offsets);
        if (d->width > 0)
            memcpy(d->numbers + at * d->width, c->numbers, (size_t)(c->rows * d->width) * sizeof *d->numbers);
        at += c->rows;
    }
    return LR_OK;
}

void lr_dataset_index_trim(lr_dataset *d)
{
    for (int64_t i = 0; d->chunks != NULL && i < d->chunk_count; i++) {
        lr_chunk *c = &d->chunks[i];
        lr_free(c->offsets);
        lr_free(c->numbers);
        lr_free(c->why);
        c->offsets = NULL;
        c->numbers = NULL;
        c->why = NULL;
    }
}
