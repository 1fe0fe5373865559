/* atomic.c: files that replace their predecessor whole or not at all.
 *
 * The order is: write under a temporary name in the same directory (rename works only inside one file system), fsync the file,
 * rename, fsync the directory. Without the first fsync a power cut can leave an empty file under the final name; without the second
 * the rename itself can be lost.
 *
 * If the file system supports it (O_TMPFILE), the temporary file has no name until it is whole, so a process that is killed leaves
 * no file. Otherwise it leaves PATH.tmp-PID-N.
 *
 * Invariant: a.temporary is not NULL exactly while a.fd is open. */
#define _GNU_SOURCE /* O_TMPFILE */
#include "io/file.h"
#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

char *lr_directory_of(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash == NULL ? lr_strdup(".") : lr_strndup(path, slash == path ? 1 : (size_t)(slash - path));
}

int lr_directory_sync(const char *directory, const char *path)
{
    const int fd = open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0 && errno == EACCES) /* a folder that may be written but not read: its files are there all the same */
        return LR_OK;
    if (fd < 0)
        return lr_fail_errno("cannot make %s durable: opening the folder %s", path, directory);
    int status = LR_OK;
    if (fsync(fd) != 0 && errno != EINVAL && errno != EROFS) /* some file systems have no such call for folders */
        status = lr_fail_errno("cannot make %s durable: syncing the folder %s", path, directory);
    close(fd);
    return status;
}

enum { SUFFIX_ROOM = 48 }; /* for ".tmp-", two numbers and the NUL */

/* Call make(a) with one temporary name after the other until it succeeds. A name that exists is from an earlier process with the
 * same id that was killed. */
static int with_free_name(lr_atomic *a, int (*make)(lr_atomic *a))
{
    static atomic_uint counter; /* tells the threads of a process apart; its id tells the ranks apart */
    do {
        snprintf(a->temporary, strlen(a->path) + SUFFIX_ROOM, "%s.tmp-%ld-%u", a->path, (long)getpid(),
                 atomic_fetch_add(&counter, 1));
        if (make(a) == 0) {
            a->named = true;
            return LR_OK;
        }
    } while (errno == EEXIST);
    return lr_fail_errno("cannot write %s: creating %s", a->path, a->temporary);
}

static int create_named(lr_atomic *a)
{
    a->fd = open(a->temporary, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    return a->fd < 0 ? -1 : 0;
}

static int give_name(lr_atomic *a)
{
    char self[32];
    snprintf(self, sizeof self, "/proc/self/fd/%d", a->fd);
    return linkat(AT_FDCWD, self, AT_FDCWD, a->temporary, AT_SYMLINK_FOLLOW);
}

static void discard(lr_atomic *a)
{
    if (a->fd >= 0)
        close(a->fd);
    if (a->named)
        unlink(a->temporary);
    lr_free(a->temporary);
    lr_free(a->directory);
    lr_free(a->path);
    *a = (lr_atomic){.fd = -1};
}

int lr_atomic_open(lr_atomic *out, const char *path)
{
    struct stat st;
    const bool replaces = stat(path, &st) == 0;
    if (replaces && !S_ISREG(st.st_mode))
        return lr_fail(LR_EINVAL, "cannot write %s: it is %s", path,
                       S_ISDIR(st.st_mode) ? "a directory" : "no regular file");
    lr_atomic a = {.fd = -1,
                   .path = lr_strdup(path),
                   .directory = lr_directory_of(path),
                   .temporary = lr_alloc(strlen(path) + SUFFIX_ROOM)};
    int status = a.path != NULL && a.directory != NULL && a.temporary != NULL ? LR_OK : LR_ENOMEM;
    if (status == LR_OK)
        a.fd = open(a.directory, O_WRONLY | O_TMPFILE | O_CLOEXEC, 0666);
    if (status == LR_OK && a.fd < 0)
        status = with_free_name(&a, create_named);
    if (status == LR_OK && replaces && fchmod(a.fd, st.st_mode & 0777) != 0) /* a file kept private stays private */
        status = lr_fail_errno("cannot give what replaces %s its permissions", path);
    if (status != LR_OK) {
        discard(&a);
        return status;
    }
    *out = a;
    return LR_OK;
}

int lr_atomic_write(lr_atomic *a, const void *data, size_t size)
{
    const char *p = data;
    while (size > 0) {
        const ssize_t n = lr_fd_write(a->fd, p, size);
        if (n < 0)
            return lr_fail_errno("cannot write %s", a->path);
        p += n;
        size -= (size_t)n;
    }
    return LR_OK;
}

int lr_atomic_commit(lr_atomic *a)
{
    int status = LR_OK;
    if (fsync(a->fd) != 0)
        status = lr_fail_errno("cannot write %s: fsync", a->path);
    if (status == LR_OK && !a->named)
        status = with_free_name(a, give_name);
    if (status == LR_OK && rename(a->temporary, a->path) != 0)
        status = lr_fail_errno("cannot rename %s to %s", a->temporary, a->path);
    if (status == LR_OK) {
        a->named = false;
        status = lr_directory_sync(a->directory, a->path);
    }
    discard(a);
    return status;
}

void lr_atomic_abandon(lr_atomic *a)
{
    if (a->temporary != NULL)
        discard(a);
}

int lr_file_rename(const char *from, const char *to)
{
    char *source = lr_directory_of(from), *target = lr_directory_of(to);
    int status = LR_ENOMEM;
    if (source != NULL && target != NULL) {
        status =
            rename(from, to) == 0 ? lr_directory_sync(target, to) : lr_fail_errno("cannot rename %s to %s", from, to);
        if (status == LR_OK && strcmp(source, target) != 0)
            status = lr_directory_sync(source, from);
    }
    lr_free(target);
    lr_free(source);
    return status;
}
