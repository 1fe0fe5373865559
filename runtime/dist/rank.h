/* rank.h: what a rank shares with the launcher that started it: one page of memory and two file descriptors. */
#ifndef LR_DIST_RANK_H
#define LR_DIST_RANK_H

#include "core/core.h"
#include <stdatomic.h>

/* A rank finds its page by the environment, LR_RANK_VARIABLE=index, in the file LR_RANK_PAGE_FD. What it prints goes nowhere until
 * lr_rank_show makes LR_RANK_OUTPUT_FD its standard output. */
#define LR_RANK_VARIABLE "LORARUN_LAUNCHER"
enum { LR_RANK_PAGE_FD = 3, LR_RANK_OUTPUT_FD = 4, LR_RANK_PAGE_SIZE = 65536 }; /* a multiple of every page size */

/* The rank writes, the launcher reads. version is odd while the rank writes; a reader that saw it odd, or saw it change, reads
 * again. A rank that is killed while it writes leaves version odd, so the reader gives up after a while and uses what is there. */
typedef struct lr_rank_page {
    atomic_int process;  /* the rank's process id: a child process inherits the environment, but is not a rank */
    atomic_int terminal; /* 1: its standard input, output and error are the launcher's own */
    atomic_int width[2]; /* columns of the terminal where standard output and error are shown; 0: none */
    atomic_uint version;
    lr_rank_state state; /* waiting and failed are the lr_time() when that began; 0: it did not */
} lr_rank_page;

_Static_assert(sizeof(lr_rank_page) <= LR_RANK_PAGE_SIZE, "a rank's state fits its page");

void lr_rank_read(lr_rank_page *page, lr_rank_state *out); /* with durations instead of times */
/* Columns of the terminal where a launched rank's output is shown. -1: this process is no launched rank, or has the launcher's
 * terminal, and can ask its own descriptor. */
int lr_rank_terminal_width(int fd);

#endif
