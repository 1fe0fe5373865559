/* file.h: what the readers and writers of io/ share: files that appear whole or not at all, reads, mapped files, CRC-32C. */
#ifndef LR_IO_FILE_H
#define LR_IO_FILE_H

#include "core/core.h"
#include <sys/types.h>

/* A file under construction. Bytes go to a temporary file in the same folder, which takes the place of `path` on commit. A
 * reader of `path` sees the old file or the new one, whatever happens in between. */
typedef struct lr_atomic {
    int fd;
    char *path, *directory;
    char *temporary; /* NULL: nothing is under construction */
    bool named;      /* the temporary file has a name in its folder */
} lr_atomic;

int lr_atomic_open(lr_atomic *a, const char *path);
int lr_atomic_write(lr_atomic *a, const void *data, size_t size);
/* fsync, rename, fsync the directory; allocates nothing. Afterwards the handle is of no more use, also on failure. */
int lr_atomic_commit(lr_atomic *a);
/* Make durable what was renamed or made in a folder. path is for the message. */
int lr_directory_sync(const char *directory, const char *path);
/* The directory that holds `path`; lr_free it. */
char *lr_directory_of(const char *path);
/* Close and remove the temporary file; no effect after a commit. */
void lr_atomic_abandon(lr_atomic *a);

/* read() and write(), again when a signal interrupts them. They may move fewer bytes than asked. Safe between fork and exec. */
ssize_t lr_fd_read(int fd, void *data, size_t size);
ssize_t lr_fd_write(int fd, const void *data, size_t size);
/* Open a regular file for reading and tell its size. A directory, device or pipe is LR_EINVAL. */
int lr_file_open(const char *path, int *fd, int64_t *size);
/* Read exactly `size` bytes at `offset`: 1, or 0 with errno set; if the file ends before, errno is 0. Makes no message, so that
 * worker threads may call it. */
int lr_file_read_at(int fd, int64_t offset, void *data, size_t size);

/* Maps `size` >= 1 bytes of a file, readable until lr_mapping_close. 0, or -1 with errno. If the file is cut short meanwhile, or
 * its disk fails, zeros are read in place of what is gone and the mapping is no longer whole: what was read must not be used. */
typedef struct lr_mapping lr_mapping;
int lr_mapping_open(lr_mapping **out, int fd, int64_t size, const char **data);
bool lr_mapping_whole(const lr_mapping *m);
void lr_mapping_close(lr_mapping *m); /* accepts NULL */

/* LR_EFORMAT if the first bytes of the file `path` show that it is only a pointer to the real one (Git LFS), else LR_OK. */
int lr_file_refuse_pointer(const char *path, const void *head, size_t size);

/* lr_crc32c in plain C: for processors without the instruction, and for tests to compare with. */
uint32_t lr_crc32c_portable(uint32_t crc, const void *data, size_t size);

#endif
