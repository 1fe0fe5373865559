/* spawn.h: starting one rank. See spawn.c. */
#ifndef LR_DIST_SPAWN_H
#define LR_DIST_SPAWN_H

#include "dist/rank.h"
#include <sys/types.h>

typedef struct lr_spawn {
    const char *const *argv, *const *settings; /* as lr_group_spawn has them */
    const char *input;
    int64_t input_size;
    bool terminal; /* it has the launcher's own input and output, and is in its process group: Ctrl-C reaches it */
    int index, pages_fd; /* which page of that file is the rank's */
    lr_rank_page *page;
    int pipes[2]; /* out: where its standard output and error are read; -1 where it has the launcher's */
} lr_spawn;

/* Start it and wait until the program runs; on success *pid and s->pipes are the caller's. */
int lr_spawn_rank(lr_spawn *s, pid_t *pid);

/* The same file at a number that no rank's own descriptors have, closed on exec; closes fd. -1 with errno, also for -1. */
int lr_fd_moved_up(int fd);
bool lr_fd_pipe(int ends[2], int flags); /* both ends so; false with errno */
void lr_fd_close(int *fd);               /* where it is open; then it is -1 */

#endif
