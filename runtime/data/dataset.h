/* dataset.h: a data set's parts, for dataset.c (opening, reading), dataset_index.c (the index of its rows) and the loader. */
#ifndef LR_DATASET_H
#define LR_DATASET_H

#include "data/rows.h"
#include <stdatomic.h>

enum { LR_CHUNK = 1 << 20 }; /* bytes of a file that one thread reads at a time */

typedef struct lr_chunk {
    int64_t begin, stop; /* where the first row starts, and the row after the last */
    int64_t limit;       /* rows that start before this byte are this chunk's */
    int64_t line, lines; /* line of begin, from 1; line feeds between begin and stop */
    int64_t quotes;      /* CSV: quotes before this chunk */
    int64_t rows, skipped;
    int64_t *offsets; /* [rows] */
    double *numbers;  /* [rows * width] */
    size_t offset_cap, number_cap;
    char *why;        /* of the first bad row */
    int64_t why_line; /* line feeds between begin and it */
    bool read, failed;
    int status;
} lr_chunk;

struct lr_dataset {
    char *path;
    struct lr_mapping *mapping;
    const char *data; /* the mapped file */
    int64_t size;
    bool csv, skip_bad;
    lr_schema schema;
    int width; /* number columns */
    int64_t rows, skipped, max_rows;
    int64_t *offsets; /* [rows]: where each row starts */
    double *numbers;  /* [rows * width] */
    char *first_skip;
    lr_chunk *chunks; /* chunk i: rows that start in [i, i + 1) * LR_CHUNK; begin and line stay */
    int64_t chunk_count;
    int64_t start, start_line; /* of the first row */
};

/* Work on items 0..count-1, which several threads take in order. They set status and stop. */
typedef struct lr_work {
    const lr_dataset *d;
    void (*run)(struct lr_work *w, int64_t index);
    int64_t count;
    atomic_llong next, rows;
    atomic_bool stop;
    atomic_int status;
    int column; /* for hashes */
    uint64_t *hashes;
} lr_work;

/* Run w->run on this thread and on more, one for each core; on fewer if the system gives no more. */
void lr_work_run(lr_work *w);
/* Read the whole file and fill rows, skipped, first_skip, offsets, numbers and chunks. */
int lr_dataset_index(lr_dataset *d);
/* Free what only lr_dataset_index needs; the line on which each chunk starts stays. */
void lr_dataset_index_trim(lr_dataset *d);
/* LR_EFORMAT "file:line: why". */
int lr_dataset_bad_row(const lr_dataset *d, int64_t line, const char *why);
lr_row_state lr_dataset_read_row(const lr_dataset *d, const char *p, const char **next, lr_cell *cells, char *why);
int64_t lr_count_bytes(const char *p, const char *end, char c);

#endif
