/* dataset.c: data sets: opening a file, and reading the rows that are in its index (dataset_index.c).
 *
 * A data set never changes after opening, so any number of threads may read it. A text is found by reading its row again, with
 * the same checks as on opening. So if somebody has changed the file meanwhile, the result is an error and not a wrong text. */
#define _GNU_SOURCE
#include "data/dataset.h"
#include "io/file.h"
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>
#include <unistd.h>

enum { HASH_ROWS = 4096 };

/* ---- opening ----------------------------------------------------------------------------------------------------- */
static bool ends_with_csv(const char *path)
{
    const size_t n = strlen(path);
    return n >= 4 && strcasecmp(path + n - 4, ".csv") == 0;
}

/* Files that are no text, by their first bytes. */
static int check_magic(const lr_dataset *d)
{
    static const struct {
        const char *bytes, *what, *remedy;
    } magics[] = {
        {"\xFF\xFE", "UTF-16 text", "convert it: iconv -f UTF-16 -t UTF-8"},
        {"\xFE\xFF", "UTF-16 text", "convert it: iconv -f UTF-16 -t UTF-8"},
        {"\x1F\x8B", "compressed with gzip", "unpack it: gunzip"},
        {"\x28\xB5\x2F\xFD", "compressed with Zstandard", "unpack it: unzstd"},
        {"PAR1", "a Parquet file", "export it as JSON Lines"},
        {"PK\x03\x04", "a ZIP archive or a spreadsheet", "unpack it, or export it as CSV"},
    };
    for (size_t i = 0; i < LR_COUNT_OF(magics); i++) {
        const size_t n = strlen(magics[i].bytes);
        if ((size_t)d->size >= n && memcmp(d->data, magics[i].bytes, n) == 0)
            return lr_fail(LR_EFORMAT, "%s is %s, expected %s in UTF-8 (%s)", d->path, magics[i].what,
                           d->csv ? "CSV" : "JSON Lines", magics[i].remedy);
    }
    return lr_file_refuse_pointer(d->path, d->data, (size_t)d->size);
}

