/* atomic.c: files that replace their predecessor whole or not at all.
 *
 * The order is: write under a temporary name in the same directory (rename works only inside one file system), fsync
 * the file, rename, fsync the directory. Without the first fsync a power cut can leave an empty file under the final
 * name; without the second the rename itself can be lost.
 *
 * Invariant: a.temporary is not NULL exactly while a temporary file exists and a.fd is open. */
#include "io/file.h"
#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* The directory that holds `path`; lr_free it. */
static char *directory_of(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash == NULL ? lr_strdup(".") : lr_strndup(path, slash == path ? 1 : (size_t)(slash - path));
}

/* Make what was renamed in `directory` durable; path is for the message. */
static int sync_directory(const char *directory, const char *path)
{
    const int fd = open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return lr_fail_errno("cannot make %s durable: opening the folder %s", path, directory);
    int status = LR_OK;
    if (fsync(fd) != 0 && errno != EINVAL && errno != EROFS) /* some file systems have no such call for folders */
        status = lr_fail_errno("cannot make %s durable: syncing the folder %s", path, directory);
    close(fd);
    return status;
}

int lr_atomic_open(lr_atomic *a, const char *path)
{
    static atomic_uint counter; /* threads of one process; the process id keeps ranks apart */
    struct stat st;
    const bool replaces = stat(path, &st) == 0;
    if (replaces && !S_ISREG(st.st_mode))
        return lr_fail(LR_EINVAL, "cannot write %s: it is %s", path,
                       S_ISDIR(st.st_mode) ? "a directory" : "no regular file");
    char *copy = lr_strdup(path), *directory = directory_of(path), *temporary = NULL;
    int fd = -1, status = LR_ENOMEM;
    if (copy == NULL || directory == NULL)
        goto fail;
    do { /* a name that exists is left over from a process with the same number that was killed: take the next */
        lr_free(temporary);
        temporary = lr_format("%s.tmp-%ld-%u", path, (long)getpid(), atomic_fetch_add(&counter, 1));
        if (temporary == NULL)
            goto fail;
        fd = open(temporary, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    } while (fd < 0 && errno == EEXIST);
    if (fd < 0) {
        status = lr_fail_errno("cannot write %s: creating %s", path, temporary);
        goto fail;
    }
    if (replaces && fchmod(fd, st.st_mode & 0777) != 0) { /* a file kept private stays private */
        status = lr_fail_errno("cannot give %s the permissions of %s", temporary, path);
        close(fd);
        unlink(temporary);
        goto fail;
    }
    *a = (lr_atomic){.fd = fd, .path = copy, .directory = directory, .temporary = temporary};
    return LR_OK;
fail:
    lr_free(temporary);
    lr_free(directory);
    lr_free(copy);
    return status;
}

int lr_atomic_write(lr_atomic *a, const void *data, size_t size)
{
    const char *p = data;
    while (size > 0) {
        const ssize_t n = write(a->fd, p, size < (size_t)1 << 30 ? size : (size_t)1 << 30);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return lr_fail_errno("cannot write %s", a->path);
        p += n;
        size -= (size_t)n;
    }
    return LR_OK;
}

static void discard(lr_atomic *a)
{
    close(a->fd);
    lr_free(a->temporary);
    lr_free(a->directory);
    lr_free(a->path);
    *a = (lr_atomic){.fd = -1};
}

int lr_atomic_commit(lr_atomic *a)
{
    int status;
    if (fsync(a->fd) != 0)
        status = lr_fail_errno("cannot write %s: fsync", a->path);
    else if (rename(a->temporary, a->path) != 0)
        status = lr_fail_errno("cannot rename %s to %s", a->temporary, a->path);
    else {
        status = sync_directory(a->directory, a->path);
        discard(a);
        return status;
    }
    lr_atomic_abandon(a);
    return status;
}

void lr_atomic_abandon(lr_atomic *a)
{
    if (a->temporary == NULL)
        return;
    unlink(a->temporary);
    discard(a);
}

int lr_file_rename(const char *from, const char *to)
{
    char *source = directory_of(from), *target = directory_of(to);
    int status = LR_ENOMEM;
    if (source != NULL && target != NULL) {
        status = rename(from, to) == 0 ? sync_directory(target, to) : lr_fail_errno("cannot rename %s to %s", from, to);
        if (status == LR_OK && strcmp(source, target) != 0)
            status = sync_directory(source, from);
    }
    lr_free(target);
    lr_free(source);
    return status;
}
