/* spawn.h: starting one rank. See spawn.c. */
#ifndef LR_DIST_SPAWN_H
#define LR_DIST_SPAWN_H

#include "dist/rank.h"
#include <sys/types.h>

typedef struct lr_spawn {
    const char *const *argv, *const *settings; /* as for lr_group_spawn */
    const char *input;
    int64_t input_size;
    bool terminal;       /* it has the launcher's own input and output and process group, so Ctrl-C reaches it */
    int index, pages_fd; /* the rank's page in that file */
    lr_rank_page *page;
    int pipes[2]; /* out: its standard output and error, to read; -1: it has the launcher's */
} lr_spawn;

/* Start it and wait until the program runs. On success *pid and s->pipes belong to the caller. */
int lr_spawn_rank(lr_spawn *s, pid_t *pid);

/* Moves a descriptor above those that a rank uses, with close-on-exec; closes fd. -1 with errno, also if fd is -1. */
int lr_fd_moved_up(int fd);
bool lr_fd_pipe(int ends[2], int flags); /* both ends moved up; false with errno */
void lr_fd_close(int *fd);               /* if it is open; sets it to -1 */

#endif
