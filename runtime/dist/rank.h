/* rank.h: what a rank and the launcher that started it share: one page of memory and two file descriptors. */
#ifndef LR_DIST_RANK_H
#define LR_DIST_RANK_H

#include "core/core.h"
#include <stdatomic.h>

/* A rank finds its page in the environment, LR_RANK_VARIABLE=index, and behind these descriptors. What it prints goes
 * nowhere until lr_rank_show puts LR_RANK_OUTPUT_FD in the place of standard output. */
#define LR_RANK_VARIABLE "LORARUN_LAUNCHER"
enum { LR_RANK_PAGE_FD = 3, LR_RANK_OUTPUT_FD = 4, LR_RANK_PAGE_SIZE = 65536 }; /* a multiple of every page size */

/* One writer, the rank, and one reader, the launcher. version is odd while the rank writes: a reader that saw it odd, or
 * saw it change, reads again. A rank killed in between leaves it odd, so the reader gives up after a while and takes
 * what is there. */
typedef struct lr_rank_page {
    atomic_int process;  /* the rank's process id: a child of the rank's with the same environment is no rank */
    atomic_int terminal; /* 1: its standard input, output and error are the launcher's own */
    atomic_int width[2]; /* columns of the terminal that standard output and error end up on; 0: none */
    atomic_uint version;
    lr_rank_state state; /* waiting and failed hold when that began, by lr_time(); 0: it did not */
} lr_rank_page;

_Static_assert(sizeof(lr_rank_page) <= LR_RANK_PAGE_SIZE, "a rank's state fits its page");

void lr_rank_read(lr_rank_page *page, lr_rank_state *out); /* with durations in place of times */
/* Columns of what a launched rank's descriptor ends up on; -1 where this process is no launched rank, or has the launcher's
 * own: it may look for itself. */
int lr_rank_terminal_width(int fd);

#endif