/* Map the file. Its descriptor stays open at *fd, for check_unchanged. */
static int map_file(lr_dataset *d, int *fd)
{
    struct stat st;
    *fd = open(d->path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* opening a FIFO must not block */
    if (*fd < 0)
        return lr_fail_errno("cannot open data set %s", d->path);
    if (fstat(*fd, &st) != 0)
        return lr_fail_errno("cannot read data set %s", d->path);
    if (S_ISDIR(st.st_mode))
        return lr_fail(LR_EINVAL, "data set %s is a directory, expected a JSON Lines or CSV file", d->path);
    if (!S_ISREG(st.st_mode))
        return lr_fail(LR_EINVAL,
                       "data set %s is no regular file; copy its contents into one (data sets are memory-mapped)",
                       d->path);
    if (st.st_size == 0)
        return lr_fail(LR_EFORMAT, "%s is empty", d->path);
    if (lr_mapping_open(&d->mapping, *fd, st.st_size, &d->data) != 0)
        return lr_fail_errno("cannot map data set %s", d->path);
    d->size = st.st_size;
    d->start = d->size >= 3 && memcmp(d->data, "\xEF\xBB\xBF", 3) == 0 ? 3 : 0;
    d->start_line = 1;
    const int status = check_magic(d);
    if (status != LR_OK || !d->csv)
        return status;
    for (; d->start < d->size && strchr("\r\n", d->data[d->start]) != NULL && d->data[d->start] != 0; d->start++)
        d->start_line += d->data[d->start] == '\n';
    return d->start < d->size ? LR_OK : lr_fail(LR_EFORMAT, "%s has no header line", d->path);
}

/* status, or an error if some of what was read was no longer in the file. */
static int check_whole(const lr_dataset *d, int status)
{
    if (d->mapping == NULL || lr_mapping_whole(d->mapping))
        return status;
    return lr_fail(
        LR_EIO, "data set %s was cut short while it was read, or its disk failed; it had %lld bytes when it was opened",
        d->path, (long long)d->size);
}

static int check_unchanged(const lr_dataset *d, int fd)
{
    struct stat st;
    if (fstat(fd, &st) != 0)
        return lr_fail_errno("cannot read data set %s", d->path);
    if (st.st_size != d->size)
        return lr_fail(LR_EIO, "data set %s changed while it was opened: it had %lld bytes and has %lld", d->path,
                       (long long)d->size, (long long)st.st_size);
    return LR_OK;
}

static int column_of(const lr_schema *s, const lr_cell *field)
{
    char name[LR_ROW_NAME];
    const size_t size = (size_t)lr_csv_decode(field, name, sizeof name);
    for (int c = 0; c < s->columns; c++)
        if (strlen(s->names[c]) == size && memcmp(s->names[c], name, size) == 0)
            return c;
    return -1;
}

/* The header of a CSV file: which field is which column, and where the rows start. */
static int read_header(lr_dataset *d)
{
    lr_schema *s = &d->schema;
    lr_cell cell;
    char why[LR_ROW_WHY], list[LR_ROW_WHY] = "", name[LR_ROW_NAME];
    const char *end = d->data + d->size, *header = d->data + d->start, *p = header;
    for (bool more = true; more; s->fields++)
        if (!lr_csv_field(&p, end, &cell, &more, why))
            return lr_dataset_bad_row(d, d->start_line + lr_count_bytes(header, p, '\n'), why);
    s->wanted = lr_alloc((size_t)s->fields * sizeof *s->wanted);
    if (s->wanted == NULL)
        return LR_ENOMEM;
    bool found[LR_ROW_COLUMNS] = {false};
    p = header;
    for (int f = 0; f < s->fields; f++) {
        bool more;
        lr_csv_field(&p, end, &cell, &more, why);
        const int c = s->wanted[f] = column_of(s, &cell);
        if (c >= 0 && found[c])
            return lr_fail(LR_EFORMAT, "%s:%lld: the header has column '%s' twice", d->path, (long long)d->start_line,
                           s->names[c]);
        if (c >= 0)
            found[c] = true;
        const int64_t size = lr_csv_decode(&cell, name, sizeof name);
        lr_name_append(list, sizeof list, name, (size_t)lr_min64(size, sizeof name));
    }
    for (int c = 0; c < s->columns; c++)
        if (!found[c])
            return lr_fail(LR_EFORMAT, "%s:%lld: column '%s' is missing; the header has: %s%s", d->path,
                           (long long)d->start_line, s->names[c], list,
                           s->fields == 1 && strpbrk(list, ";\t|") != NULL ? " (fields must be separated by commas)"
                                                                           : "");
    d->start_line += lr_count_bytes(header, p, '\n');
    d->start = p - d->data;
    return LR_OK;
}

static int check_arguments(const char *const *columns, const int *kinds, int n, int on_bad_row, int64_t max_rows)
{
    if (n < 1 || n > LR_ROW_COLUMNS)
        return lr_fail(LR_EINVAL, "a data set with %d columns, expected 1 to %d", n, LR_ROW_COLUMNS);
    for (int c = 0; c < n; c++) {
        if (columns[c] == NULL || *columns[c] == 0 || strlen(columns[c]) >= LR_ROW_NAME)
            return lr_fail(LR_EINVAL, "column %d of a data set needs a name of 1 to %d bytes", c, LR_ROW_NAME - 1);
        if (kinds[c] != LR_COLUMN_TEXT && kinds[c] != LR_COLUMN_NUMBER)
            return lr_fail(LR_EINVAL, "column '%s' has kind %d, expected LR_COLUMN_TEXT or LR_COLUMN_NUMBER",
                           columns[c], kinds[c]);
        for (int i = 0; i < c; i++)
            if (strcmp(columns[i], columns[c]) == 0)
                return lr_fail(LR_EINVAL, "column '%s' is asked for twice", columns[c]);
    }
    if (on_bad_row != LR_BAD_ROW_ERROR && on_bad_row != LR_BAD_ROW_SKIP)
        return lr_fail(LR_EINVAL, "on_bad_row is %d, expected LR_BAD_ROW_ERROR or LR_BAD_ROW_SKIP", on_bad_row);
    if (max_rows < 0)
        return lr_fail(LR_EINVAL, "max_rows is %lld, expected 0 (all) or more", (long long)max_rows);
    return LR_OK;
}

static int copy_schema(lr_dataset *d, const char *const *columns, const int *kinds, int n)
{
    lr_schema *s = &d->schema;
    s->names = lr_calloc((size_t)n, sizeof *s->names);
    s->kinds = lr_alloc((size_t)n * sizeof *s->kinds);
    if (s->names == NULL || s->kinds == NULL)
        return LR_ENOMEM;
    for (int c = 0; c < n; c++) {
        s->columns = c + 1;
        s->kinds[c] = kinds[c];
        d->width += kinds[c] == LR_COLUMN_NUMBER;
        s->names[c] = lr_strdup(columns[c]);
        if (s->names[c] == NULL)
            return LR_ENOMEM;
    }
    return LR_OK;
}

static int dataset_new(lr_dataset **out, const char *path)
{
    lr_dataset *d = lr_calloc(1, sizeof *d);
    if (d == NULL)
        return LR_ENOMEM;
    d->path = lr_strdup(path);
    if (d->path == NULL) {
        lr_free(d);
        return LR_ENOMEM;
    }
    d->csv = ends_with_csv(path);
    *out = d;
    return LR_OK;
}

int lr_dataset_open(lr_dataset **out, const char *path, const char *const *columns, const int *kinds, int n,
                    int on_bad_row, int64_t max_rows)
{
    lr_dataset *d = NULL;
    int fd = -1, status = check_arguments(columns, kinds, n, on_bad_row, max_rows);
    if (status != LR_OK || (status = dataset_new(&d, path)) != LR_OK)
        return status;
    d->skip_bad = on_bad_row == LR_BAD_ROW_SKIP;
    d->max_rows = max_rows;
    status = copy_schema(d, columns, kinds, n);
    if (status == LR_OK)
        status = map_file(d, &fd);
    if (status == LR_OK && d->csv)
        status = read_header(d);
    if (status == LR_OK)
        status = lr_dataset_index(d);
    if (status == LR_OK)
        status = check_unchanged(d, fd);
    status = check_whole(d, status);
    if (fd >= 0)
        close(fd);
    lr_dataset_index_trim(d);
    if (status == LR_OK)
        *out = d;
    else
        lr_dataset_close(d);
    return status;
}

void lr_dataset_close(lr_dataset *d)
{
    if (d == NULL)
        return;
    lr_mapping_close(d->mapping);
    for (int c = 0; c < d->schema.columns; c++)
        lr_free(d->schema.names[c]);
    lr_free(d->schema.names);
    lr_free(d->schema.kinds);
    lr_free(d->schema.wanted);
    lr_free(d->chunks);
    lr_free(d->offsets);
    lr_free(d->numbers);
    lr_free(d->first_skip);
    lr_free(d->path);
    lr_free(d);
}

/* ---- reading ----------------------------------------------------------------------------------------------------- */
int64_t lr_dataset_rows(const lr_dataset *d)
{
    return d->rows;
}

int64_t lr_dataset_skipped(const lr_dataset *d)
{
    return d->skipped;
}

const char *lr_dataset_first_skip(const lr_dataset *d)
{
    return d->first_skip;
}

static int check_column(const lr_dataset *d, int column, int kind)
{
    const lr_schema *s = &d->schema;
    if (column < 0 || column >= s->columns)
        return lr_fail(LR_EINVAL, "%s: there is no column %d, it was opened with %d", d->path, column, s->columns);
    if (s->kinds[column] != kind)
        return lr_fail(LR_EINVAL, "%s: column '%s' was opened as %s", d->path, s->names[column],
                       kind == LR_COLUMN_TEXT ? "numbers, it has no texts" : "texts, it has no numbers");
    return LR_OK;
}

int lr_dataset_numbers(const lr_dataset *d, int column, double *out)
{
    const int status = check_column(d, column, LR_COLUMN_NUMBER);
    if (status != LR_OK)
        return status;
    int place = 0;
    for (int c = 0; c < column; c++)
        place += d->schema.kinds[c] == LR_COLUMN_NUMBER;
    for (int64_t row = 0; row < d->rows; row++)
        out[row] = d->numbers[row * d->width + place];
    return LR_OK;
}

static int read_cells(const lr_dataset *d, int64_t row, lr_cell *cells)
{
    char why[LR_ROW_WHY];
    const char *next, *following = d->data + (row + 1 < d->rows ? d->offsets[row + 1] : d->size);
    if (lr_dataset_read_row(d, d->data + d->offsets[row], &next, cells, why) != LR_ROW_GOOD || next > following)
        return lr_fail(LR_EIO, "%s: row %lld is not what it was when the data set was opened: the file has changed",
                       d->path, (long long)row);
    return LR_OK;
}

static int64_t decode(const lr_dataset *d, const lr_cell *cell, char *buf, int64_t cap)
{
    return d->csv ? lr_csv_decode(cell, buf, cap) : lr_jsonl_decode(cell, buf, cap);
}

int lr_dataset_text(const lr_dataset *d, int64_t row, int column, char *buf, int64_t cap, int64_t *size)
{
    lr_cell cells[LR_ROW_COLUMNS];
    int status = check_column(d, column, LR_COLUMN_TEXT);
    if (status == LR_OK && (row < 0 || row >= d->rows))
        status =
            lr_fail(LR_EINVAL, "%s: there is no row %lld, it has %lld", d->path, (long long)row, (long long)d->rows);
    if (status == LR_OK)
        status = read_cells(d, row, cells);
    if (status == LR_OK)
        *size = decode(d, &cells[column], buf, cap);
    return check_whole(d, status);
}

int64_t lr_dataset_line(const lr_dataset *d, int64_t row)
{
    if (row < 0 || row >= d->rows)
        return lr_fail(LR_EINVAL, "%s: there is no row %lld, it has %lld", d->path, (long long)row, (long long)d->rows);
    const int64_t offset = d->offsets[row];
    const lr_chunk *c = &d->chunks[offset / LR_CHUNK];
    const int64_t line = c->line + lr_count_bytes(d->data + c->begin, d->data + offset, '\n');
    const int status = check_whole(d, LR_OK);
    return status == LR_OK ? line : status;
}

/* A 64-bit hash like wyhash: eight bytes at a time, the two halves of a 128-bit product folded into one word. The constants are
 * digits of the golden ratio and of pi. It does not resist an attacker who looks for collisions. */
static uint64_t fold(uint64_t a, uint64_t b)
{
    const unsigned __int128 product = (unsigned __int128)a * b;
    return (uint64_t)product ^ (uint64_t)(product >> 64);
}

static uint64_t hash_text(const char *p, int64_t size)
{
    const uint64_t k0 = 0x9E3779B97F4A7C15ull, k1 = 0x243F6A8885A308D3ull, k2 = 0x13198A2E03707345ull;
    uint64_t h = k0 ^ (uint64_t)size, tail = 0;
    for (; size >= 8; p += 8, size -= 8)
        h = fold(h ^ lr_bytes_load(p), k1) + k0;
    memcpy(&tail, p, (size_t)size);
    return fold(fold(h ^ tail, k2) ^ k1, k0);
}

static void hash_rows(lr_work *w, int64_t index)
{
    const lr_dataset *d = w->d;
    lr_cell cells[LR_ROW_COLUMNS];
    const lr_cell *cell = &cells[w->column];
    void *buf = NULL;
    size_t cap = 0;
    int status = LR_OK;
    const int64_t end = lr_min64(d->rows, (index + 1) * HASH_ROWS);
    for (int64_t row = index * HASH_ROWS; row < end && status == LR_OK; row++) {
        status = read_cells(d, row, cells);
        if (status == LR_OK && cell->escaped) {
            status = lr_reserve(&buf, &cap, (size_t)cell->size, 1); /* decoding never makes a text longer */
            if (status == LR_OK)
                w->hashes[row] = hash_text(buf, decode(d, cell, buf, cell->size));
        } else if (status == LR_OK) {
            w->hashes[row] = hash_text(cell->text, cell->size);
        }
    }
    lr_free(buf);
    if (status != LR_OK) {
        atomic_store(&w->status, status);
        atomic_store(&w->stop, true);
    }
}

int lr_dataset_hashes(const lr_dataset *d, int column, uint64_t *out)
{
    const int status = check_column(d, column, LR_COLUMN_TEXT);
    if (status != LR_OK)
        return status;
    lr_work w = {
        .d = d, .run = hash_rows, .count = (d->rows + HASH_ROWS - 1) / HASH_ROWS, .column = column, .hashes = out};
    lr_work_run(&w);
    if (!lr_mapping_whole(d->mapping))
        return check_whole(d, LR_OK);
    if (w.status == LR_ENOMEM)
        return lr_fail(LR_ENOMEM, "%s: out of host memory for hashing column '%s'", d->path, d->schema.names[column]);
    if (w.status != LR_OK)
        return lr_fail(w.status, "%s: the file has changed since it was opened", d->path);
    return LR_OK;
}

/* ---- the names of the columns ------------------------------------------------------------------------------------ */
typedef struct names {
    char *text;
    size_t size, cap;
    int64_t count;
} names;

static int add_name(const lr_dataset *d, names *list, const lr_cell *name)
{
    const size_t need = list->size + (size_t)name->size + 1;
    if (lr_reserve((void **)&list->text, &list->cap, need, 1) != LR_OK)
        return LR_ENOMEM;
    list->size += (size_t)decode(d, name, list->text + list->size, name->size);
    list->text[list->size++] = 0;
    list->count++;
    return LR_OK;
}

static int peek_header(const lr_dataset *d, names *list)
{
    const char *p = d->data + d->start, *end = d->data + d->size;
    char why[LR_ROW_WHY];
    lr_cell field;
    int status = LR_OK;
    for (bool more = true; more && status == LR_OK;) {
        if (!lr_csv_field(&p, end, &field, &more, why))
            return lr_dataset_bad_row(d, d->start_line, why);
        status = add_name(d, list, &field);
    }
    return status;
}

static int peek_row(const lr_dataset *d, names *list)
{
    const char *end = d->data + d->size, *next;
    char why[LR_ROW_WHY], first[LR_ROW_WHY] = "";
    int64_t line = d->start_line, first_line = 0;
    for (const char *p = d->data + d->start; p < end; p = next, line++) {
        const lr_row_state state = lr_dataset_read_row(d, p, &next, NULL, why);
        if (state == LR_ROW_BAD && first_line == 0) {
            memcpy(first, why, sizeof first);
            first_line = line;
        }
        lr_cell key;
        int status = LR_OK;
        while (state == LR_ROW_GOOD && status == LR_OK && lr_jsonl_key(&p, next, &key))
            status = add_name(d, list, &key);
        if (state == LR_ROW_GOOD)
            return status;
    }
    return first_line > 0 ? lr_dataset_bad_row(d, first_line, first) : lr_fail(LR_EFORMAT, "%s has no rows", d->path);
}

int lr_dataset_peek(const char *path, char **out, int64_t *count)
{
    lr_dataset *d;
    names list = {0};
    int fd = -1, status = dataset_new(&d, path);
    if (status != LR_OK)
        return status;
    status = map_file(d, &fd);
    if (status == LR_OK)
        status = check_whole(d, d->csv ? peek_header(d, &list) : peek_row(d, &list));
    if (status == LR_OK && list.text == NULL && (list.text = lr_alloc(1)) == NULL)
        status = LR_ENOMEM;
    if (fd >= 0)
        close(fd);
    lr_dataset_close(d);
    if (status == LR_OK) {
        *out = list.text;
        *count = list.count;
    } else {
        lr_free(list.text);
    }
    return status;
}
